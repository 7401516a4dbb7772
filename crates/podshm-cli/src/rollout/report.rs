//! One HTML page that needs nothing else: when each batch ran, what its gates said, what moved.

use super::facts::{Moved, NodeRow};
use k8s_openapi::jiff::Timestamp;
use podshm_api::rollout::{AgentRollout, BatchRecord, Verdict, VerdictResult};
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#1c2024}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .8em .3em 0;border-bottom:1px solid #ddd;vertical-align:top}\
.bar{background:#e8ebef;height:1.1em;position:relative}.bar i{position:absolute;top:0;bottom:0;background:#3a6ea5;min-width:2px}\
.Passed{color:#1a7f37}.Failed{color:#b42318;font-weight:600}.Waiting{color:#8a6d00}code{background:#f3f4f6;padding:0 .2em}";

/// The page.
pub fn page(rollout: &AgentRollout, nodes: &[NodeRow], moved: &[Moved]) -> String {
    let status = rollout.status.clone().unwrap_or_default();
    let name = escaped(rollout.metadata.name.as_deref().unwrap_or_default());
    let mut page = String::new();
    let mut put = |what: String| page.push_str(&what);
    put(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Rollout {name}</title><style>{STYLE}</style>\n"
    ));
    put(format!("<h1>Rollout {name}: {:?}</h1>\n<p>{}</p>\n", status.phase, escaped(&status.message)));
    let agents: Vec<String> = rollout.spec.agents.iter().map(|one| one.full_name()).collect();
    put(format!(
        "<table><tr><th>Agents<td>{}<tr><th>What<td>{:?}<tr><th>Label and taint<td><code>{}={}</code><tr><th>Nodes done<td>{}<tr><th>Failures<td>{}</table>\n",
        escaped(&agents.join(", ")),
        rollout.spec.purpose,
        escaped(&rollout.spec.mark.key),
        escaped(&rollout.spec.mark.value),
        escaped(&status.nodes_done),
        status.failures
    ));
    put("<h2>Batches</h2>\n".into());
    put(timeline(&status.history));
    put("<h2>Workloads</h2>\n<table><tr><th>Workload<th>Asked for<th>Fat, Ready<th>Slim, Ready</tr>\n".into());
    for one in &status.workloads {
        put(format!(
            "<tr><td>{}<td>{}<td>{}<td>{}</tr>\n",
            escaped(&one.name),
            one.asked,
            one.fat_ready,
            one.slim_ready
        ));
    }
    put("</table>\n".into());
    put(moves(moved));
    put(ways(nodes));
    put("<h2>Gates of each batch</h2>\n".into());
    for record in &status.history {
        put(format!("<h3>Batch {}: {}</h3>\n{}", record.batch, escaped(&record.outcome), gates(&record.gates)));
    }
    if !status.worst.is_empty() {
        put("<h2>Nodes to look at</h2>\n<table><tr><th>Node<th>State<th>Why</tr>\n".into());
        for node in &status.worst {
            put(format!("<tr><td>{}<td>{:?}<td>{}</tr>\n", escaped(&node.name), node.state, escaped(&node.reason)));
        }
        put("</table>\n".into());
    }
    page
}

/// Each batch as a bar in the time from the first's begin to the last's end.
fn timeline(history: &[BatchRecord]) -> String {
    let mut text =
        String::from("<table><tr><th>Batch<th>Nodes<th>Slim after it<th>Began<th>Took<th style=\"width:40%\"></tr>\n");
    let first = history.first().map_or(0, |record| record.began);
    let last = history.iter().map(|record| record.ended.max(record.began)).max().unwrap_or(first);
    let whole = (last - first).max(1) as f64;
    for record in history {
        let (from, took) = (record.began - first, (record.ended.max(record.began)) - record.began);
        let took_text = if record.ended == 0 { "under way".to_owned() } else { format!("{took} s") };
        writeln!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{took_text}<td><div class=\"bar\"><i style=\"left:{:.2}%;width:{:.2}%\"></i></div></tr>",
            record.batch,
            record.nodes,
            record.slim,
            time(record.began),
            from as f64 / whole * 100.0,
            took as f64 / whole * 100.0
        )
        .expect("a string has room");
    }
    text + "</table>\n"
}

/// Slim replicas by when they came.
fn moves(moved: &[Moved]) -> String {
    if moved.is_empty() {
        return String::new();
    }
    let mut text = String::from("<h2>Slim replicas</h2>\n<table><tr><th>Made<th>Workload<th>Pod<th>Node</tr>\n");
    for one in moved {
        let (workload, pod, node) = (escaped(&one.workload), escaped(&one.pod), escaped(&one.node));
        writeln!(text, "<tr><td>{}<td>{workload}<td>{pod}<td>{node}</tr>", time(one.at)).expect("a string has room");
    }
    text + "</table>\n"
}

/// Nodes of each batch, and when each came to which state.
fn ways(nodes: &[NodeRow]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let head = "<h2>Nodes</h2>\n<p>When a node came to which state is by the cluster's events, which do not last.</p>\n\
                <table><tr><th>Batch<th>Node<th>State<th>Since<th>Its way</tr>\n";
    let mut text = String::from(head);
    for node in nodes {
        let way: Vec<String> = node.way.iter().map(|(state, at)| format!("{} {}", time(*at), escaped(state))).collect();
        let (name, since) = (escaped(&node.name), time(node.mark.since));
        let (batch, state, way) = (node.mark.batch, node.mark.state, way.join("<br>"));
        writeln!(text, "<tr><td>{batch}<td>{name}<td>{state:?}<td>{since}<td>{way}</tr>").expect("a string has room");
    }
    text + "</table>\n"
}

fn gates(gates: &[Verdict]) -> String {
    let mut text = String::from("<table>\n");
    for gate in gates {
        let word = match gate.result {
            VerdictResult::Passed => "Passed",
            VerdictResult::Waiting => "Waiting",
            VerdictResult::Failed => "Failed",
        };
        writeln!(text, "<tr><td>{}<td class=\"{word}\">{word}<td>{}</tr>", escaped(&gate.gate), escaped(&gate.message))
            .expect("a string has room");
    }
    text + "</table>\n"
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm_api::rollout::{AgentRolloutStatus, NodeMark, NodeState, Phase};
    use serde_json::json;

    #[test]
    fn a_page_has_every_batch_and_gate_and_runs_nothing_of_what_it_quotes() {
        let mut rollout: AgentRollout = serde_json::from_value(json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "routing"},
            "spec": {"agents": [{"namespace": "routing", "name": "agent"}], "batches": [{"count": 1}]},
        }))
        .unwrap();
        let gate = Verdict {
            gate: "verification".into(),
            result: VerdictResult::Failed,
            message: "said <script>alert(1)</script>".into(),
        };
        rollout.status = Some(AgentRolloutStatus {
            phase: Phase::RolledBack,
            history: vec![
                BatchRecord {
                    batch: 1,
                    nodes: 1,
                    began: 100,
                    ended: 160,
                    outcome: "passed".into(),
                    ..BatchRecord::default()
                },
                BatchRecord {
                    batch: 2,
                    nodes: 3,
                    began: 160,
                    ended: 200,
                    outcome: "rolled back".into(),
                    gates: vec![gate],
                    ..BatchRecord::default()
                },
            ],
            ..AgentRolloutStatus::default()
        });
        let mark = NodeMark { batch: 2, state: NodeState::RolledBack, since: 200, ..NodeMark::default() };
        let nodes = [NodeRow { name: "<n1>".into(), mark, way: vec![("Preparing".into(), 161)] }];
        let moved = [Moved { at: 170, workload: "shop/cart".into(), pod: "cart-slim-1".into(), node: "n1".into() }];
        let page = page(&rollout, &nodes, &moved);
        for expected in [
            "RolledBack",
            "1970-01-01T00:01:40Z",
            "<td>60 s<td>",
            "left:60.00%;width:40.00%",
            "Batch 2: rolled back",
            "&lt;script&gt;",
            "<tr><td>2<td>&lt;n1&gt;<td>RolledBack<td>1970-01-01T00:03:20Z<td>1970-01-01T00:02:41Z Preparing</tr>",
            "<tr><td>1970-01-01T00:02:50Z<td>shop/cart<td>cart-slim-1<td>n1</tr>",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("http"));
    }
}
