//! Pods that are not listed, and come after the plan was made.

use crate::again::steps;
use crate::faults::upgrade;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, phase, until, until_batch};
use crate::simulated::{Cluster, object};
use podshm_api::rollout::{NodeState, OnFailure, Phase};
use podshm_rollout::plan;
use serde_json::json;

/// A pod that no rollout lists, on a node.
fn add_pod(cluster: &mut Cluster, name: &str, node: &str, cpu: &str) {
    let requests = json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
    cluster.world.pods.push(object(json!({
        "metadata": {"name": name, "namespace": "other", "uid": name, "creationTimestamp": "1970-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": [{"name": "db", "resources": requests}]},
        "status": {"phase": "Running"},
    })));
}

fn remove_pods(cluster: &mut Cluster, beginning: &str) {
    cluster.world.pods.retain(|pod| !pod.metadata.name.as_ref().unwrap().starts_with(beginning));
}

/// The condition, with its time.
fn said(cluster: &Cluster) -> Option<(String, String)> {
    let all = &cluster.rollout.status.as_ref().unwrap().conditions;
    let one = all.iter().find(|one| one.kind == "NoRoom" && one.reason == "NowhereToGo")?;
    Some((one.message.clone(), one.last_transition_time.clone()))
}

fn labelled(cluster: &Cluster) -> usize {
    cluster.world.nodes.keys().filter(|node| cluster.has_label(node) || cluster.has_taint(node)).count()
}

/// Not touched, and not even marked.
fn is_free(cluster: &Cluster, node: &str) -> bool {
    cluster.mark(node).is_none() && !cluster.has_label(node) && !cluster.has_taint(node)
}

#[test]
fn a_batch_without_room_for_others_is_not_begun_and_a_resumption_tries_again() {
    for on_failure in [OnFailure::Pause, OnFailure::RollBack] {
        let mut cluster = cluster(6);
        cluster.rollout.spec.on_failure = on_failure;
        until_batch(&mut cluster, 2);
        let free = cluster.world.nodes.keys().rfind(|node| cluster.mark(node).is_none()).unwrap().clone();
        add_pod(&mut cluster, "db-0", &free, "1500m");
        until(&mut cluster, &[Phase::Paused, Phase::Completed, Phase::RollingBack]);
        let status = cluster.rollout.status.clone().unwrap();
        assert_eq!((status.phase, status.batch, status.failures), (Phase::Paused, 2, 1), "{}", status.message);
        assert!(labelled(&cluster) == 3 && is_free(&cluster, &free), "nothing of batch 3 is touched");
        let expected = "batch 3 is not begun on 3 nodes: 1 pods that are not listed would have nowhere to go if they started again \
                        (other/db-0): together they ask for 1500m of CPU and 1024 MiB of memory; 0 nodes without the taint remain";
        let out = "have fewer in spec.batches[2]; then podshm rollout resume (or rollback, abort)";
        assert!(status.message.starts_with(expected) && status.message.ends_with(out), "{}", status.message);
        let condition = said(&cluster).expect("a condition");
        assert_eq!(condition.0, status.message);

        let done = cluster.done.len();
        steps(&mut cluster, 10);
        assert_eq!((phase(&cluster), cluster.done.len()), (Phase::Paused, done));
        assert_eq!(said(&cluster), Some(condition), "as long as it is so, with the time since when");
        cluster.rollout.spec.resumed_failures = 1;
        steps(&mut cluster, 5);
        let status = cluster.rollout.status.clone().unwrap();
        assert_eq!((status.phase, status.batch, status.failures), (Phase::Paused, 2, 2), "{}", status.message);
        assert!(said(&cluster).is_some() && is_free(&cluster, &free));

        remove_pods(&mut cluster, "db-");
        steps(&mut cluster, 1);
        assert_eq!((phase(&cluster), said(&cluster)), (Phase::Paused, None), "there is room, and nobody has looked");
        cluster.rollout.spec.resumed_failures = 2;
        until(&mut cluster, &[Phase::Completed, Phase::Paused]);
        is_converted(&cluster);
        nobody_was_hurt(&cluster);
    }
}

#[test]
fn what_other_nodes_have_no_room_for_is_counted_and_leaving_its_node_out_is_a_way_on() {
    let mut cluster = cluster(6);
    until_batch(&mut cluster, 1);
    let batches = plan(&cluster.rollout, &cluster.world).batches;
    let (second, third) = (batches[1].nodes.clone(), batches[2].nodes.clone());
    // Its node is of batch 2, and what is free elsewhere is more than it asks for, but nowhere on one node.
    add_pod(&mut cluster, "db-0", &second[0], "3");
    third.iter().for_each(|node| add_pod(&mut cluster, &format!("web-{node}"), node, "1500m"));
    until(&mut cluster, &[Phase::Paused, Phase::Completed]);
    let status = cluster.rollout.status.clone().unwrap();
    assert_eq!((status.phase, status.batch), (Phase::Paused, 1), "{}", status.message);
    assert!(status.message.contains("1 pods that are not listed") && status.message.contains("(other/db-0)"));
    assert!(status.message.contains("they ask for 3000m of CPU"), "{}", status.message);
    assert!(second.iter().all(|node| is_free(&cluster, node)));

    cluster.rollout.spec.nodes.exclude_names = vec![second[0].clone()];
    cluster.rollout.spec.resumed_failures = status.failures;
    until_batch(&mut cluster, 2);
    assert_eq!((phase(&cluster), said(&cluster)), (Phase::Running, None), "{}", message(&cluster));
    remove_pods(&mut cluster, "web-");
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    assert_eq!(phase(&cluster), Phase::Completed, "{}", message(&cluster));
    assert!(is_free(&cluster, &second[0]));
    nobody_was_hurt(&cluster);
}

#[test]
fn pods_on_nodes_that_have_the_taint_already_are_counted_too() {
    let mut cluster = cluster(6);
    until_batch(&mut cluster, 1);
    let batches = plan(&cluster.rollout, &cluster.world).batches;
    add_pod(&mut cluster, "db-0", &batches[0].nodes[0], "3");
    batches[2].nodes.iter().for_each(|node| add_pod(&mut cluster, &format!("web-{node}"), node, "1500m"));
    until(&mut cluster, &[Phase::Paused, Phase::Completed]);
    let status = cluster.rollout.status.clone().unwrap();
    assert_eq!((status.phase, status.batch), (Phase::Paused, 1), "{}", status.message);
    assert!(status.message.contains("1 pods that are not listed") && status.message.contains("(other/db-0)"));
    assert!(batches[1].nodes.iter().all(|node| is_free(&cluster, node)));
}

#[test]
fn nodes_that_take_the_place_of_skipped_ones_are_counted_too() {
    let mut cluster = cluster(6);
    // Waited for, and skipped in the end.
    cluster.silent = Some("n00".into());
    cluster.tick();
    until_batch(&mut cluster, 1);
    let all: Vec<String> = cluster.world.nodes.keys().cloned().collect();
    all.iter().for_each(|node| add_pod(&mut cluster, &format!("db-{node}"), node, "3"));
    until(&mut cluster, &[Phase::Paused, Phase::Completed]);
    assert_eq!((phase(&cluster), labelled(&cluster)), (Phase::Paused, 0), "{}", message(&cluster));
    assert!(message(&cluster).starts_with("batch 1 is not begun on 1 nodes: 1 pods"), "{}", message(&cluster));
    assert!(all[1..].iter().all(|node| is_free(&cluster, node)));
    steps(&mut cluster, 3);
    assert!(said(&cluster).is_some());
    remove_pods(&mut cluster, "db-");
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed, Phase::Paused]);
    assert_eq!(phase(&cluster), Phase::Completed, "{}", message(&cluster));
    assert_eq!(cluster.mark("n00").map(|mark| mark.state), Some(NodeState::Skipped));
    assert_eq!(labelled(&cluster), 5);
}

#[test]
fn pods_that_are_about_to_go_and_upgrades_of_agents_need_no_room() {
    let mut cluster = cluster(4);
    add_pod(&mut cluster, "db-0", "n00", "1");
    assert_ne!(plan(&cluster.rollout, &cluster.world).refusals, []);
    cluster.world.pods.iter_mut().last().unwrap().metadata.deletion_timestamp =
        Some(object(json!("2026-01-01T00:00:00Z")));
    assert_eq!(plan(&cluster.rollout, &cluster.world).refusals, []);

    let mut upgraded = upgrade(4, None);
    add_pod(&mut upgraded, "db-0", "n00", "1");
    until(&mut upgraded, &[Phase::Completed, Phase::Paused, Phase::RollingBack]);
    assert_eq!(phase(&upgraded), Phase::Completed, "{}", message(&upgraded));
}
