//! What is changed while a rollout is under way: its batches, its nodes, and which nodes there are.

use crate::again::steps;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, phase, until, until_batch};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::{Batch, NodeState, Phase, Stop};
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
fn a_batch_that_is_too_long_to_be_kept_is_told_by_its_hash_when_it_changes() {
    let values = |last: &str| json!(["z0", "z".repeat(63), "y".repeat(63), last]);
    let of = |last: &str| {
        let zone = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": values(last)});
        batches(json!([{"selector": {"matchExpressions": [zone]}}, {"percent": 100}]))
    };
    let mut cluster = cluster(4);
    cluster.rollout.spec.batches = of("a");
    until_batch(&mut cluster, 1);
    steps(&mut cluster, 2);
    assert_eq!((phase(&cluster), said(&cluster)), (Phase::Running, vec![]));
    cluster.rollout.spec.batches = of("b");
    steps(&mut cluster, 2);
    assert_eq!(phase(&cluster), Phase::Paused);
    assert!(said(&cluster)[0].contains("and was xxh3:"), "{:?}", said(&cluster));
    cluster.rollout.spec.batches = of("a");
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

#[test]
fn batches_that_began_before_anybody_wrote_down_how_they_were_are_not_taken_for_changed() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let history = &mut cluster.rollout.status.as_mut().unwrap().history;
    history.iter_mut().for_each(|record| record.spec.clear());
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    assert_eq!((phase(&cluster), said(&cluster)), (Phase::Completed, vec![]), "{}", message(&cluster));
}

#[test]
fn a_node_in_work_that_is_left_out_goes_on_and_nobody_who_was_left_out_comes_to_a_batch_that_is_over() {
    for state in [NodeState::Preparing, NodeState::Migrating, NodeState::Soaking] {
        let mut cluster = cluster(8);
        until_batch(&mut cluster, 2);
        steps(&mut cluster, 2);
        let of = |cluster: &Cluster, state: NodeState| {
            let is_so = |node: &&String| cluster.mark(node).is_some_and(|mark| (mark.state, mark.batch) == (state, 2));
            cluster.world.nodes.keys().find(is_so).cloned()
        };
        let waits = of(&cluster, NodeState::Pending).expect("one that waits for others");
        cluster.rollout.spec.nodes.exclude_names = vec![waits.clone()];
        for _ in 0..200 {
            if of(&cluster, state).is_some() {
                break;
            }
            steps(&mut cluster, 1);
        }
        let works = of(&cluster, state).unwrap_or_else(|| panic!("no node is {state:?}: {}", message(&cluster)));
        cluster.rollout.spec.nodes.exclude_names.push(works.clone());
        until_batch(&mut cluster, 3);
        cluster.rollout.spec.nodes.exclude_names.clear();
        until(&mut cluster, &[Phase::Completed, Phase::Paused]);
        assert_eq!(phase(&cluster), Phase::Completed, "{}", message(&cluster));
        assert_eq!(cluster.mark(&works).unwrap().state, NodeState::Done, "{works} was {state:?}");
        assert_eq!(cluster.mark(&waits).unwrap().state, NodeState::Skipped);
        assert!(!cluster.has_label(&waits) && cluster.has_label(&works));
    }
}

#[test]
fn a_node_that_was_skipped_for_another_reason_is_not_of_its_batch_again_by_itself() {
    let mut cluster = cluster(4);
    let cordon = |cluster: &mut Cluster, is_so: bool| {
        cluster.world.nodes.get_mut("n03").unwrap().spec.get_or_insert_default().unschedulable = Some(is_so);
    };
    cordon(&mut cluster, true);
    until_batch(&mut cluster, 3);
    steps(&mut cluster, 1);
    assert_eq!(cluster.mark("n03").map(|mark| mark.state), Some(NodeState::Skipped));
    cordon(&mut cluster, false);
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(cluster.mark("n03").map(|mark| mark.state), Some(NodeState::Skipped));
    assert!(!cluster.has_label("n03") && !cluster.has_taint("n03"));
}

#[test]
fn of_many_nodes_a_condition_names_some_and_one_that_goes_back_or_is_over_says_none() {
    for (stop, end) in [(None, Phase::Completed), (Some(Stop::RollBack), Phase::RolledBack)] {
        let mut cluster = cluster(4);
        cluster.rollout.spec.batches = batches(json!([{"count": 1}, {"count": 3}]));
        until_batch(&mut cluster, 2);
        steps(&mut cluster, 1);
        (90..97).for_each(|number| cluster.add_node(&format!("n{number}"), "z0"));
        cluster.rollout.spec.nodes.exclude_names = vec!["n00".into()];
        steps(&mut cluster, 1);
        let all = said(&cluster);
        assert!(all[0].starts_with("NodesLeftOut: 1 nodes (n00) are"), "{all:?}");
        assert!(all[1].starts_with("NodesInNoBatch: 7 nodes (n90, n91, n92, n93, n94, …) are in no batch"), "{all:?}");
        cluster.rollout.spec.stop = stop;
        if stop.is_some() {
            steps(&mut cluster, 2);
            assert_eq!((phase(&cluster), said(&cluster)), (Phase::RollingBack, vec![]));
        }
        until(&mut cluster, &[end]);
        assert_eq!(said(&cluster), [""; 0], "{}", message(&cluster));
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
