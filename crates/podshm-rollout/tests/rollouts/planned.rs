//! What is carried out is what was planned.

use crate::simulated::Cluster;
use crate::simulated::fleet::{cluster, message, until, until_batch};
use podshm_api::rollout::Phase;
use podshm_rollout::plan;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Names of the nodes of each batch, as a plan has them.
fn planned(cluster: &Cluster) -> BTreeMap<u32, BTreeSet<String>> {
    let plan = plan(&cluster.rollout, &cluster.world);
    assert_eq!(plan.refusals, []);
    plan.batches.into_iter().map(|batch| (batch.batch, batch.nodes.into_iter().collect())).collect()
}

/// And as their marks have them.
fn done(cluster: &Cluster) -> BTreeMap<u32, BTreeSet<String>> {
    let mut all: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for node in cluster.world.nodes.keys() {
        let Some(mark) = cluster.mark(node) else { continue };
        all.entry(mark.batch).or_default().insert(node.clone());
    }
    all
}

#[test]
fn batches_are_carried_out_as_they_were_planned_however_uneven_zones_are() {
    let rows = [
        (7, json!([{"count": 1}, {"percent": 50}, {"percent": 100}])),
        (7, json!([{"count": 1}, {"count": 2}, {"count": 1}, {"percent": 100}])),
        (8, json!([{"count": 1}, {"selector": {"matchLabels": {"disk": "fast"}}}, {"count": 3}, {"percent": 100}])),
    ];
    for (nodes, batches) in rows {
        let mut cluster = cluster(nodes);
        for node in cluster.world.nodes.values_mut() {
            let name = node.metadata.name.as_deref().unwrap();
            let labels = node.metadata.labels.as_mut().unwrap();
            if ["n02", "n04"].contains(&name) {
                labels.insert("disk".into(), "fast".into());
            }
            if name == "n06" {
                labels.insert("topology.kubernetes.io/zone".into(), "z2".into());
            }
        }
        cluster.rollout.spec.batches = serde_json::from_value(batches.clone()).unwrap();
        let expected = planned(&cluster);
        until(&mut cluster, &[Phase::Completed]);
        assert_eq!(done(&cluster), expected, "{batches}");
    }
}

#[test]
fn nodes_that_join_and_are_in_no_batch_are_told_of() {
    let mut cluster = cluster(4);
    cluster.rollout.spec.batches = serde_json::from_value(json!([{"count": 1}, {"count": 3}])).unwrap();
    let plan = plan(&cluster.rollout, &cluster.world);
    let warned =
        plan.warnings.iter().any(|one| one.message.contains("nodes that join while the rollout runs are in no batch"));
    assert!(warned, "{:?}", plan.warnings);
    until_batch(&mut cluster, 2);
    cluster.add_node("n99", "z0");
    until(&mut cluster, &[Phase::Completed]);
    assert!(cluster.mark("n99").is_none() && !cluster.has_label("n99"));
    let message = message(&cluster);
    assert!(
        message.contains("4 nodes are converted")
            && message.contains("1 nodes are in no batch")
            && message.contains("n99"),
        "{message}"
    );
}
