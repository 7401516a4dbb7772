//! Plans and states, for people.

use super::facts::NodeRow;
use podshm_api::rollout::{AgentRollout, NodeState, Phase, VerdictResult};
use podshm_rollout::Plan;
use std::fmt::Write;

/// Names of a list that a line has room for.
const SOME: usize = 6;

/// What would be done.
pub fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |what: String| writeln!(text, "{what}").expect("a string has room");
    for batch in &plan.batches {
        line(format!("batch {}: {} nodes: {}", batch.batch, batch.nodes.len(), some(&batch.nodes)));
        for skipped in &batch.skipped {
            line(format!("  skipped     {skipped}"));
        }
        for one in &batch.moves {
            line(format!(
                "  moves       {} from node {}: pod {} gives way to a slim one",
                one.workload, one.node, one.pod
            ));
        }
        if batch.untainted_nodes > 0 {
            line(format!(
                "  room left   {} nodes take any pod: {:.1} cores and {:.1} GiB are free there",
                batch.untainted_nodes,
                batch.free_cpu_milli as f64 / 1000.0,
                batch.free_memory as f64 / (1u64 << 30) as f64
            ));
        } else {
            line("  room left   no node without the taint".into());
        }
    }
    if !plan.in_no_batch.is_empty() {
        line(format!("in no batch: {} nodes: {}", plan.in_no_batch.len(), some(&plan.in_no_batch)));
    }
    for (word, findings) in [("warning", &plan.warnings), ("REFUSED", &plan.refusals)] {
        for finding in findings {
            line(format!("{word}: {}: {}", finding.about, finding.message));
        }
    }
    text
}

fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(SOME);
    let shown = names.iter().take(SOME).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// Where a rollout is.
pub fn status(rollout: &AgentRollout, now: i64) -> String {
    let status = rollout.status.clone().unwrap_or_default();
    let mut text = String::new();
    let mut line = |what: String| writeln!(text, "{what}").expect("a string has room");
    line(format!(
        "{:?}: batch {}, nodes done {}",
        status.phase,
        or(&status.progress, "0"),
        or(&status.nodes_done, "0")
    ));
    if !status.message.is_empty() {
        line(format!("  {}", status.message));
    }
    if let Some(left) = time_left(rollout, now) {
        line(format!("  about {left} s of soaking are left, and the time that moves take"));
    }
    let counts: Vec<String> = status.nodes.iter().map(|(state, count)| format!("{state} {count}")).collect();
    if !counts.is_empty() {
        line(format!("nodes: {}", counts.join(", ")));
    }
    for node in &status.worst {
        line(format!("  {:<12} {:<24} {}", state_of(node.state), node.name, node.reason));
    }
    for one in &status.workloads {
        line(format!(
            "workload {}: {} fat and {} slim Ready, {} asked for; {} slim once this batch is done",
            one.name, one.fat_ready, one.slim_ready, one.asked, one.slim_wanted
        ));
    }
    for gate in &status.gates {
        let word = match gate.result {
            VerdictResult::Passed => "passed",
            VerdictResult::Waiting => "waiting",
            VerdictResult::Failed => "FAILED",
        };
        line(format!("gate {:<14} {word:<8} {}", gate.gate, gate.message));
    }
    for record in &status.history {
        let took = if record.ended == 0 { "under way".into() } else { format!("{} s", record.ended - record.began) };
        line(format!("batch {}: {} nodes, {took}, {}", record.batch, record.nodes, or(&record.outcome, "…")));
    }
    text
}

/// A line for each node.
pub fn nodes(nodes: &[NodeRow], now: i64) -> String {
    let mut text = String::new();
    for node in nodes {
        let (mark, since) = (&node.mark, now - node.mark.since);
        let state = state_of(mark.state);
        writeln!(text, "node {:<24} batch {:<3} {state:<12} for {since} s: {}", node.name, mark.batch, mark.reason)
            .expect("a string has room");
    }
    text
}

fn or<'t>(text: &'t str, other: &'t str) -> &'t str {
    if text.is_empty() { other } else { text }
}

fn state_of(state: NodeState) -> String {
    format!("{state:?}")
}

/// Seconds of soaking that are to come, if it runs.
fn time_left(rollout: &AgentRollout, now: i64) -> Option<i64> {
    let status = rollout.status.as_ref().filter(|status| status.phase == Phase::Running)?;
    let soak = i64::from(rollout.spec.soak_seconds);
    let later = rollout.spec.batches.len() as i64 - i64::from(status.batch);
    let begun = if status.soaking_since == 0 { 0 } else { (now - status.soaking_since).min(soak) };
    Some(later.max(0) * soak + soak - begun)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm_api::rollout::{AgentRolloutStatus, BatchRecord, NodeMark, NodeSummary, Verdict};
    use podshm_rollout::{Finding, Move, PlannedBatch};
    use serde_json::json;

    #[test]
    fn a_plan_names_nodes_pods_and_what_is_in_the_way() {
        let shown = plan(&Plan {
            batches: vec![PlannedBatch {
                batch: 1,
                nodes: (0..9).map(|n| format!("n{n}")).collect(),
                moves: vec![Move { workload: "shop/cart".into(), pod: "cart-1".into(), node: "n0".into() }],
                untainted_nodes: 2,
                free_cpu_milli: 1500,
                ..PlannedBatch::default()
            }],
            refusals: vec![Finding {
                about: "StatefulSet shop/db".into(),
                message: "a rollout moves Deployments".into(),
            }],
            ..Plan::default()
        });
        for expected in [
            "9 nodes: n0, n1, n2, n3, n4, n5 and 3 more",
            "shop/cart from node n0: pod cart-1",
            "1.5 cores",
            "REFUSED: StatefulSet",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
    }

    #[test]
    fn a_node_has_a_line_of_its_own() {
        let mark = NodeMark {
            batch: 2,
            state: NodeState::Soaking,
            reason: "watched".into(),
            since: 990,
            ..NodeMark::default()
        };
        let shown = nodes(&[NodeRow { name: "n1".into(), mark, way: Vec::new() }], 1000);
        let words: Vec<&str> = shown.split_whitespace().collect();
        assert_eq!(words, ["node", "n1", "batch", "2", "Soaking", "for", "10", "s:", "watched"]);
    }

    #[test]
    fn a_status_has_its_gates_with_their_numbers_and_the_time_left() {
        let mut rollout: AgentRollout = serde_json::from_value(json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "routing"},
            "spec": {"agents": [], "batches": [{"count": 1}, {"percent": 100}], "soakSeconds": 100},
        }))
        .unwrap();
        rollout.status = Some(AgentRolloutStatus {
            phase: Phase::Running,
            batch: 1,
            soaking_since: 1000,
            worst: vec![NodeSummary { name: "n3".into(), state: NodeState::Failed, reason: "not Ready".into() }],
            gates: vec![Verdict {
                gate: "errors".into(),
                result: VerdictResult::Failed,
                message: "found 0.2, expected 0.1 or less".into(),
            }],
            history: vec![BatchRecord { batch: 1, nodes: 1, began: 900, ..BatchRecord::default() }],
            ..AgentRolloutStatus::default()
        });
        let shown = status(&rollout, 1030);
        for expected in
            ["about 170 s of soaking", "FAILED   found 0.2", "Failed       n3", "batch 1: 1 nodes, under way"]
        {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
    }
}
