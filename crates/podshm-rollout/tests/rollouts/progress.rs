//! `progressDeadlineSeconds` is about standing still.

use crate::again::steps;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, phase, until};
use crate::simulated::{Cluster, SECONDS_A_TICK, object};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
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

fn cart_alone(cluster: &mut Cluster) {
    cluster.rollout.spec.workloads.truncate(1);
    cluster.world.deployments.retain(|one| one.metadata.name.as_deref() == Some("cart"));
    cluster.world.pods.retain(|pod| !pod.metadata.labels.iter().flatten().any(|(_, app)| app == "till"));
}

/// Of slim pods so many are Ready at most.
fn steps_with(cluster: &mut Cluster, times: usize, most: usize) {
    for _ in 0..times {
        steps(cluster, 1);
        let is_slim =
            |pod: &&mut Pod| pod.metadata.labels.iter().flatten().any(|(key, form)| key == "form" && form == "slim");
        let never: Vec<PodCondition> = vec![object(json!({"type": "Ready", "status": "False"}))];
        for pod in cluster.world.pods.iter_mut().filter(is_slim).skip(most) {
            pod.status.as_mut().unwrap().conditions = Some(never.clone());
        }
    }
}

/// How long ago `last` is when the rollout stops, as late.
fn stood_since(cluster: &mut Cluster, last: i64, most: usize) -> i64 {
    for _ in 0..100 {
        steps_with(cluster, 1, most);
        if phase(cluster) == Phase::Paused {
            assert!(message(cluster).contains("s without progress"), "{}", message(cluster));
            // As it was when that was decided.
            return cluster.world.now - SECONDS_A_TICK - last;
        }
    }
    panic!("nobody is late: {}", message(cluster));
}

fn fat(cluster: &Cluster) -> Option<i32> {
    cluster.world.deployment("shop", "cart").unwrap().spec.as_ref().unwrap().replicas
}

/// A deadline is 60 s where this is asked.
fn is_the_deadline(stood: i64) -> bool {
    (60..=60 + 2 * SECONDS_A_TICK).contains(&stood)
}

#[test]
fn a_node_that_is_to_wait_again_is_no_step_further() {
    let mut cluster = cluster(6);
    cluster.rollout.spec.batches = vec![object(json!({"count": 5}))];
    cluster.rollout.spec.progress_deadline_seconds = 60;
    cluster.rollout.spec.max_unavailable = 1;
    cluster.rollout.spec.workloads.clear();
    cluster.broken_agents = vec!["n00".into()];
    steps(&mut cluster, 5);
    let leave_out = |cluster: &mut Cluster, names: &[&str]| {
        cluster.rollout.spec.nodes.exclude_names = names.iter().map(|&name| name.to_owned()).collect();
        steps(cluster, 1);
        cluster.mark("n03").map(|mark| (mark.state, mark.since)).unwrap()
    };
    assert_eq!(leave_out(&mut cluster, &["n03"]).0, NodeState::Skipped);
    steps(&mut cluster, 6);
    let last = cluster.mark("n00").unwrap().since;
    let (state, since) = leave_out(&mut cluster, &[]);
    assert!(state == NodeState::Pending && since > last + 30, "{state:?} since {since}");
    let stood = stood_since(&mut cluster, last, usize::MAX);
    assert!(is_the_deadline(stood), "{stood} s: {}", message(&cluster));
}

#[test]
fn a_replica_that_is_ready_is_a_step_further_and_so_is_one_that_leaves() {
    let begun = || {
        let mut cluster = slow(60);
        cart_alone(&mut cluster);
        cluster.is_blocked = true;
        until_migrating(&mut cluster);
        // No node comes further from now on.
        steps_with(&mut cluster, 8, 0);
        cluster
    };
    let mut cluster = begun();
    // The first step that sees it is the next but one.
    let came = cluster.world.now + SECONDS_A_TICK;
    let stood = stood_since(&mut cluster, came, 1);
    assert!(is_the_deadline(stood), "{stood} s after one came: {}", message(&cluster));

    let mut cluster = begun();
    steps_with(&mut cluster, 10, 1);
    cluster.is_blocked = false;
    let before = fat(&cluster);
    for _ in 0..4 {
        if fat(&cluster) < before {
            break;
        }
        steps_with(&mut cluster, 1, 1);
    }
    assert!(fat(&cluster) < before && phase(&cluster) == Phase::Running, "{}", message(&cluster));
    let left = cluster.world.now;
    let stood = stood_since(&mut cluster, left, 1);
    assert!(is_the_deadline(stood), "{stood} s after one left: {}", message(&cluster));
}

#[test]
fn more_replicas_than_were_asked_for_are_no_step_further() {
    let mut cluster = slow(60);
    cart_alone(&mut cluster);
    cluster.rollout.spec.soak_seconds = 600;
    for _ in 0..200 {
        if message(&cluster).contains("is watched for") {
            break;
        }
        steps(&mut cluster, 1);
    }
    let marks = cluster.world.nodes.keys().filter_map(|node| cluster.mark(node)).map(|mark| mark.since);
    let last = marks.max().unwrap().max(cluster.rollout.status.as_ref().unwrap().moved_at);
    steps(&mut cluster, 5);
    let slim = cluster.deployment("cart-slim").unwrap().spec.as_mut().unwrap();
    slim.replicas = Some(slim.replicas.unwrap() + 1);
    cluster.is_blocked = true;
    let stood = stood_since(&mut cluster, last, usize::MAX);
    assert!(is_the_deadline(stood), "{stood} s: {}", message(&cluster));
    assert_eq!(cluster.rollout.status.as_ref().unwrap().workloads[0].slim_ready, 8, "it had come");
}

/// Replicas that had come in the batch before, and are not Ready any more, come again: in this batch, and after a resumption, that counts.
#[test]
fn each_batch_and_each_resumption_counts_replicas_anew() {
    let mut cluster = slow(60);
    cart_alone(&mut cluster);
    cluster.rollout.spec.batches = vec![object(json!({"count": 1})), object(json!({"percent": 100}))];
    cluster.rollout.spec.gates.approval = true;
    cluster.rollout.spec.approved = 1;
    until(&mut cluster, &[Phase::Running]);
    until(&mut cluster, &[Phase::AwaitingApproval]);
    let moved = |cluster: &Cluster| cluster.rollout.status.as_ref().unwrap().moved;
    let most = moved(&cluster);
    steps_with(&mut cluster, 2, 1);
    cluster.is_blocked = true;
    cluster.rollout.spec.approved = 2;
    for resumed in 0..2 {
        cluster.rollout.spec.resumed_failures = resumed;
        for _ in 0..50 {
            if cluster.mark("n01").is_some_and(|mark| mark.state == NodeState::Migrating) {
                break;
            }
            steps_with(&mut cluster, 1, 1);
        }
        steps_with(&mut cluster, 8, 1);
        assert_eq!(phase(&cluster), Phase::Running, "{}", message(&cluster));
        // The first step that sees it is the next but one.
        let came = cluster.world.now + SECONDS_A_TICK;
        let stood = stood_since(&mut cluster, came, 2);
        assert!(is_the_deadline(stood), "{stood} s, {resumed} resumptions: {}", message(&cluster));
        assert!(moved(&cluster) < most, "{} of {most}: fewer than had moved before", moved(&cluster));
    }
}
