//! `progressDeadlineSeconds` is about standing still.

use crate::again::steps;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, phase, until};
use crate::simulated::{Cluster, SECONDS_A_TICK, object};
use podshm_api::rollout::{NodeState, Phase};
use serde_json::json;

/// Two nodes at once, and a budget that lets one replica go at a time.
fn slow(deadline: u32) -> Cluster {
    let mut cluster = cluster(2);
    cluster.rollout.spec.batches = vec![object(json!({"percent": 100}))];
    cluster.rollout.spec.progress_deadline_seconds = deadline;
    cluster
}

fn until_migrating(cluster: &mut Cluster) -> i64 {
    for _ in 0..100 {
        let marks = cluster.world.nodes.keys().filter_map(|node| cluster.mark(node));
        if let Some(since) = marks.filter(|mark| mark.state == NodeState::Migrating).map(|mark| mark.since).min() {
            return since;
        }
        steps(cluster, 1);
    }
    panic!("no node is migrated: {}", message(cluster));
}

#[test]
fn a_batch_that_is_slow_and_goes_on_is_not_late() {
    let mut cluster = slow(30);
    let began = until_migrating(&mut cluster);
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    assert_eq!(phase(&cluster), Phase::Completed, "{}", message(&cluster));
    let took = cluster.mark("n01").unwrap().since - began - 30;
    assert!(took > 90, "it took {took} s: too few for a deadline of 30 s to say anything");
    is_converted(&cluster);
    nobody_was_hurt(&cluster);
}

#[test]
fn one_that_stands_still_is_late_from_when_it_came_a_step_further_last() {
    let mut cluster = slow(60);
    until_migrating(&mut cluster);
    steps(&mut cluster, 12);
    cluster.is_blocked = true;
    let before = cluster.world.now;
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    let said = message(&cluster);
    assert!(phase(&cluster) == Phase::Paused && said.contains("s without progress"), "{said}");
    let moved_at = cluster.rollout.status.as_ref().unwrap().moved_at;
    let stood = cluster.world.now - moved_at;
    assert!((60..=60 + 2 * SECONDS_A_TICK).contains(&stood), "{stood} s: {said}");
    assert!(moved_at + 60 > before, "what had come before it was blocked counts: {moved_at}, {before}");
}

/// Of five nodes, two at once, one has agents that never come: the others go on beside it, one by one.
#[test]
fn a_node_that_stands_still_is_late_once_no_other_comes_further() {
    let mut cluster = cluster(6);
    cluster.rollout.spec.batches = vec![object(json!({"count": 5}))];
    cluster.rollout.spec.progress_deadline_seconds = 60;
    // No replica moves: what goes on are nodes alone.
    cluster.rollout.spec.workloads.clear();
    cluster.broken_agents = vec!["n00".into()];
    let began = cluster.world.now;
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    let said = message(&cluster);
    assert!(phase(&cluster) == Phase::Paused && said.contains("node n00: after "), "{said}");
    let marks = cluster.world.nodes.keys().filter(|node| *node != "n00").filter_map(|node| cluster.mark(node));
    let last = marks.map(|mark| mark.since).max().unwrap();
    let stood = cluster.world.now - last;
    assert!((60..=60 + 2 * SECONDS_A_TICK).contains(&stood), "{stood} s: {said}");
    assert!(last - began > 60, "{} s: too few for a deadline of 60 s to say anything", last - began);
}

#[test]
fn a_pause_makes_nobody_late() {
    let mut cluster = slow(60);
    until_migrating(&mut cluster);
    cluster.rollout.spec.paused = true;
    steps(&mut cluster, 100);
    cluster.rollout.spec.paused = false;
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(cluster.rollout.status.as_ref().unwrap().failures, 0);
    nobody_was_hurt(&cluster);
}

#[test]
fn replicas_that_never_become_ready_once_all_nodes_are_left_are_late_too() {
    let mut cluster = slow(60);
    until_migrating(&mut cluster);
    for _ in 0..200 {
        steps(&mut cluster, 1);
        let fat = |name: &str| cluster.world.deployment("shop", name).unwrap().spec.as_ref().unwrap().replicas;
        if fat("cart") == Some(0) && fat("till") == Some(0) {
            break;
        }
    }
    // A replica too many that nobody may take away: one of the others is not Ready, and stays so.
    let slim = cluster.deployment("cart-slim").unwrap().spec.as_mut().unwrap();
    slim.replicas = Some(slim.replicas.unwrap() + 1);
    cluster.is_blocked = true;
    cluster.tick();
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    let said = message(&cluster);
    assert!(phase(&cluster) == Phase::Paused && said.contains("s without progress, it waits for: "), "{said}");
}
