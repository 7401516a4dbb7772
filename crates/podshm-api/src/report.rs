//! What a node daemon says of its node, at `/domains` of its metrics port: the controller, and `podshm doctor`, ask for it.

use serde::{Deserialize, Serialize};

/// Where a node daemon answers, at its pod's address: the port named `metrics`.
pub const PORT: u16 = 9478;

/// A node, as its daemon sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// Whether the kubelet has registered the daemon.
    pub registered: bool,
    /// Whether the NRI plugin is connected; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nri: Option<bool>,
    /// Bytes of all regions that are charged to the daemon, what it inherited among them.
    pub charged_bytes: u64,
    /// The daemon's memory limit; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Volumes that this daemon could not publish because of the node itself, not of who asked.
    #[serde(default)]
    pub failed_publishes: u64,
    /// One for each domain that the node has heard of.
    pub domains: Vec<DomainReport>,
}

/// A domain on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainReport {
    /// Its name.
    pub name: String,
    /// `metadata.generation` of the ShmDomain that the node goes by; 0 where it has none.
    pub generation: i64,
    /// Whether an agent serves it.
    pub served: bool,
    /// Volumes that are published to pods, the agent's among them.
    pub volumes: u32,
    /// Participants that are connected as clients.
    pub clients: u32,
    /// Bytes of its regions, of a budget.
    pub region_bytes: u64,
    /// That budget.
    pub budget_bytes: u64,
    /// Bytes written to its /dev/shm.
    pub shm_bytes: u64,
    /// The size of its /dev/shm; 0 without mode posix.
    pub shm_size: u64,
    /// Agents that have served it so far.
    #[serde(default)]
    pub epoch: u64,
    /// Participants that were refused so far.
    #[serde(default)]
    pub refused: u64,
    /// Clients whose records were dropped so far: no agent came for them in time.
    #[serde(default)]
    pub discarded: u64,
    /// Regions that nobody presented after a restart of the daemon: out of the books, wherever they are held.
    #[serde(default)]
    pub unclaimed: u64,
    /// Participants that died while somebody kept their socket open.
    #[serde(default)]
    pub held_open: u64,
    /// Clients that keep as many old generations as they may, and get no newer one.
    #[serde(default)]
    pub stale_clients: u32,
    /// Joins that wait for an agent.
    #[serde(default)]
    pub waiting_clients: u32,
    /// For how long the oldest of these has been so: a dead client's records wait for an agent; an agent waits to take over.
    #[serde(default)]
    pub stalled_seconds: u64,
    /// What is wrong with it on this node; empty where all is well.
    #[serde(default)]
    pub conditions: Vec<NodeCondition>,
}

/// Something that somebody should hear of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCondition {
    /// In CamelCase, as in a condition of Kubernetes: `OverLimit`, `NoAgent`, `NotServed`.
    pub reason: String,
    /// What is so, and what to do.
    pub message: String,
}
