//! `AgentRollout`: a fleet goes over from an agent in every image to an agent for each node, batch by batch.

mod gates;
mod selector;
mod status;

pub use gates::{Gates, HealthGate, JobGate, QueryGate, Verification};
pub use selector::{Operator, Requirement, Selector};
pub use status::{
    AgentRolloutStatus, BatchRecord, Counted, NodeMark, NodeState, NodeSummary, Phase, Verdict, VerdictResult,
    WorkloadStatus,
};

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Annotation of a node: [`NodeMark`], as JSON.
pub const NODE_MARK: &str = "rollout.podshm.dev/node";
/// Annotation of a fat workload while it is moved: how many replicas its owner asked for, and by which rollout.
pub const ASKED: &str = "rollout.podshm.dev/asked";
/// Label of what a rollout has made: its name.
pub const MADE_BY: &str = "rollout.podshm.dev/name";
/// Annotation of a slim form: the uid of the rollout that moves it.
pub const MADE_BY_UID: &str = "rollout.podshm.dev/uid";
/// Annotation of a slim form: the hash of the pod template that it was made with.
pub const TEMPLATE: &str = "rollout.podshm.dev/template";
/// Label of a verification pod: its node.
pub const VERIFIES: &str = "rollout.podshm.dev/verifies";
/// Finalizer of a rollout that has begun and is not over: while it is there the object stays, so that what was begun goes back first.
pub const FINALIZER: &str = "podshm.dev/rollout";
/// What the controller is called where it writes fields.
pub const FIELD_MANAGER: &str = "podshm-rollout";

/// Moves a fleet from an agent in every image to an agent for each node, batch by batch, each with its gates; or the agents of nodes
/// that have one to their next version.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podshm.dev",
    version = "v1alpha1",
    kind = "AgentRollout",
    plural = "agentrollouts",
    shortname = "arl",
    status = "AgentRolloutStatus",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("metadata.name: expected at most 63 characters: it is a label's value on what the rollout makes"),
    validation = Rule::new("!has(self.status) || !has(self.status.phase) || self.status.phase in ['Pending', 'Refused'] || (self.spec.purpose == oldSelf.spec.purpose && self.spec.agents == oldSelf.spec.agents && self.spec.mark == oldSelf.spec.mark)")
        .message("purpose, agents and mark stay as they are once a rollout has begun: nodes have them; abort it or roll it back, and start another"),
    validation = Rule::new("!has(self.status) || !has(self.status.phase) || self.status.phase in ['Pending', 'Refused'] || (has(self.spec.workloads) ? self.spec.workloads.size() : 0) == (has(oldSelf.spec.workloads) ? oldSelf.spec.workloads.size() : 0)")
        .message("workloads: which ones stays as it is once a rollout has begun: those that are left out would stay halfway, those that are added are in no plan; start another for them"),
    doc = "A gray rollout of node agents: which nodes, in which batches, past which gates.",
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Batch","type":"string","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","jsonPath":".status.nodesDone"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("self.purpose != 'UpgradeAgents' || !has(self.workloads) || self.workloads.size() == 0")
        .message("workloads: an upgrade of agents moves none; leave them out").field_path(".workloads")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentRolloutSpec {
    /// What is done to the nodes: Convert (label and taint them, so that the agents come, and move workloads), or UpgradeAgents (on nodes
    /// that are converted: agents of the DaemonSet's newest version take over).
    #[serde(default)]
    pub purpose: Purpose,
    /// The agents' DaemonSets.
    #[schemars(length(max = 8))]
    #[x_kube(
        validation = Rule::new("self.size() >= 1").message("agents: expected 1 to 8 DaemonSets; name those that serve the nodes"),
        validation = Rule::new("self.all(one, self.exists_one(other, other == one))").message("agents: a DaemonSet is named twice; name it once")
    )]
    pub agents: Vec<AgentRef>,
    /// The ShmDomain that the agents serve; verification pods join it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.size() >= 1").message("domain: expected the name of a ShmDomain; leave it out where agents serve none"))]
    pub domain: Option<String>,
    /// Label and taint of converted nodes. On completion the taint goes and the label stays.
    #[serde(default)]
    pub mark: Mark,
    /// Which nodes. All that are not control planes, if nothing is said.
    #[serde(default)]
    pub nodes: Nodes,
    /// The batches, in order: the first is the canary.
    #[schemars(length(max = 50))]
    #[x_kube(
        validation = Rule::new("self.size() >= 1").message("batches: expected 1 to 50; [{count: 1}, {percent: 100}] is a canary and the rest"),
        validation = Rule::new("self.filter(one, has(one.percent)).map(one, one.percent).isSorted()")
            .message("batches: percent counts the batches before, too; expected each to be more than the one before")
    )]
    pub batches: Vec<Batch>,
    /// Label of nodes whose values a batch is spread over.
    #[serde(default = "zone")]
    pub spread_over: String,
    /// How many nodes of a batch are worked on at once.
    #[serde(default = "one")]
    #[x_kube(validation = Rule::new("self >= 1").message("maxUnavailable: expected 1 or more: with 0 no node could ever be worked on"))]
    pub max_unavailable: u32,
    /// How long a batch is watched once all is moved, before the next begins.
    #[serde(default = "minute")]
    #[x_kube(validation = Rule::new("self <= 604800").message("soakSeconds: expected at most 604800, a week"))]
    pub soak_seconds: u32,
    /// How long a batch may stand still: no node and no replica comes a step further. Whenever one does it begins anew; pauses do not count.
    #[serde(default = "ten_minutes")]
    #[x_kube(validation = Rule::new("self >= 10 && self <= 86400").message("progressDeadlineSeconds: expected 10 to 86400: what takes longer than it has failed"))]
    pub progress_deadline_seconds: u32,
    /// What has to be so after each batch, and during its soak.
    #[serde(default)]
    pub gates: Gates,
    /// Business workloads with the agent in their image, and how each is without. Nothing else is touched.
    #[serde(default)]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace", "name"])
    )]
    pub workloads: Vec<Workload>,
    /// What happens when a gate fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// No new step is begun while this is so.
    #[serde(default)]
    pub paused: bool,
    /// Abort leaves everything as it is and ends; RollBack brings everything back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Batches up to this number, counted from 1, are approved by hand (see gates.approval).
    #[serde(default)]
    pub approved: u32,
    /// Failures up to this number were looked at by a person who wants the rollout to go on (`podshm rollout resume`).
    #[serde(default)]
    pub resumed_failures: u32,
    /// Counted by `podshm rollout start` where a rollout that was refused is started again as it is: then the cluster is what was changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
}

fn is_zero(attempt: &u32) -> bool {
    *attempt == 0
}

fn zone() -> String {
    "topology.kubernetes.io/zone".into()
}

fn one() -> u32 {
    1
}

fn minute() -> u32 {
    60
}

fn ten_minutes() -> u32 {
    600
}

/// What is done to nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Purpose {
    /// From an agent in every image to one for each node.
    #[default]
    Convert,
    /// From one version of the node's agents to the next.
    UpgradeAgents,
}

/// A DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
pub struct AgentRef {
    /// Namespace of the DaemonSet.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace: expected the name of a namespace"))]
    pub namespace: String,
    /// Name of the DaemonSet.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message("name: expected the name of a DaemonSet"))]
    pub name: String,
}

impl AgentRef {
    /// `namespace/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Label and taint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct Mark {
    /// Key of both.
    #[schemars(length(max = 317))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$')", "message": "mark.key: expected a label's key, as in AgentsDaemonSet or example.com/agents"}, {"rule": "!self.matches('^([-a-z0-9]+[.])*(kubernetes|k8s)[.]io/')", "message": "mark.key: keys of kubernetes.io and k8s.io are Kubernetes' own; choose another"}]))]
    pub key: String,
    /// Value of both.
    #[schemars(length(max = 63))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$')", "message": "mark.value: expected a label's value, as in \"YES\"; one without is not told apart from another's"}]))]
    pub value: String,
}

impl Default for Mark {
    fn default() -> Self {
        Mark { key: "AgentsDaemonSet".into(), value: "YES".into() }
    }
}

/// Which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Nodes {
    /// Those with these labels.
    pub selector: Selector,
    #[schemars(length(max = 64))]
    /// Without those with these labels. Control planes are never among the nodes unless `selector` names their label.
    pub exclude: Vec<Selector>,
    /// Not these, by name.
    #[schemars(length(max = 5000), inner(length(max = 253)))]
    pub exclude_names: Vec<String>,
}

/// A part of the nodes; one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(has(self.count) ? 1 : 0) + (has(self.percent) ? 1 : 0) + (has(self.selector) ? 1 : 0) == 1")
        .message("a batch has one of count, percent, selector; give it one")
)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// So many nodes, in this batch alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1").message("count: expected 1 or more: a batch of no nodes is none; leave it out"))]
    pub count: Option<u32>,
    /// Nodes until this percentage of all of them is in this batch or one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 100").message("percent: expected 1 to 100, of all nodes, those of the batches before among them"))]
    pub percent: Option<u32>,
    /// Those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)")
        .message("selector: expected at least one label; all nodes are {percent: 100}"))]
    pub selector: Option<Selector>,
}

/// When a gate fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum OnFailure {
    /// Everything stays as it is until somebody has looked.
    #[default]
    Pause,
    /// Everything goes back.
    RollBack,
}

/// An end before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Stop {
    /// What is moved stays moved.
    Abort,
    /// What is moved is moved back.
    RollBack,
}

/// A Deployment with the agent in its pods, and how it is without.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct Workload {
    /// Namespace of the workload.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("namespace: expected the name of a namespace"))]
    pub namespace: String,
    /// Its kind; Deployment is the one that can be moved.
    #[serde(default = "deployment")]
    #[x_kube(validation = Rule::new("self == 'Deployment'")
        .message("kind: a rollout moves Deployments; leave the others out, and change their templates by hand once their nodes are converted"))]
    pub kind: String,
    /// Its name. The slim form is called NAME-slim.
    #[schemars(length(max = 248))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message("name: expected the name of a Deployment"))]
    pub name: String,
    /// How its slim form differs.
    pub slim: Slim,
}

impl Workload {
    /// `namespace/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn deployment() -> String {
    "Deployment".into()
}

/// How a pod template is without the agent. Toleration and node selector for converted nodes are added by themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slim {
    /// Labels that its pods have instead of the fat ones. At least one has to differ from the fat form's selector, and none from a
    /// Service's.
    #[schemars(schema_with = "slim_labels")]
    pub labels: BTreeMap<String, String>,
    /// Containers (init containers too) that go.
    #[serde(default)]
    pub remove_containers: Vec<String>,
    /// Images by container.
    #[serde(default)]
    pub images: BTreeMap<String, String>,
    /// The domain whose volume its containers get, at /run/podshm, and at /dev/shm where `devShm` is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The domain's /dev/shm instead of the pod's own.
    #[serde(default)]
    pub dev_shm: bool,
    /// Anything else, as a JSON merge patch (RFC 7386) on the pod template; applied last.
    #[schemars(schema_with = "anything")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<Value>,
}

fn slim_labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 63},
        "maxProperties": 32,
        "x-kubernetes-validations": [{
            "rule": "self.size() >= 1",
            "message": "slim.labels: expected at least one that differs from the fat form's selector, as in {form: slim}",
        }],
    })
}

fn anything(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true})
}
