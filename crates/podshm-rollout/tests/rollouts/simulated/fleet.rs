//! A fleet with two workloads, and how it is when a rollout is over.

use super::Cluster;
use podshm_api::rollout::{NodeState, Phase};
use podshm_rollout::step;
use serde_json::{Value, json};

/// How many ticks a rollout may take; it bounds one that stands still.
const PATIENCE: usize = 2000;

pub fn spec() -> Value {
    json!({
        "apiVersion": "podshm.dev/v1alpha1", "kind": "AgentRollout",
        "metadata": {"name": "routing", "uid": "r-1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "agents": [{"namespace": "routing", "name": "agent"}],
            "domain": "routing",
            "batches": [{"count": 1}, {"percent": 50}, {"percent": 100}],
            "maxUnavailable": 2,
            "soakSeconds": 30,
            "gates": {"verification": {"namespace": "verify", "image": "podshm", "command": ["podshm", "verify"]}},
            "workloads": [
                {"namespace": "shop", "name": "cart", "slim": {"labels": {"form": "slim"}, "removeContainers": ["agent"], "domain": "routing"}},
                {"namespace": "shop", "name": "till", "slim": {"labels": {"form": "slim"}, "removeContainers": ["agent"]}},
            ],
        },
    })
}

pub fn cluster(nodes: u32) -> Cluster {
    with_sick(nodes, None)
}

pub fn with_sick(nodes: u32, sick: Option<&str>) -> Cluster {
    let mut cluster = Cluster::new(nodes, spec());
    sick.into_iter().for_each(|node| cluster.set_ready(node, false));
    cluster.add_agent("RollingUpdate");
    cluster.add_workload("cart", 7);
    cluster.add_workload("till", 3);
    cluster.add_budget("cart", 1);
    settle(&mut cluster);
    cluster
}

fn settle(cluster: &mut Cluster) {
    (0..5).for_each(|_| cluster.tick());
    cluster.lowest.clear();
}

pub fn phase(cluster: &Cluster) -> Phase {
    cluster.rollout.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

pub fn message(cluster: &Cluster) -> String {
    cluster.rollout.status.as_ref().map(|status| status.message.clone()).unwrap_or_default()
}

/// Steps, each done as a whole, until the phase is one of these.
pub fn until(cluster: &mut Cluster, phases: &[Phase]) {
    for _ in 0..PATIENCE {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        if phases.contains(&phase(cluster)) {
            return;
        }
        cluster.tick();
    }
    panic!("still {:?}: {}", phase(cluster), message(cluster));
}

pub fn is_converted(cluster: &Cluster) {
    for node in cluster.world.nodes.keys() {
        assert_eq!(cluster.mark(node).map(|mark| mark.state), Some(NodeState::Done), "node {node}");
        assert!(cluster.has_label(node) && !cluster.has_taint(node), "node {node}");
    }
    for (name, asked) in [("cart", 7), ("till", 3)] {
        let (fat, slim) = (
            cluster.world.deployment("shop", name).unwrap(),
            cluster.world.deployment("shop", &format!("{name}-slim")),
        );
        assert_eq!(fat.spec.as_ref().unwrap().replicas, Some(0));
        assert_eq!(cluster.world.pods_of(slim.unwrap()).ready(), asked);
    }
}

pub fn nobody_was_hurt(cluster: &Cluster) {
    assert!(cluster.lowest["cart"] >= 7 && cluster.lowest["till"] >= 3, "{:?}", cluster.lowest);
}

pub fn is_as_before(cluster: &Cluster) {
    for node in cluster.world.nodes.keys() {
        assert!(!cluster.has_label(node) && !cluster.has_taint(node), "node {node}: {:?}", cluster.mark(node));
    }
    for (name, asked) in [("cart", 7), ("till", 3)] {
        assert_eq!(cluster.world.pods_of(cluster.world.deployment("shop", name).unwrap()).ready(), asked);
        assert!(cluster.world.deployment("shop", &format!("{name}-slim")).is_none());
    }
}

pub fn until_batch(cluster: &mut Cluster, batch: u32) {
    for _ in 0..PATIENCE {
        let next = step(&cluster.rollout, &cluster.world);
        cluster.apply(next, usize::MAX, true);
        if cluster.rollout.status.as_ref().unwrap().batch >= batch {
            return;
        }
        cluster.tick();
    }
    panic!("still {:?}: {}", phase(cluster), message(cluster));
}
