//! Whole rollouts, on a cluster in memory, with controllers that die between any two actions.

use crate::simulated::fleet::{
    cluster, is_as_before, is_converted, message, nobody_was_hurt, phase, spec, until, until_batch, with_sick,
};
use crate::simulated::{Cluster, daemon_set, object};
use podshm_api::rollout::{NodeState, OnFailure, Phase, Stop, VerdictResult};
use podshm_rollout::{plan, step};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn a_fleet_goes_over_batch_by_batch_and_nobody_is_hurt() {
    let mut cluster = cluster(6);
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
    nobody_was_hurt(&cluster);
    let status = cluster.rollout.status.clone().unwrap();
    let sizes: Vec<u32> = status.history.iter().map(|record| record.nodes).collect();
    assert_eq!(sizes, [1, 2, 3], "{status:?}");
    assert!(status.history.iter().all(|record| record.outcome == "passed" && record.gates.len() == 5), "{status:?}");
    let slim: Vec<u32> = status.history.iter().map(|record| record.slim).collect();
    assert!(slim.is_sorted() && slim[0] < 10 && slim[2] == 10, "replicas move in step with nodes: {slim:?}");
}

#[test]
fn the_first_node_is_verified_before_any_other_is_touched() {
    let mut cluster = cluster(4);
    cluster.failing = vec!["n00".into()];
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("node n00: verification failed"), "{}", message(&cluster));
    let touched = cluster.world.nodes.keys().filter(|node| cluster.has_label(node)).count();
    assert_eq!(touched, 1);
    nobody_was_hurt(&cluster);

    cluster.failing.clear();
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

#[test]
fn a_failure_rolls_back_where_that_is_asked_for() {
    let mut cluster = cluster(4);
    cluster.rollout.spec.on_failure = OnFailure::RollBack;
    until_batch(&mut cluster, 2);
    cluster.failing = cluster.world.nodes.keys().cloned().collect();
    until(&mut cluster, &[Phase::RolledBack]);
    is_as_before(&cluster);
    nobody_was_hurt(&cluster);
    assert!(message(&cluster).contains("verification failed"), "{}", message(&cluster));
}

#[test]
fn a_rollback_from_the_last_batch_lifts_the_taint_where_nothing_else_is_left() {
    let mut cluster = cluster(3);
    until_batch(&mut cluster, 3);
    while !cluster.rollout.status.as_ref().unwrap().message.contains("is watched") {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        cluster.tick();
    }
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    is_as_before(&cluster);
    nobody_was_hurt(&cluster);
}

#[test]
fn a_node_that_is_sick_before_is_skipped_and_one_that_falls_sick_after_stops_everything() {
    let mut cluster = with_sick(6, Some("n02"));
    until_batch(&mut cluster, 2);
    let healthy =
        cluster.world.nodes.keys().find(|node| cluster.mark(node).is_some_and(|mark| mark.state == NodeState::Done));
    let healthy = healthy.unwrap().clone();
    cluster.set_ready(&healthy, false);
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains(&format!("node {healthy}: the node is not Ready")), "{}", message(&cluster));
    cluster.set_ready(&healthy, true);
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(cluster.mark("n02").unwrap().state, NodeState::Skipped);
    assert!(!cluster.has_label("n02"));
    assert!(message(&cluster).contains("5 nodes are converted; 1 were skipped"), "{}", message(&cluster));
}

#[test]
fn replicas_that_are_not_ready_for_another_reason_are_waited_for_and_nobody_pays_for_them() {
    let mut cluster = cluster(6);
    // Three of the fat pods' nodes fall sick before anything begins, and nobody evicts their pods.
    ["n03", "n04", "n05"].iter().for_each(|node| cluster.set_ready(node, false));
    cluster.tick();
    cluster.lowest.clear();
    cluster.tick();
    let before = cluster.lowest.clone();
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("fat pods are still there"), "{}", message(&cluster));
    assert_eq!(cluster.lowest, before);
}

#[test]
fn a_person_who_takes_the_label_off_is_noticed_not_fought() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    cluster.world.nodes.get_mut("n00").unwrap().metadata.labels.as_mut().unwrap().remove("AgentsDaemonSet");
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("the label AgentsDaemonSet=YES was taken off"), "{}", message(&cluster));
    assert!(!cluster.has_label("n00"));
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

#[test]
fn a_person_who_scales_is_noticed_not_fought() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let fat = cluster.deployment("cart").unwrap().spec.as_mut().unwrap();
    let was = fat.replicas.unwrap();
    fat.replicas = Some(was + 4);
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("somebody scaled shop/cart"), "{}", message(&cluster));
    cluster.deployment("cart").unwrap().spec.as_mut().unwrap().replicas = Some(was);
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    nobody_was_hurt(&cluster);
}

#[test]
fn agents_that_do_not_come_stop_the_canary() {
    let mut cluster = cluster(4);
    cluster.broken_agents = vec!["n00".into()];
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("routing/agent: pod"), "{}", message(&cluster));
    cluster.rollout.spec.stop = Some(Stop::RollBack);
    until(&mut cluster, &[Phase::RolledBack]);
    is_as_before(&cluster);
}

#[test]
fn batches_wait_for_approval_and_a_pause_holds() {
    let mut cluster = cluster(4);
    cluster.rollout.spec.gates.approval = true;
    until(&mut cluster, &[Phase::AwaitingApproval]);
    assert!(cluster.done.is_empty());
    cluster.rollout.spec.approved = 1;
    until(&mut cluster, &[Phase::Running]);
    until(&mut cluster, &[Phase::AwaitingApproval]);
    assert_eq!(cluster.rollout.status.as_ref().unwrap().batch, 1);
    cluster.rollout.spec.approved = 3;
    cluster.rollout.spec.paused = true;
    until(&mut cluster, &[Phase::Paused]);
    let before = cluster.done.len();
    (0..20).for_each(|_| {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        cluster.tick();
    });
    assert_eq!(cluster.done.len(), before);
    cluster.rollout.spec.paused = false;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

#[test]
fn a_node_that_joins_midway_is_converted_too() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 3);
    cluster.add_node("n99", "z0");
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(cluster.mark("n99").unwrap().state, NodeState::Done);
    is_converted(&cluster);
}

#[test]
fn an_abort_leaves_all_as_it_is() {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    cluster.rollout.spec.stop = Some(Stop::Abort);
    until(&mut cluster, &[Phase::Aborted]);
    let labelled = cluster.world.nodes.keys().filter(|node| cluster.has_label(node)).count();
    assert!(labelled >= 1);
    nobody_was_hurt(&cluster);
}

#[test]
fn a_budget_that_never_allows_is_refused_and_one_that_allows_nothing_now_is_warned_of() {
    let mut cluster = cluster(4);
    assert_eq!(plan(&cluster.rollout, &cluster.world).refusals, []);
    cluster.world.budgets[0].spec.as_mut().unwrap().max_unavailable = Some(object(json!(0)));
    until(&mut cluster, &[Phase::Refused]);
    assert!(message(&cluster).contains("PodDisruptionBudget cart never allows"), "{}", message(&cluster));
    assert!(cluster.done.is_empty());
    // Another spec is looked at anew.
    cluster.world.budgets[0].spec.as_mut().unwrap().max_unavailable = Some(object(json!(1)));
    cluster.rollout.metadata.generation = Some(2);
    until(&mut cluster, &[Phase::Completed]);
}

#[test]
fn agents_are_upgraded_on_converted_nodes_and_a_bad_version_goes_back() {
    let mut cluster = cluster(4);
    until(&mut cluster, &[Phase::Completed]);
    daemon_set(&mut cluster).spec.as_mut().unwrap().update_strategy = Some(object(json!({"type": "OnDelete"})));
    cluster.add_revision("v2", 2);
    let mut second = spec();
    second["metadata"]["uid"] = json!("r-2");
    second["spec"]["purpose"] = json!("UpgradeAgents");
    second["spec"]["workloads"] = json!([]);
    let first = std::mem::replace(&mut cluster.rollout, object(second));
    cluster.world.rollouts = vec![first];
    let versions = |cluster: &Cluster| {
        let hash = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.metadata.labels.as_ref()?.get("controller-revision-hash").cloned()
        };
        let mut all: Vec<String> = cluster.world.pods.iter().filter_map(hash).collect();
        all.sort();
        all
    };
    cluster.rollout.spec.on_failure = OnFailure::RollBack;
    until_batch(&mut cluster, 2);
    assert_eq!(versions(&cluster), ["v1", "v1", "v1", "v2"]);
    cluster.failing = cluster.world.nodes.keys().cloned().collect();
    until(&mut cluster, &[Phase::RolledBack]);
    assert_eq!(versions(&cluster), ["v1"; 4]);

    cluster.failing.clear();
    cluster.add_revision("v3", 9);
    cluster.rollout.metadata.uid = Some("r-3".into());
    cluster.rollout.status = None;
    until(&mut cluster, &[Phase::Completed]);
    assert_eq!(versions(&cluster), ["v3"; 4]);
}

#[test]
fn a_status_stays_small_with_ten_thousand_nodes() {
    let mut cluster = Cluster::new(0, spec());
    cluster.add_agent("RollingUpdate");
    (0..10_000)
        .for_each(|number| cluster.add_node(&format!("{:0>60}", format!("n{number}")), &format!("z{}", number % 3)));
    cluster.rollout.spec.workloads.clear();
    cluster.rollout.spec.max_unavailable = 10_000;
    cluster.rollout.spec.progress_deadline_seconds = 30;
    cluster.rollout.spec.batches = (1..=50).map(|n| object(json!({"percent": n * 2}))).collect();
    cluster.broken_agents = cluster.world.nodes.keys().cloned().collect();
    until(&mut cluster, &[Phase::Paused]);
    let status = cluster.rollout.status.clone().unwrap();
    assert_eq!((status.worst.len(), status.nodes["Failed"]), (20, 200));
    let mut full = status.clone();
    full.worst.iter_mut().for_each(|one| one.reason = "x".repeat(1000));
    full.message = "x".repeat(1000);
    full.history = (0..60).map(|_| status.history[0].clone()).collect();
    full.history.iter_mut().for_each(|record| record.gates.clone_from(&status.gates));
    let bytes = serde_json::to_vec(&full).unwrap().len();
    assert!(bytes < 100_000, "{bytes} bytes");
}

/// As many gates and workloads as there may be, each with the longest name, and gates that say more than anybody reads.
#[test]
fn a_status_stays_small_whatever_gates_say_and_however_often_it_was_resumed() {
    let mut cluster = Cluster::new(0, spec());
    cluster.add_agent("RollingUpdate");
    (0..30).for_each(|number| cluster.add_node(&format!("{:0>253}", format!("n{number}")), "z0"));
    let workload = |number: usize| {
        let mut workload = cluster.rollout.spec.workloads[0].clone();
        workload.name = format!("{number:0>248}");
        workload.namespace = format!("{number:0>63}");
        workload
    };
    cluster.rollout.spec.workloads = (0..64).map(workload).collect();
    cluster.rollout.spec.max_unavailable = 30;
    let says = |number: usize| podshm_api::rollout::Verdict {
        gate: format!("{number:0>63}"),
        result: [VerdictResult::Failed, VerdictResult::Waiting][number % 2],
        message: "no number: ".repeat(100_000),
    };
    let outside: Vec<_> = (0..32).map(says).collect();
    // Begun, and then somebody deleted all of them.
    cluster.rollout.status = Some(object(json!({"phase": "Running"})));
    for _ in 0..300 {
        cluster.world.outside.clone_from(&outside);
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        let status = cluster.rollout.status.clone().unwrap();
        if let Some(last) = status.history.last().cloned() {
            // As if each batch had been tried many times.
            let status = cluster.rollout.status.as_mut().unwrap();
            status.history.resize(70, last);
        }
        let bytes = serde_json::to_vec(&status).unwrap().len();
        assert!(bytes < 100_000, "{bytes} bytes: {:?}", status.phase);
        cluster.rollout.spec.resumed_failures = status.failures;
        cluster.tick();
    }
    let status = cluster.rollout.status.unwrap();
    assert!(status.failures > 10 && status.gates.len() > 30, "{} failures", status.failures);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A controller may die after any action, with its status written or not.
    #[test]
    fn a_controller_that_dies_at_any_moment_is_followed_by_one_that_goes_on(
        cuts in prop::collection::vec((0_usize..6, any::<bool>(), 0_usize..3), 1..400),
        roll_back_at in prop::option::of(0_usize..400),
    ) {
        let mut cluster = cluster(5);
        for (at, (parts, with_status, ticks)) in cuts.iter().enumerate() {
            if Some(at) == roll_back_at {
                cluster.rollout.spec.stop = Some(Stop::RollBack);
            }
            let next = step(&cluster.rollout, &cluster.world);
            cluster.apply(next, *parts, *with_status);
            (0..*ticks).for_each(|_| cluster.tick());
        }
        until(&mut cluster, &[Phase::Completed, Phase::RolledBack]);
        match phase(&cluster) {
            Phase::Completed => is_converted(&cluster),
            _ => is_as_before(&cluster),
        }
        nobody_was_hurt(&cluster);
    }
}
