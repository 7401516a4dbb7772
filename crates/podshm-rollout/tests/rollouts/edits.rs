//! What is changed while a rollout is under way: its batches, its nodes, and which nodes there are.

use crate::again::steps;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, phase, until, until_batch};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::{Batch, NodeState, Phase};
use serde_json::json;

fn batches(of: serde_json::Value) -> Vec<Batch> {
    object(of)
}

fn said(cluster: &Cluster) -> Vec<String> {
    let conditions = &cluster.rollout.status.as_ref().unwrap().conditions;
    conditions.iter().map(|one| format!("{}: {}", one.kind, one.message)).collect()
}

fn sizes(cluster: &Cluster) -> Vec<u32> {
    cluster.rollout.status.as_ref().unwrap().history.iter().map(|record| record.nodes).collect()
}

#[test]
fn batches_that_have_not_begun_are_planned_again() {
    let mut cluster = cluster(8);
    until_batch(&mut cluster, 1);
    cluster.rollout.spec.batches = batches(json!([{"count": 1}, {"count": 3}, {"count": 2}, {"percent": 100}]));
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(sizes(&cluster), [1, 3, 2, 2]);
    is_converted(&cluster);
}

#[test]
fn a_batch_that_has_begun_stays_as_it_was_and_who_changes_it_is_told_what_to_do() {
    let was = json!([{"count": 1}, {"percent": 50}, {"percent": 100}]);
    for (edited, place) in [
        (json!([{"count": 3}, {"percent": 50}, {"percent": 100}]), 0),
        (json!([{"count": 1}, {"percent": 80}, {"percent": 100}]), 1),
        (json!([{"count": 1}]), 1),
        // All that have begun are one further.
        (json!([{"count": 1}, {"count": 1}, {"percent": 50}, {"percent": 100}]), 1),
    ] {
        let mut cluster = cluster(6);
        until_batch(&mut cluster, 2);
        steps(&mut cluster, 4);
        cluster.rollout.spec.batches = batches(edited.clone());
        let done = cluster.done.len();
        steps(&mut cluster, 10);
        assert_eq!((phase(&cluster), cluster.done.len()), (Phase::Paused, done), "{edited}: nothing is begun");
        let expected =
            format!("spec.batches[{place}] must stay as it was once batch {} has begun, and was {{", place + 1);
        assert!(message(&cluster).contains(&expected), "{edited}: {}", message(&cluster));
        assert!(said(&cluster)[0].starts_with(&format!("BatchesChanged: {expected}")), "{:?}", said(&cluster));
        cluster.rollout.spec.batches = batches(was.clone());
        until(&mut cluster, &[Phase::Completed]);
        assert_eq!((sizes(&cluster), said(&cluster)), (vec![1, 2, 3], vec![]), "{edited}");
        is_converted(&cluster);
        nobody_was_hurt(&cluster);
    }
}

#[test]
fn a_node_that_is_left_out_midway_is_left_alone_and_one_that_is_touched_goes_on() {
    let mut cluster = cluster(6);
    cluster.rollout.spec.batches = batches(json!([{"count": 1}, {"percent": 100}]));
    until_batch(&mut cluster, 2);
    let in_state = |cluster: &Cluster, state: NodeState| {
        let is_so = |node: &&String| cluster.mark(node).is_some_and(|mark| mark.state == state);
        cluster.world.nodes.keys().filter(is_so).cloned().collect::<Vec<_>>()
    };
    steps(&mut cluster, 2);
    let waiting = in_state(&cluster, NodeState::Pending);
    assert!(waiting.len() >= 3, "{waiting:?}");
    cluster.rollout.spec.nodes.exclude_names = vec!["n00".into(), waiting[1].clone(), waiting[2].clone()];
    steps(&mut cluster, 1);
    assert_eq!(in_state(&cluster, NodeState::Skipped), waiting[1..3], "{:?}", said(&cluster));
    assert!(cluster.mark(&waiting[1]).unwrap().reason.contains("left out by spec.nodes"));
    let expected = "NodesLeftOut: 1 nodes (n00) are left out by spec.nodes and touched already";
    assert!(said(&cluster)[0].starts_with(expected), "{:?}", said(&cluster));
    // One of them is to be of it again.
    cluster.rollout.spec.nodes.exclude_names = vec![waiting[2].clone()];
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(in_state(&cluster, NodeState::Done).len(), 5);
    assert!(!cluster.has_label(&waiting[2]) && !cluster.has_taint(&waiting[2]));
    nobody_was_hurt(&cluster);
}

#[test]
fn nodes_that_join_are_dealt_to_batches_that_have_not_begun_and_others_are_named() {
    let mut whole = cluster(4);
    until_batch(&mut whole, 2);
    whole.add_node("n98", "z0");
    steps(&mut whole, 1);
    assert_eq!(said(&whole), [""; 0], "the last batch takes it");
    until(&mut whole, &[Phase::Completed]);
    is_converted(&whole);

    let mut cluster = cluster(4);
    cluster.rollout.spec.batches = batches(json!([{"count": 1}, {"count": 3}]));
    until_batch(&mut cluster, 2);
    assert_eq!(said(&cluster), [""; 0]);
    cluster.add_node("n98", "z0");
    cluster.add_node("n99", "z1");
    steps(&mut cluster, 1);
    let expected = "NodesInNoBatch: 2 nodes (n98, n99) are in no batch, and stay as they are: have spec.batches end with {percent: 100}";
    assert!(said(&cluster)[0].starts_with(expected), "{:?}", said(&cluster));
    // As it says.
    cluster.rollout.spec.batches = batches(json!([{"count": 1}, {"count": 3}, {"percent": 100}]));
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!((sizes(&cluster), said(&cluster)), (vec![1, 3, 2], vec![]));
    is_converted(&cluster);
}

#[test]
fn nodes_that_leave_are_missed_by_nobody() {
    let mut cluster = cluster(6);
    until_batch(&mut cluster, 2);
    // One that is done, and one that no batch has yet.
    cluster.remove_node("n00");
    let free = cluster.world.nodes.keys().rfind(|node| cluster.mark(node).is_none()).unwrap().clone();
    cluster.remove_node(&free);
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(cluster.world.nodes.len(), 4);
    is_converted(&cluster);
}
