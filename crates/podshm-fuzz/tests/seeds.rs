//! Every committed seed, and a few thousand inputs that are the same in every run, through its target: on a stable compiler, so that
//! neither targets nor seeds can rot between two runs of `make fuzz`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(directory: PathBuf) -> BTreeSet<String> {
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn replay(name: &str, runs: u64) {
    let (_, target) = podshm_fuzz::TARGETS.iter().find(|(n, _)| *n == name).unwrap();
    let directory = fuzz().join("seeds").join(name);
    let seeds = names(directory.clone());
    assert!(!seeds.is_empty(), "no seed in {}", directory.display());
    for seed in &seeds {
        eprintln!("{name}: {seed}");
        let bytes = std::fs::read(directory.join(seed)).unwrap();
        assert!(bytes.len() <= 4096, "{seed} has {} bytes: keep seeds small", bytes.len());
        target(&bytes);
        // And cut short in a few places, where an input may end in the middle of a choice.
        for cut in (0..bytes.len()).step_by((bytes.len() / 8).max(1)) {
            target(&bytes[..cut]);
        }
    }
    let mut random = podshm_tests::raw::Random(0x9e37_79b9_7f4a_7c15);
    for run in 0..runs {
        let bytes: Vec<u8> = (0..random.below(400)).map(|_| random.word() as u8).collect();
        if std::env::var_os("FUZZ_TRACE").is_some() {
            eprintln!("{name}: run {run}, {bytes:?}");
        }
        target(&bytes);
    }
}

macro_rules! replays {
    ($($name:ident $runs:literal,)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name), $runs);
        })*

        #[test]
        fn every_target_has_its_program_its_seeds_and_its_replay() {
            let replayed = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            let targets: BTreeSet<String> = podshm_fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
            assert_eq!(targets, replayed, "TARGETS and the replays");
            assert_eq!(names(fuzz().join("seeds")), targets, "fuzz/seeds");
            let programs = names(fuzz().join("fuzz_targets"));
            assert_eq!(programs, targets.iter().map(|name| format!("{name}.rs")).collect(), "fuzz/fuzz_targets");
            let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
            for name in &targets {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
            }
        }
    };
}

replays! {
    agent 200,
    broker 500,
    client 200,
    cursors 5000,
    frames 1000,
    health 2000,
    messages 3000,
    producer 3000,
    region 3000,
    ring 5000,
    route 3000,
    slices 1000,
    table 2000,
}
