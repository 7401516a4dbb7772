//! What node daemons count, as a gate: before a node is touched, after it, and once a person has looked.

use crate::simulated::Cluster;
use crate::simulated::fleet::{cluster, is_converted, message, nobody_was_hurt, until, until_batch};
use podshm_api::report::{DomainReport, NodeCondition, NodeReport};
use podshm_api::rollout::{NodeState, Phase, VerdictResult};

type Change = fn(&mut NodeReport);

fn domain(report: &mut NodeReport) -> &mut DomainReport {
    &mut report.domains[0]
}

fn says(report: &mut NodeReport, reason: &str) {
    domain(report).conditions.push(NodeCondition { reason: reason.into(), message: "look".into() });
}

fn gate(cluster: &Cluster) -> (VerdictResult, String) {
    let gates = &cluster.rollout.status.as_ref().unwrap().gates;
    let one = gates.iter().find(|gate| gate.gate == "podshm").unwrap();
    (one.result, one.message.clone())
}

/// A canary that is done, and a second batch that has begun.
fn midway() -> (Cluster, String) {
    let mut cluster = cluster(4);
    until_batch(&mut cluster, 2);
    let is_done = |node: &&String| cluster.mark(node).is_some_and(|mark| mark.state == NodeState::Done);
    let done = cluster.world.nodes.keys().find(is_done).unwrap().clone();
    (cluster, done)
}

#[test]
fn each_counter_of_a_node_daemon_stops_the_rollout_and_names_node_and_number() {
    let rows: [(&str, Change, &str); 11] = [
        ("refused", |r| domain(r).refused += 2, "2 attach failures more than before, 0 expected at most"),
        ("not published", |r| r.failed_publishes += 1, "1 attach failures more than before"),
        ("dropped", |r| domain(r).discarded += 1, "1 drops more than before"),
        ("out of the books", |r| domain(r).unclaimed += 3, "3 leaks more than before"),
        ("held open", |r| domain(r).held_open += 1, "1 leaks more than before"),
        // No daemon has counted that, and a controller does not end over it.
        (
            "more than there can be",
            |r| (domain(r).unclaimed, domain(r).held_open) = (u64::MAX, 1),
            "18446744073709551615 leaks more than before",
        ),
        ("comes back", |r| domain(r).epoch += 2, "1 returns of the agent without a start more than before"),
        ("old generations", |r| domain(r).stale_clients = 1, "1 clients with old generations, 0 expected at most"),
        ("stalled", |r| domain(r).stalled_seconds = 31, "31 s of stall, 30 expected at most"),
        ("full", |r| domain(r).shm_bytes = 950, "its /dev/shm is 95 % full, 90 % expected at most; it was 0 % before"),
        ("a condition", |r| says(r, "StaleClients"), "StaleClients: look"),
    ];
    for (what, change, expected) in rows {
        let (mut cluster, done) = midway();
        // As it was before: nothing is wrong.
        let next = podshm_rollout::step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        change(cluster.world.reports.get_mut(&done).unwrap());
        until(&mut cluster, &[Phase::Paused, Phase::Completed]);
        let said = message(&cluster);
        assert!(said.contains(&format!("gate podshm: node {done}: ")) && said.contains(expected), "{what}: {said}");
        assert_eq!(gate(&cluster).0, VerdictResult::Failed, "{what}");
        nobody_was_hurt(&cluster);
    }
}

/// The kubelet tells of a container that it has started anew a moment after that serves.
#[test]
fn an_agent_that_came_a_moment_ago_is_judged_once_its_restart_would_be_known() {
    let (mut cluster, done) = midway();
    let one_step = |cluster: &mut Cluster| {
        let next = podshm_rollout::step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
    };
    one_step(&mut cluster);
    cluster.domain(&done).epoch += 2;
    cluster.world.asked = cluster.world.now;
    one_step(&mut cluster);
    let (result, said) = gate(&cluster);
    assert!(result == VerdictResult::Waiting && said.contains(&format!("an agent came to node {done}")), "{said}");
    cluster.world.asked = cluster.world.now - 3;
    one_step(&mut cluster);
    let (result, said) = gate(&cluster);
    assert!(result == VerdictResult::Failed && said.contains("1 returns of the agent"), "{said}");
}

#[test]
fn what_was_counted_before_stops_nothing_and_what_a_person_has_looked_at_is_counted_anew() {
    let mut cluster = cluster(4);
    for node in cluster.world.nodes.keys().cloned().collect::<Vec<_>>() {
        let found = cluster.domain(&node);
        (found.refused, found.discarded, found.unclaimed, found.held_open, found.epoch) = (7, 6, 5, 4, 3);
        says(cluster.world.reports.get_mut(&node).unwrap(), "RecordsDiscarded");
    }
    until_batch(&mut cluster, 2);
    let (result, said) = gate(&cluster);
    let expected = "0 attach failures, 0 drops, 0 leaks more than before, /dev/shm 0 % full at most";
    assert!(result == VerdictResult::Passed && said.contains(expected), "{said}");
    cluster.domain("n00").refused += 1;
    until(&mut cluster, &[Phase::Paused]);
    cluster.tick();
    cluster.rollout.spec.resumed_failures = 1;
    until(&mut cluster, &[Phase::Completed]);
    is_converted(&cluster);
}

#[test]
fn a_daemon_that_begins_to_count_anew_is_believed() {
    let mut cluster = cluster(4);
    let nodes: Vec<String> = cluster.world.nodes.keys().cloned().collect();
    nodes.iter().for_each(|node| cluster.domain(node).refused = 7);
    until_batch(&mut cluster, 2);
    nodes.iter().for_each(|node| cluster.domain(node).refused = 0);
    until_batch(&mut cluster, 3);
    cluster.domain("n00").refused = 2;
    until(&mut cluster, &[Phase::Paused]);
    assert!(message(&cluster).contains("2 attach failures more than before"), "{}", message(&cluster));
}

#[test]
fn a_node_whose_daemon_finds_something_wrong_before_is_skipped_and_so_is_one_whose_daemon_is_silent() {
    let rows: [(Change, &str); 4] = [
        (|r| r.registered = false, "the kubelet has not registered its node daemon"),
        (|r| domain(r).stalled_seconds = 90, "domain routing has been stalled for 90 s"),
        (|r| says(r, "StaleClients"), "domain routing: StaleClients: look"),
        // Its answer is lost below.
        (|r| r.domains.clear(), "its node daemon does not answer for"),
    ];
    for (change, expected) in rows {
        let mut cluster = cluster(6);
        cluster.silent = expected.contains("does not answer").then(|| "n01".to_owned());
        change(cluster.world.reports.get_mut("n01").unwrap());
        cluster.tick();
        until(&mut cluster, &[Phase::Completed]);
        let mark = cluster.mark("n01").unwrap();
        assert_eq!(mark.state, NodeState::Skipped, "{expected}: {mark:?}");
        assert!(mark.reason.starts_with("before it was touched: ") && mark.reason.contains(expected), "{mark:?}");
        assert!(!cluster.has_label("n01"));
        nobody_was_hurt(&cluster);
    }
}

#[test]
fn a_daemon_that_falls_silent_after_is_waited_for_and_then_stops_the_rollout() {
    let (mut cluster, done) = midway();
    cluster.silent = Some(done);
    let began = cluster.world.now;
    until(&mut cluster, &[Phase::Paused]);
    let said = message(&cluster);
    assert!(said.contains("gate podshm has no verdict") && said.contains("1 node daemons have not answered"), "{said}");
    assert!(cluster.world.now - began > 600, "its deadline is progressDeadlineSeconds");
}
