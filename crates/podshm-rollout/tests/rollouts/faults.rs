//! What goes wrong while a rollout is under way: nodes, people, budgets, the API server, and the agents themselves.

use crate::simulated::fleet::{
    cluster, is_as_before, is_converted, message, nobody_was_hurt, phase, spec, until, until_batch,
};
use crate::simulated::{Bad, Cluster, daemon_set, object};
use podshm_api::rollout::{NodeState, OnFailure, Phase, Stop, VerdictResult};
use podshm_rollout::{Action, step};
use proptest::prelude::*;
use serde_json::json;

/// Steps until a node is in this state.
fn until_state(cluster: &mut Cluster, state: NodeState) -> String {
    for _ in 0..500 {
        let is_so = |node: &&String| cluster.mark(node).is_some_and(|mark| mark.state == state);
        if let Some(node) = cluster.world.nodes.keys().find(is_so) {
            return node.clone();
        }
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        cluster.tick();
    }
    panic!("no node is {state:?}: {}", message(cluster));
}

#[test]
fn a_node_that_dies_midway_stops_everything_and_its_removal_lets_it_go_on() {
    for state in [NodeState::Preparing, NodeState::Verifying, NodeState::Migrating, NodeState::Soaking] {
        let mut cluster = cluster(5);
        let dead = until_state(&mut cluster, state);
        cluster.set_ready(&dead, false);
        until(&mut cluster, &[Phase::Paused]);
        let said = message(&cluster);
        assert!(said.contains(&format!("node {dead}: the node is not Ready")), "{state:?}: {said}");
        let touched = |cluster: &Cluster| cluster.world.nodes.keys().filter(|node| cluster.has_label(node)).count();
        let before = touched(&cluster);
        (0..50).for_each(|_| {
            let next = step(&cluster.rollout, &cluster.world);
            cluster.apply(next, usize::MAX, true);
            cluster.tick();
        });
        assert_eq!(touched(&cluster), before, "{state:?}: no other node is touched");
        cluster.remove_node(&dead);
        cluster.rollout.spec.resumed_failures = 1;
        until(&mut cluster, &[Phase::Completed]);
        is_converted(&cluster);
    }
}

#[test]
fn a_rollout_goes_back_from_a_node_that_is_dead() {
    let mut cluster = cluster(5);
    cluster.rollout.spec.on_failure = OnFailure::RollBack;
    until_batch(&mut cluster, 2);
    let dead = until_state(&mut cluster, NodeState::Migrating);
    cluster.set_ready(&dead, false);
    until(&mut cluster, &[Phase::RollingBack]);
    // The node's pods are evicted in time, as its lifecycle controller does.
    cluster.evict(&dead);
    until(&mut cluster, &[Phase::RolledBack]);
    cluster.set_ready(&dead, true);
    (0..5).for_each(|_| cluster.tick());
    is_as_before(&cluster);
}

#[test]
fn a_person_who_edits_label_or_taint_is_noticed_and_named_at_every_state() {
    for state in [NodeState::Preparing, NodeState::Verifying, NodeState::Migrating, NodeState::Soaking] {
        for (label, taint, expected) in [
            (true, false, "the label AgentsDaemonSet=YES"),
            (false, true, "the taint AgentsDaemonSet=YES"),
            (true, true, "the label and taint AgentsDaemonSet=YES"),
        ] {
            let mut cluster = cluster(4);
            let node = until_state(&mut cluster, state);
            cluster.take_off(&node, label, taint);
            until(&mut cluster, &[Phase::Paused]);
            let said = message(&cluster);
            assert!(said.contains(&format!("node {node}: {expected} was taken off")), "{state:?}: {said}");
            assert_eq!((cluster.has_label(&node), cluster.has_taint(&node)), (!label, !taint), "it is not fought over");
            cluster.rollout.spec.stop = Some(Stop::RollBack);
            until(&mut cluster, &[Phase::RolledBack]);
            is_as_before(&cluster);
            nobody_was_hurt(&cluster);
        }
    }
}

#[test]
fn of_two_rollouts_that_overlap_the_second_is_refused_and_touches_nothing() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let first = cluster.rollout.clone();
    let mut second = spec();
    second["metadata"] =
        json!({"name": "other", "uid": "r-2", "generation": 1, "creationTimestamp": "2026-02-01T00:00:00Z"});
    second["spec"]["agents"][0]["name"] = json!("another");
    second["spec"]["workloads"] = json!([]);
    cluster.rollout = object(second);
    cluster.world.rollouts = vec![first.clone(), cluster.rollout.clone()];
    let (done, before) = (cluster.done.len(), cluster.world.nodes.clone());
    let next = step(&cluster.rollout, &cluster.world);
    assert_eq!(next.actions, []);
    cluster.apply(next, usize::MAX, true);
    assert_eq!(phase(&cluster), Phase::Refused);
    assert!(
        message(&cluster).contains("AgentRollout routing: it is under way and has node n"),
        "{}",
        message(&cluster)
    );
    assert!(cluster.done.len() == done && cluster.world.nodes == before);
    // The first goes on as if nothing had been.
    cluster.rollout = first;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
    nobody_was_hurt(&cluster);
}

#[test]
fn a_budget_that_blocks_midway_is_waited_for_then_named_and_nothing_was_forced() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    cluster.is_blocked = true;
    cluster.tick();
    let fat = |cluster: &Cluster| cluster.world.deployment("shop", "cart").unwrap().spec.as_ref().unwrap().replicas;
    let before = fat(&cluster);
    until(&mut cluster, &[Phase::Paused]);
    let said = message(&cluster);
    assert!(said.contains("PodDisruptionBudget cart allows no disruption of shop/cart now"), "{said}");
    assert_eq!(fat(&cluster), before);
    nobody_was_hurt(&cluster);
    cluster.is_blocked = false;
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
    nobody_was_hurt(&cluster);
}

/// Agents of the next version, on a fleet that is converted; `latency` is a query to Prometheus.
pub fn upgrade(nodes: u32, bad: Option<Bad>) -> Cluster {
    let mut cluster = cluster(nodes);
    until(&mut cluster, &[Phase::Completed]);
    daemon_set(&mut cluster).spec.as_mut().unwrap().update_strategy = Some(object(json!({"type": "OnDelete"})));
    cluster.add_revision("v2", 2);
    cluster.bad = bad.map(|bad| ("v2".to_owned(), bad)).into_iter().collect();
    let mut second = spec();
    second["metadata"]["uid"] = json!("r-2");
    second["spec"]["purpose"] = json!("UpgradeAgents");
    second["spec"]["workloads"] = json!([]);
    second["spec"]["onFailure"] = json!("RollBack");
    cluster.world.rollouts = vec![std::mem::replace(&mut cluster.rollout, object(second))];
    cluster
}

/// How many Ready agents there are of a version.
pub fn of_version(cluster: &Cluster, version: &str) -> usize {
    let is_of = |pod: &&k8s_openapi::api::core::v1::Pod| {
        pod.metadata.labels.as_ref().and_then(|all| all.get("controller-revision-hash")).is_some_and(|is| is == version)
    };
    cluster.world.pods.iter().filter(is_of).count()
}

#[test]
fn agents_are_upgraded_in_partitions_each_past_its_gates() {
    let mut cluster = upgrade(6, None);
    let mut new = Vec::new();
    for batch in 1..=3 {
        until_batch(&mut cluster, batch);
        // As the batch before has left it.
        new.push(of_version(&cluster, "v2"));
    }
    until(&mut cluster, &[Phase::Completed]);
    new.push(of_version(&cluster, "v2"));
    assert_eq!(new, [0, 1, 3, 6]);
    let history = &cluster.rollout.status.as_ref().unwrap().history;
    let passed = |gate: &podshm_api::rollout::Verdict| gate.result == VerdictResult::Passed;
    assert!(history.iter().all(|record| record.gates.len() == 4 && record.gates.iter().all(passed)), "{history:#?}");
    nobody_was_hurt(&cluster);
}

#[test]
fn each_bad_agent_is_stopped_at_the_canary_by_the_gate_meant_for_it_and_goes_back() {
    for (bad, gate) in [
        (Bad::Crashes, "agents"),
        (Bad::Leaks, "podshm"),
        (Bad::AnswersWrongly, "verification"),
        (Bad::GetsSlow, "latency"),
    ] {
        let mut cluster = upgrade(4, Some(bad));
        let (mut most, mut stopped) = (0, None);
        for _ in 0..500 {
            let next = step(&cluster.rollout, &cluster.world);
            cluster.apply(next, usize::MAX, true);
            most = most.max(of_version(&cluster, "v2"));
            if phase(&cluster) == Phase::RollingBack && stopped.is_none() {
                stopped = cluster.rollout.status.clone();
            }
            if phase(&cluster).is_over() {
                break;
            }
            cluster.tick();
        }
        assert_eq!(phase(&cluster), Phase::RolledBack, "{bad:?}: {}", message(&cluster));
        assert_eq!(most, 1, "{bad:?}: the canary alone");
        let gates = stopped.unwrap().gates;
        for one in &gates {
            // Where the canary is not verified no node is left whose agents could be judged.
            let is_open = bad == Bad::AnswersWrongly && one.result == VerdictResult::Waiting;
            let expected = if one.gate == gate { VerdictResult::Failed } else { VerdictResult::Passed };
            assert!(one.result == expected || is_open, "{bad:?}: {gates:#?}");
        }
        assert!(gates.len() == 4 && gates.iter().any(|one| one.gate == gate), "{bad:?}: {gates:#?}");
        cluster.tick();
        assert_eq!((of_version(&cluster, "v1"), of_version(&cluster, "v2")), (4, 0), "{bad:?}");
        nobody_was_hurt(&cluster);
    }
}

/// However long the API server refuses to have it written that a node is watched.
#[test]
fn a_batch_is_not_over_before_its_nodes_say_that_they_are_watched() {
    let mut cluster = cluster(4);
    let is_refused =
        |one: &Action| matches!(one, Action::Node { mark: Some(mark), .. } if mark.state == NodeState::Soaking);
    for _ in 0..100 {
        let next = step(&cluster.rollout, &cluster.world);
        let refused: Vec<bool> = next.actions.iter().map(is_refused).collect();
        cluster.apply_some(next, |index| !refused[index]);
        cluster.tick();
    }
    let status = cluster.rollout.status.as_ref().unwrap();
    assert_eq!((status.phase, status.batch, status.soaking_since), (Phase::Running, 1, 0), "{}", status.message);
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// An action whose object somebody has changed since is refused by the API server, and those after it are done.
    #[test]
    fn actions_that_the_api_server_refuses_as_conflicts_are_done_later(
        refused in prop::collection::vec(any::<u8>(), 1..200),
        roll_back_at in prop::option::of(0_usize..200),
    ) {
        let mut cluster = cluster(5);
        for (at, refused) in refused.iter().enumerate() {
            if Some(at) == roll_back_at {
                cluster.rollout.spec.stop = Some(Stop::RollBack);
            }
            let next = step(&cluster.rollout, &cluster.world);
            cluster.apply_some(next, |index| refused & (1 << (index % 8)) == 0);
            cluster.tick();
        }
        until(&mut cluster, &[Phase::Completed, Phase::RolledBack]);
        match phase(&cluster) {
            Phase::Completed => is_converted(&cluster),
            _ => is_as_before(&cluster),
        }
        nobody_was_hurt(&cluster);
    }
}
