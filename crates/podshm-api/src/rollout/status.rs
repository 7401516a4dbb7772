//! Where a rollout is. Small whatever the fleet: what there is to say of a node is on the node.

use crate::status::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rollout as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing is touched yet.
    #[default]
    Pending,
    /// It can't be done as it is written: `message` says why, and what to change. Nothing was touched.
    Refused,
    /// A batch is under way.
    Running,
    /// A person has to approve the next batch.
    AwaitingApproval,
    /// By a person, or by a gate: `message` says which.
    Paused,
    /// Everything goes back.
    RollingBack,
    /// Everything is as it was.
    RolledBack,
    /// Ended where it was.
    Aborted,
    /// All batches are done.
    Completed,
}

impl Phase {
    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Phase::Refused | Phase::RolledBack | Phase::Aborted | Phase::Completed)
    }
}

/// A node on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// In a batch, not touched.
    #[default]
    Pending,
    /// Label and taint are on; its agents come.
    Preparing,
    /// Its agents are Ready.
    AgentReady,
    /// Its verification pod runs.
    Verifying,
    /// Business is moved.
    Migrating,
    /// Watched.
    Soaking,
    /// Over.
    Done,
    /// Unhealthy before it was touched: left alone.
    Skipped,
    /// Unhealthy after it was touched.
    Failed,
    /// As it was before.
    RolledBack,
}

/// What a node's annotation says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeMark {
    /// By name.
    pub rollout: String,
    /// By uid: one of the same name before this one is another.
    pub uid: String,
    /// From 1.
    pub batch: u32,
    /// Where it is.
    pub state: NodeState,
    /// Why.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: i64,
    /// What its daemon had counted before, to be compared with what it counts now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Counted>,
    /// How often its agents' pods, by uid, had been started again when somebody looked at what failed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restarts: BTreeMap<String, u32>,
}

/// What a node's daemon has counted of a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Counted {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Participants refused, volumes not published.
    pub attach_failures: u64,
    /// Clients whose records were dropped.
    pub drops: u64,
    /// Regions and sockets that somebody holds though their owner is gone.
    pub leaks: u64,
    /// Agents that have served it.
    pub agents: u64,
    /// How often agents' containers on the node were started again.
    pub restarts: u64,
    /// Hundredths of its /dev/shm that are used.
    pub shm_percent: u64,
}

/// Where the rollout is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AgentRolloutStatus {
    /// The spec that this is about.
    pub observed_generation: i64,
    /// As a whole.
    pub phase: Phase,
    /// What is waited for, or what is wrong and what to do.
    pub message: String,
    /// The batch under way, from 1; 0 before the first.
    pub batch: u32,
    /// The batch under way, of all: `2/5`.
    pub progress: String,
    /// Nodes that are done, of all: `12/40`.
    pub nodes_done: String,
    /// Nodes by state.
    pub nodes: BTreeMap<String, u32>,
    /// Those that somebody should look at, at most 20.
    pub worst: Vec<NodeSummary>,
    /// Gates of this batch.
    pub gates: Vec<Verdict>,
    /// What failed so far, counted: a failure that a person has looked at is one up to `spec.resumedFailures`.
    pub failures: u32,
    /// When it was last resumed, in seconds since 1970: nodes that failed before are tried again.
    pub resumed_at: i64,
    /// What node daemons say is compared with what they said then, or when the node was touched after it; in seconds since 1970.
    pub compared_since: i64,
    /// Restarts of agents that were there then are seen, in seconds since 1970.
    pub restarts_since: i64,
    /// When the soak of this batch began, in seconds since 1970; 0 before.
    pub soaking_since: i64,
    /// Revisions of the agents before an upgrade, by `namespace/name`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub agents_before: BTreeMap<String, String>,
    /// Workloads as they are moved.
    pub workloads: Vec<WorkloadStatus>,
    /// Most replicas that had moved in this batch, of all workloads; more are progress.
    pub moved: u32,
    /// When there was one more last, in seconds since 1970.
    pub moved_at: i64,
    /// What somebody should know, each there while it is so. WayBackBlocked: something can't go back. BatchesChanged: a batch that has begun
    /// was changed in the spec. NodesLeftOut: spec.nodes leaves out nodes that are touched. NodesInNoBatch: nodes came midway that no batch takes.
    /// NoRoom: the next batch would leave pods that are not listed without a place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Batches so far.
    pub history: Vec<BatchRecord>,
}

/// A node in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSummary {
    /// Name of the node.
    pub name: String,
    /// Where it is on its way.
    pub state: NodeState,
    /// Why it is there.
    pub reason: String,
}

/// What a gate says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum VerdictResult {
    /// All is well.
    Passed,
    /// Not known yet.
    #[default]
    Waiting,
    /// It stops the rollout.
    Failed,
}

/// A gate, with its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Which gate.
    pub gate: String,
    /// What it says.
    pub result: VerdictResult,
    /// What was found, and what was expected.
    pub message: String,
}

/// A workload on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// The workload, as `namespace/name`.
    pub name: String,
    /// Replicas that its owner asked for.
    pub asked: u32,
    /// How many of them are slim when this batch is done.
    pub slim_wanted: u32,
    /// Ready fat ones.
    pub fat_ready: u32,
    /// Ready slim ones.
    pub slim_ready: u32,
    /// Restarts of all its pods when the batch began.
    pub restarts_before: u32,
    /// Those of its slim pods.
    pub slim_restarts_before: u32,
}

/// A batch that is over, or under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct BatchRecord {
    /// Its number, from 1.
    pub batch: u32,
    /// In seconds since 1970.
    pub began: i64,
    /// In seconds since 1970; 0 while it is under way.
    pub ended: i64,
    /// How many nodes it has.
    pub nodes: u32,
    /// The batch as the spec had it when it began; where that is long, a hash of it.
    pub spec: String,
    /// Slim replicas once it was over, of all workloads.
    pub slim: u32,
    /// How the batch ended.
    pub outcome: String,
    /// Its gates at the end.
    pub gates: Vec<Verdict>,
}
