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
    /// What node daemons may say of the domain, where `spec.domain` names one.
    pub podshm: HealthGate,
    /// How many more restarts than before agents, and a workload's pods, may have; more fails. Replicas that are not ready are waited for, until
    /// `progressDeadlineSeconds` after the soak.
    pub max_new_restarts: u32,
    /// Queries to Prometheus.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub prometheus: Vec<QueryGate>,
    /// Jobs that have to succeed, run once a batch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub jobs: Vec<JobGate>,
    /// A person has to approve each batch, `spec.approved` (`podshm rollout approve`), before it begins.
    pub approval: bool,
}

/// How much more node daemons may count, on each node, than before the batch began or before the node was touched, whichever is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HealthGate {
    /// Participants that were refused, and volumes that could not be published.
    pub max_attach_failures: u32,
    /// Clients whose records were dropped: no agent came for them in time.
    pub max_drops: u32,
    /// For how long a dead client's records, or an agent that is to take over, may wait.
    pub max_stalled_seconds: u32,
    /// Clients that keep old generations and get no newer one.
    pub max_stale_clients: u32,
    /// Agents that came without having been started anew: they lose what serves them, and come back.
    pub max_returns: u32,
    /// Regions and sockets that somebody holds though their owner is gone.
    pub max_leaks: u32,
    /// How full the domain's /dev/shm may become, in hundredths; fuller before is left alone.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self <= 100", "message": "maxShmPercent: expected 0 to 100"}]))]
    pub max_shm_percent: u32,
}

impl Default for HealthGate {
    fn default() -> Self {
        HealthGate {
            max_attach_failures: 0,
            max_drops: 0,
            max_stalled_seconds: 30,
            max_stale_clients: 0,
            max_returns: 0,
            max_leaks: 0,
            max_shm_percent: 90,
        }
    }
}

/// What a verification pod runs. It has the domain's volume at /run/podshm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Namespace it runs in, which has to be in the domain's `join`.
    #[schemars(length(max = 63))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "message": "gates.verification.namespace: expected a namespace, one of the domain's join"}]))]
    pub namespace: String,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// An image with the `podshm` program, or one of your own.
    #[schemars(length(max = 1024))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.size() >= 1", "message": "gates.verification.image: expected an image with the podshm program, or one of your own"}]))]
    pub image: String,
    /// What it runs: `podshm verify …`, or a program of your own.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The domain's /dev/shm instead of the pod's own; for a domain of mode posix.
    #[serde(default)]
    pub dev_shm: bool,
    /// How long it may take.
    #[serde(default = "two_minutes")]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self >= 1 && self <= 3600", "message": "gates.verification.timeoutSeconds: expected 1 to 3600"}]))]
    pub timeout_seconds: u32,
}

fn two_minutes() -> u32 {
    120
}

/// A number that Prometheus knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.max) || has(self.min)").message("a query has max, or min, or both; say what is well"),
    validation = Rule::new("!has(self.max) || !has(self.min) || self.min <= self.max")
        .message("min is more than max: no number would be well; swap them")
)]
pub struct QueryGate {
    /// What the gate is called.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.size() >= 1").message("name: expected what the gate shall be called"))]
    pub name: String,
    /// Of the server: `http://prometheus.monitoring:9090`.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/]')").message("url: expected http://HOST:PORT or https://HOST:PORT, of the Prometheus server"))]
    pub url: String,
    /// Its result is one number (a scalar, or a vector of one).
    #[schemars(length(max = 4096))]
    #[x_kube(validation = Rule::new("self.size() >= 1").message("query: expected one that has one number as its result"))]
    pub query: String,
    /// The highest that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The lowest that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
}

/// A Job of your own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct JobGate {
    /// What the gate is called; the Job is ROLLOUT-BATCH-FAILURES-NAME, shortened where that is too long.
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("name: expected lower-case letters, digits or '-': it is a part of the Job's name"))]
    pub name: String,
    /// Where it runs.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace: expected the name of a namespace"))]
    pub namespace: String,
    /// The Job's spec.
    #[schemars(schema_with = "super::anything")]
    pub spec: Value,
}
