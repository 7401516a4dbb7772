//! The way back, where something is in it.

use crate::again::steps;
use crate::faults::{of_version, upgrade};
use crate::simulated::Cluster;
use crate::simulated::fleet::{cluster, is_as_before, message, nobody_was_hurt, phase, until, until_batch};
use k8s_openapi::api::core::v1::Pod;
use podshm_api::rollout::{NodeState, Phase, Stop, VERIFIES};
use podshm_rollout::{Action, Change, Step, step};

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

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().node_name.clone().unwrap()
}

fn agents(cluster: &Cluster) -> impl Iterator<Item = &Pod> {
    let is_agent = |pod: &&Pod| pod.metadata.labels.iter().flatten().any(|(key, _)| key == "controller-revision-hash");
    cluster.world.pods.iter().filter(is_agent)
}

fn is_ready(pod: &Pod) -> bool {
    pod.status.as_ref().unwrap().conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// An upgrade that has reached all nodes, and is to go back.
fn upgraded(nodes: u32) -> Cluster {
    let mut cluster = upgrade(nodes, None);
    until_batch(&mut cluster, 3);
    for _ in 0..100 {
        if message(&cluster).contains("batch 3 is watched") {
            break;
        }
        steps(&mut cluster, 1);
    }
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    cluster
}

#[test]
fn agents_go_back_the_last_that_came_first_and_no_more_at_once_than_may_be_away() {
    let mut cluster = upgraded(6);
    assert_eq!(of_version(&cluster, "v2"), 6);
    let most = cluster.rollout.spec.max_unavailable as usize;
    let mut order = Vec::new();
    for _ in 0..200 {
        let next = step(&cluster.rollout, &cluster.world);
        let replaced = next.actions.iter().filter_map(|one| match one {
            Action::Replace { name, .. } => agents(&cluster).find(|pod| pod.metadata.name.as_ref() == Some(name)),
            _ => None,
        });
        let replaced: Vec<String> = replaced.map(node_of).collect();
        let ready = agents(&cluster).filter(|pod| is_ready(pod) && !replaced.contains(&node_of(pod))).count();
        assert!(6 - ready <= most, "{} agents are away at once, {most} may be", 6 - ready);
        order.extend(replaced.into_iter().map(|node| (cluster.mark(&node).unwrap().batch, node)));
        cluster.apply(next, usize::MAX, true);
        if phase(&cluster) == Phase::RolledBack {
            break;
        }
        cluster.tick();
    }
    assert_eq!(phase(&cluster), Phase::RolledBack, "{}", message(&cluster));
    assert_eq!(order.len(), 6, "each once: {order:?}");
    assert!(order.is_sorted_by(|one, two| one > two), "the last that were touched come first: {order:?}");
    assert_eq!((of_version(&cluster, "v1"), of_version(&cluster, "v2")), (6, 0));
    nobody_was_hurt(&cluster);
}

#[test]
fn agents_go_back_to_the_version_that_nodes_ran_not_to_one_that_came_between() {
    let mut cluster = upgrade(4, None);
    // Nobody ever ran v2: its template was corrected before the rollout began.
    cluster.add_revision("v3", 3);
    until_batch(&mut cluster, 2);
    assert_eq!(of_version(&cluster, "v3"), 1);
    assert_eq!(cluster.rollout.status.as_ref().unwrap().agents_before["routing/agent"], "agent-v1");
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    (0..3).for_each(|_| cluster.tick());
    assert_eq!(of_version(&cluster, "v1"), 4);
    let newest = cluster.world.revisions.iter().max_by_key(|one| one.revision).unwrap();
    assert_eq!(newest.metadata.name.as_deref(), Some("agent-v1"), "nodes that come get it, too");
}

#[test]
fn where_the_version_before_is_gone_no_agent_is_replaced_and_a_person_is_told() {
    let mut cluster = upgraded(4);
    let first = cluster.world.revisions.remove(0);
    steps(&mut cluster, 20);
    assert_eq!((phase(&cluster), of_version(&cluster, "v2")), (Phase::RollingBack, 4));
    let expected = "revision agent-v1 of DaemonSet routing/agent is gone; set its former template by hand";
    assert!(message(&cluster).contains(expected), "{}", message(&cluster));
    let said = &cluster.rollout.status.as_ref().unwrap().conditions[0];
    assert!(said.kind == "WayBackBlocked" && said.message.contains(expected), "{said:?}");
    cluster.world.revisions.insert(0, first);
    until(&mut cluster, &[Phase::RolledBack]);
    assert_eq!(cluster.rollout.status.as_ref().unwrap().conditions, []);
}

fn untaints(next: &Step) -> usize {
    let is_so = |one: &&Action| matches!(one, Action::Node { mark: None, taint: Change::Off, .. });
    next.actions.iter().filter(is_so).count()
}

#[test]
fn the_taint_goes_before_fat_pods_are_back_only_where_they_find_no_other_place() {
    for (batch, is_full) in [(2, false), (3, true)] {
        let mut cluster = cluster(4);
        until_batch(&mut cluster, batch);
        for _ in 0..200 {
            if !is_full || cluster.world.nodes.keys().all(|node| cluster.has_taint(node)) {
                break;
            }
            steps(&mut cluster, 1);
        }
        steps(&mut cluster, 8);
        cluster.rollout.spec.stop = Some(Stop::RollBack);
        let mut before = 0;
        for _ in 0..200 {
            let next = step(&cluster.rollout, &cluster.world);
            before += untaints(&next);
            cluster.apply(next, usize::MAX, true);
            if phase(&cluster) == Phase::RolledBack {
                break;
            }
            cluster.tick();
        }
        assert_eq!(phase(&cluster), Phase::RolledBack, "{}", message(&cluster));
        assert_eq!(before > 0, is_full, "{before} nodes lost their taint first, in batch {batch}");
        is_as_before(&cluster);
        nobody_was_hurt(&cluster);
    }
}

#[test]
fn no_verification_pod_is_left_of_what_goes_back() {
    let mut cluster = cluster(4);
    let left = |cluster: &Cluster| {
        cluster
            .world
            .pods
            .iter()
            .filter(|pod| pod.metadata.labels.iter().flatten().any(|(key, _)| key == VERIFIES))
            .count()
    };
    for _ in 0..100 {
        if left(&cluster) > 0 {
            break;
        }
        steps(&mut cluster, 1);
    }
    assert!(left(&cluster) > 0, "{}", message(&cluster));
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    assert_eq!(left(&cluster), 0);
    is_as_before(&cluster);
}

#[test]
fn nodes_that_still_waited_are_back_too() {
    let mut cluster = cluster(8);
    until_batch(&mut cluster, 2);
    steps(&mut cluster, 2);
    let states = |cluster: &Cluster| {
        let marks = cluster.world.nodes.keys().filter_map(|node| cluster.mark(node));
        marks.map(|mark| mark.state).collect::<Vec<_>>()
    };
    assert!(states(&cluster).contains(&NodeState::Pending), "{:?}", states(&cluster));
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    assert_eq!(states(&cluster), [NodeState::RolledBack; 4]);
}

/// They are the first in turn, and whatever is asked of them does not come.
#[test]
fn nodes_that_are_away_take_no_turn_from_agents_of_the_others() {
    let mut cluster = upgraded(6);
    let mut turns: Vec<_> =
        cluster.world.nodes.keys().map(|node| (cluster.mark(node).unwrap().batch, node.clone())).collect();
    turns.sort();
    let most = cluster.rollout.spec.max_unavailable as usize;
    let away: Vec<String> = turns.into_iter().rev().take(most).map(|(_, node)| node).collect();
    away.iter().for_each(|node| cluster.set_ready(node, false));
    steps(&mut cluster, 60);
    assert_eq!((phase(&cluster), of_version(&cluster, "v1")), (Phase::RollingBack, 6), "{}", message(&cluster));
    let said = format!("waits for: routing/agent on node {} to be Ready", away[0]);
    assert!(message(&cluster).contains(&said), "{}", message(&cluster));
    away.iter().for_each(|node| cluster.set_ready(node, true));
    until(&mut cluster, &[Phase::RolledBack]);
}

#[test]
fn what_is_not_moved_back_is_said_at_the_end() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    // Both forms, with all that ran of them.
    let is_till = |name: &Option<String>| name.as_ref().is_some_and(|name| name.starts_with("till"));
    cluster.world.deployments.retain(|one| !is_till(&one.metadata.name));
    cluster.world.replica_sets.retain(|one| !is_till(&one.metadata.name));
    cluster.world.pods.retain(|pod| !pod.metadata.labels.iter().flatten().any(|(_, app)| app == "till"));
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    assert_eq!(
        message(&cluster),
        "rolled back: as spec.stop says; not moved back: Deployment shop/till is gone",
        "cart is, and not named"
    );
}

#[test]
fn it_is_not_over_while_a_node_that_went_back_has_label_or_taint_again() {
    for (label, taint) in [(true, false), (false, true)] {
        let mut cluster = cluster(4);
        until_batch(&mut cluster, 2);
        cluster.rollout.spec.stop = Some(Stop::RollBack);
        let is_back = |cluster: &Cluster| {
            let marks = cluster.world.nodes.keys().filter_map(|node| cluster.mark(node));
            marks.map(|mark| mark.state).all(|state| state == NodeState::RolledBack)
        };
        for _ in 0..200 {
            if is_back(&cluster) {
                break;
            }
            steps(&mut cluster, 1);
        }
        assert!(is_back(&cluster) && phase(&cluster) == Phase::RollingBack, "{}", message(&cluster));
        // As a person does it: with its mark a node lost both in one write.
        let again = |to: bool| if to { Change::On } else { Change::Keep };
        let put = Action::Node { name: "n00".into(), mark: None, label: again(label), taint: again(taint) };
        let status = cluster.rollout.status.clone().unwrap();
        cluster.apply(Step { status, actions: vec![put] }, usize::MAX, true);
        steps(&mut cluster, 20);
        let said = message(&cluster);
        assert_eq!(phase(&cluster), Phase::RollingBack, "label {label}, taint {taint}: {said}");
        assert!(
            said.ends_with(
                "waits for: label and taint AgentsDaemonSet to be off node n00, where somebody has put them on again"
            ),
            "{said}"
        );
        cluster.take_off("n00", label, taint);
        until(&mut cluster, &[Phase::RolledBack]);
        assert!(!message(&cluster).contains("waits for"), "{}", message(&cluster));
        is_as_before(&cluster);
    }
}
