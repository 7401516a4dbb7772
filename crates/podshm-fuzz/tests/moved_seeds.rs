//! Seeds that are there for what they reach do reach it: a client's move to its region's next generation, begun and completed. In a
//! process of its own, since it counts the steps that the broker passes.

use podshm_tests::gates::passed;
use std::path::Path;

fn moves(seed: &str) -> [u64; 3] {
    use podshm::steps::Step::{BrokerMoved, BrokerNext, BrokerTold};
    let steps = || {
        let passed = passed();
        [BrokerNext, BrokerTold, BrokerMoved].map(|step| passed.get(&step).copied().unwrap_or(0))
    };
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/broker").join(seed));
    let bytes = bytes.unwrap_or_else(|e| panic!("{seed}: {e}"));
    let before = steps();
    podshm_fuzz::broker(&bytes);
    let after = steps();
    [0, 1, 2].map(|n| after[n] - before[n])
}

#[test]
fn the_seeds_of_moves_reach_them() {
    for seed in ["moved-to-more", "moved-to-older", "moved-alone"] {
        assert_eq!(moves(seed), [1, 1, 1], "{seed}: shown, told, and gone over");
    }
    let [shown, _, gone_over] = moves("moved-before-time");
    assert_eq!((shown, gone_over), (1, 0), "one that leaves on the way");
}
