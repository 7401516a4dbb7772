//! What the controller says of a domain. Bounded, whatever the number of nodes: each change of an object goes to every node's daemon.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most nodes that a status names.
pub const WORST: usize = 20;
/// Longest message of a node, in bytes.
pub const LONGEST: usize = 256;

/// What the nodes report of a domain, written by podshm-controller at most every 30 seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// The metadata.generation that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Nodes whose daemon has the domain.
    #[serde(default)]
    pub nodes: i64,
    /// Nodes that go by an earlier generation of it, or have not heard of it.
    #[serde(default)]
    pub outdated_nodes: i64,
    /// Nodes whose daemon does not answer the controller.
    #[serde(default)]
    pub silent_nodes: i64,
    /// Nodes where something is wrong with it, see worstNodes.
    #[serde(default)]
    pub degraded_nodes: i64,
    /// Nodes with an agent that serves it.
    #[serde(default)]
    pub served_nodes: i64,
    /// Volumes that pods have, on all nodes; the agents' among them.
    #[serde(default)]
    pub volumes: i64,
    /// Clients, on all nodes.
    #[serde(default)]
    pub clients: i64,
    /// Bytes of its regions, on all nodes.
    #[serde(default)]
    pub region_bytes: i64,
    /// Bytes in its /dev/shm, on all nodes.
    #[serde(default)]
    pub shm_bytes: i64,
    /// Ready: every node that answers goes by the domain as it is written. Degraded: something is wrong on some node. OverLimit: a node's
    /// daemon has not the memory for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The 20 nodes where most is wrong, the worst first; the others are to be asked: `podshm doctor`, or podshmd's /domains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub worst_nodes: Vec<WorstNode>,
}

/// A condition, as Kubernetes' objects have them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is said, in one word.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// The generation that it was said of.
    #[serde(default)]
    pub observed_generation: i64,
    /// When its status was another one last.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can say.
    Unknown,
}

/// A node where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorstNode {
    /// The node's name.
    #[schemars(length(max = 253))]
    pub node: String,
    /// What is wrong, in words such as OverLimit and NoAgent; the first four.
    #[schemars(length(max = 4), inner(length(max = 64)))]
    pub reasons: Vec<String>,
    /// The first of them for people, with what to do; no more than 256 bytes of it.
    #[schemars(length(max = 256))]
    pub message: String,
}
