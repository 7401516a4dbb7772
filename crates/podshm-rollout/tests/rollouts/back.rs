//! The way back, where something is in it.

use crate::again::steps;
use crate::simulated::fleet::{cluster, is_as_before, message, nobody_was_hurt, phase, until, until_batch};
use podshm_api::rollout::{Phase, Stop};

#[test]
fn agents_stay_under_slim_pods_that_can_not_go_back_and_who_is_waited_for_is_said() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 3);
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    let fat = cluster.deployment("cart").unwrap().spec.as_mut().unwrap();
    let was = fat.replicas.unwrap();
    fat.replicas = Some(was + 1);
    steps(&mut cluster, 60);
    assert_eq!(phase(&cluster), Phase::RollingBack);
    let said = message(&cluster);
    assert!(said.contains("as spec.stop says; waits for: somebody scaled shop/cart"), "{said}");
    let slim = cluster.world.pods_of(cluster.world.deployment("shop", "cart-slim").unwrap()).all;
    assert!(!slim.is_empty());
    for pod in slim {
        assert!(cluster.has_label(pod.spec.as_ref().unwrap().node_name.as_ref().unwrap()), "its agents are there");
    }
    cluster.deployment("cart").unwrap().spec.as_mut().unwrap().replicas = Some(was);
    until(&mut cluster, &[Phase::RolledBack]);
    assert!(!message(&cluster).contains("waits for"), "{}", message(&cluster));
    is_as_before(&cluster);
    nobody_was_hurt(&cluster);
}
