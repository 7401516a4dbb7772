//! What nodes, events and pods say of a rollout, and its status has no room for.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use podshm_api::rollout::{AgentRollout, NODE_MARK, NodeMark};
use podshm_rollout::slim_name;
use serde::Serialize;

/// A node on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// What its annotation says.
    #[serde(flatten)]
    pub mark: NodeMark,
    /// Which states it came to, and when, in seconds since 1970, as far as events go back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub way: Vec<(String, i64)>,
}

/// A slim replica that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moved {
    /// When it was made, in seconds since 1970.
    pub at: i64,
    /// `namespace/name` of its workload.
    pub workload: String,
    /// The pod.
    pub pod: String,
    /// Where it is.
    pub node: String,
}

/// Nodes of a rollout, by batch, then by name.
pub async fn nodes(client: &Client, rollout: &AgentRollout) -> anyhow::Result<Vec<NodeRow>> {
    let all = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    Ok(rows(&all.items, rollout))
}

fn rows(nodes: &[Node], rollout: &AgentRollout) -> Vec<NodeRow> {
    let row = |node: &Node| {
        let mark: NodeMark = serde_json::from_str(node.annotations().get(NODE_MARK)?).ok()?;
        let is_its = Some(&mark.uid) == rollout.metadata.uid.as_ref();
        is_its.then(|| NodeRow { name: node.name_any(), mark, way: Vec::new() })
    };
    let mut all: Vec<NodeRow> = nodes.iter().filter_map(row).collect();
    all.sort_by(|one, other| (one.mark.batch, &one.name).cmp(&(other.mark.batch, &other.name)));
    all
}

/// Gives nodes their way, by the events that the controller has published. They last an hour on most clusters.
pub async fn ways(client: &Client, rollout: &AgentRollout, rows: &mut [NodeRow]) {
    // Events of what has no namespace are in this one. Whoever may not see them has a page without.
    let all = Api::<Event>::namespaced(client.clone(), "default").list(&ListParams::default()).await;
    if let Ok(all) = all {
        go_through(&all.items, &rollout.name_any(), rows);
    }
}

fn go_through(events: &[Event], rollout: &str, rows: &mut [NodeRow]) {
    let of = format!("rollout {rollout}, batch ");
    for event in events {
        let about = event.regarding.as_ref().filter(|about| about.kind.as_deref() == Some("Node"));
        let name = about.and_then(|about| about.name.as_ref());
        let is_its = event.note.as_ref().is_some_and(|note| note.starts_with(&of));
        let Some(row) = rows.iter_mut().find(|row| is_its && Some(&row.name) == name) else { continue };
        let (Some(state), Some(at)) = (&event.reason, &event.event_time) else { continue };
        row.way.push((state.clone(), at.0.as_second()));
    }
    rows.iter_mut().for_each(|row| row.way.sort_by_key(|(_, at)| *at));
}

/// Slim replicas that are there, in the order in which they came.
pub async fn moved(client: &Client, rollout: &AgentRollout) -> anyhow::Result<Vec<Moved>> {
    let mut all = Vec::new();
    for workload in &rollout.spec.workloads {
        let pods = Api::<Pod>::namespaced(client.clone(), &workload.namespace);
        let labels: Vec<String> = workload.slim.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await?;
        all.extend(slim(&pods.items, &workload.full_name(), &slim_name(workload)));
    }
    all.sort();
    Ok(all)
}

fn slim(pods: &[Pod], workload: &str, form: &str) -> Vec<Moved> {
    // A Deployment's ReplicaSets have its name and a hash.
    let is_of = |pod: &&Pod| {
        let owners = pod.metadata.owner_references.iter().flatten();
        let set = owners.into_iter().find(|owner| owner.kind == "ReplicaSet");
        set.and_then(|set| set.name.rsplit_once('-')).is_some_and(|(name, _)| name == form)
    };
    let moved = |pod: &Pod| Moved {
        at: pod.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second()),
        workload: workload.to_owned(),
        pod: pod.name_any(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
    };
    pods.iter().filter(is_of).map(moved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn nodes_are_those_with_its_mark_and_have_their_way_by_its_events() {
        let rollout: AgentRollout = of(json!({
            "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout", "metadata": {"name": "routing", "uid": "u-1"},
            "spec": {"agents": [], "batches": []},
        }));
        let node = |name: &str, batch: u32, uid: &str| {
            let mark =
                json!({"rollout": "routing", "uid": uid, "batch": batch, "state": "Done", "reason": "r", "since": 9});
            of::<Node>(json!({"metadata": {"name": name, "annotations": {NODE_MARK: mark.to_string()}}}))
        };
        let nodes =
            [node("a", 2, "u-1"), node("b", 1, "u-1"), node("c", 1, "u-0"), of(json!({"metadata": {"name": "d"}}))];
        let mut rows = rows(&nodes, &rollout);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        let event = |node: &str, state: &str, second: u32, rollout: &str| {
            of::<Event>(json!({
                "metadata": {"name": "e"}, "reason": state, "regarding": {"kind": "Node", "name": node},
                "note": format!("rollout {rollout}, batch 1: so"), "eventTime": format!("1970-01-01T00:00:{second:02}.000000Z"),
            }))
        };
        let events = [
            event("b", "Done", 30, "routing"),
            event("b", "Preparing", 10, "routing"),
            event("b", "Failed", 20, "routing-2"),
            event("c", "Done", 30, "routing"),
        ];
        go_through(&events, "routing", &mut rows);
        assert_eq!(rows[0].way, [("Preparing".to_owned(), 10), ("Done".to_owned(), 30)]);
        assert_eq!(rows[1].way, []);
        let shown = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!((&shown["name"], &shown["batch"], &shown["state"]), (&json!("b"), &json!(1), &json!("Done")));
    }

    #[test]
    fn moved_are_pods_of_the_slim_form_and_of_no_other() {
        let pod = |name: &str, set: &str| {
            of::<Pod>(json!({
                "metadata": {
                    "name": name, "creationTimestamp": "1970-01-01T00:00:05Z",
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "x"}],
                },
                "spec": {"containers": [], "nodeName": "a"},
            }))
        };
        let pods = [pod("one", "cart-slim-7f9c"), pod("two", "cart-7f9c"), pod("three", "cart-slim-more-7f9c")];
        let (workload, node) = ("shop/cart".to_owned(), "a".to_owned());
        assert_eq!(slim(&pods, "shop/cart", "cart-slim"), [Moved { at: 5, workload, pod: "one".into(), node }]);
    }
}
