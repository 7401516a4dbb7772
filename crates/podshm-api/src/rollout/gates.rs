//! What has to be so before a rollout goes on.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Gates of each batch. Those with a default are always there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Gates {
    /// A pod on each node that joins the domain and does a real round trip. It has to end with status 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// How many more restarts than before a workload's pods may have; more, or one that is not ready, fails.
    pub max_new_restarts: u32,
    /// Queries to Prometheus.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prometheus: Vec<QueryGate>,
    /// Jobs that have to succeed, run once a batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobGate>,
    /// A person has to approve each batch, `spec.approved` (`podshm rollout approve`), before it begins.
    pub approval: bool,
}

/// What a verification pod runs. It has the domain's volume at /run/podshm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Verification {
    /// Namespace it runs in, which has to be in the domain's `join`.
    pub namespace: String,
    /// Its service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// An image with the `podshm` program, or one of your own.
    pub image: String,
    /// What it runs: `podshm verify …`, or a program of your own.
    pub command: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// The domain's /dev/shm instead of the pod's own; for a domain of mode posix.
    pub dev_shm: bool,
    /// How long it may take.
    #[serde(default = "two_minutes")]
    pub timeout_seconds: u32,
}

fn two_minutes() -> u32 {
    120
}

/// A number that Prometheus knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.max) || has(self.min)").message("a query has max, or min, or both")
)]
pub struct QueryGate {
    /// What the gate is called.
    pub name: String,
    /// Of the server: `http://prometheus.monitoring:9090`.
    pub url: String,
    /// Its result is one number (a scalar, or a vector of one).
    pub query: String,
    /// The highest that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The lowest that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
}

/// A Job of your own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobGate {
    /// What the gate is called; the Job is ROLLOUT-BATCH-NAME.
    pub name: String,
    /// Where it runs.
    pub namespace: String,
    /// The Job's spec.
    #[schemars(schema_with = "super::anything")]
    pub spec: Value,
}
