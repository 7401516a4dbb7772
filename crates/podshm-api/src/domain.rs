//! `ShmDomain`: a domain, as the platform's engineers describe it. What is written here is what `kubectl explain` says.
//!
//! ```text
//!  ShmDomain (one in the cluster) ──► podshmd of every node (watches; keeps what it last heard)
//!      ▲ status: sums, conditions, the worst 20 nodes
//!      └── podshm-controller ◄── NodeReport of every node (report.rs)
//! ```

use crate::bytes::Bytes;
use crate::status::DomainStatus;
use kube::{CustomResource, KubeSchema};
use podshm_domain::{Limits, Party, Policy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What members of a domain share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Tables, queues and calls, through the library.
    Channel,
    /// /dev/shm.
    Posix,
    /// System V memory.
    Sysv,
}

/// The ways of before, in which nobody is kept apart from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OlderScheme {
    /// hostIPC, and the node's /dev/shm by hostPath.
    Host,
    /// The agent in the pod itself.
    Sidecar,
}

/// How System V calls reach a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// By the preload library, which the domain's volumes have.
    #[default]
    Preload,
    /// By the kernel, in an IPC namespace of the domain that the container runtime joins (NRI).
    Native,
}

/// Pods of a namespace; of some service accounts of it, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartySpec {
    /// The pods' namespace; `*` is any.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self == '*' || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("expected the name of a namespace, or * for any"))]
    pub namespace: String,
    /// Their service accounts; all of the namespace's where the list is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)))]
    pub service_accounts: Vec<String>,
}

/// A domain's System V memory on a node: how calls reach it, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!isQuantity(self.shmmax) || !isQuantity(self.shmall) || quantity(self.shmmax).compareTo(quantity(self.shmall)) <= 0")
    .message("shmmax is more than shmall: no segment can be larger than all of them together").field_path(".shmmax"))]
pub struct SysvSpec {
    /// How calls reach it. `preload`: by a library that the domain's volumes have and that a pod names in LD_PRELOAD. `native`: by the
    /// kernel, in an IPC namespace of the domain that the container runtime joins; it needs NRI.
    #[serde(default)]
    pub mechanism: Mechanism,
    /// The largest segment, as kernel.shmmax.
    #[serde(default = "shm_size")]
    pub shmmax: Bytes,
    /// All segments together, as kernel.shmall; in bytes here, where the kernel counts pages.
    #[serde(default = "shm_size")]
    pub shmall: Bytes,
    /// How many segments, as kernel.shmmni.
    #[serde(default = "shmmni")]
    #[schemars(range(min = 1, max = 32768), extend("format" = "int32"))]
    pub shmmni: u32,
}

/// A domain: one agent for each node, and the pods of that node that share memory with it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "podshm.dev",
    version = "v1alpha1",
    kind = "ShmDomain",
    plural = "shmdomains",
    shortname = "shmd",
    category = "podshm",
    status = "DomainStatus",
    derive = "PartialEq",
    doc = "ShmDomain is a group of pods that share memory on each node, with one agent that serves them. A pod names a domain, and its role, in the volumeAttributes of an inline csi volume of podshm.dev; whether it may is said here.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63")
        .message("metadata.name: expected 1 to 63 lower-case letters, digits or '-': it is a directory's name on each node, and a label's value"),
    printcolumn(name = "Modes", type_ = "string", json_path = ".spec.modes", description = "What members share."),
    printcolumn(name = "Budget", type_ = "string", json_path = ".spec.budget", description = "All of its regions on a node."),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes", description = "Nodes that have it."),
    printcolumn(name = "Served", type_ = "integer", json_path = ".status.servedNodes", description = "Nodes with an agent that serves it."),
    printcolumn(name = "Clients", type_ = "integer", json_path = ".status.clients", description = "Clients on all nodes."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "Whether every node goes by the domain as it is written."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Degraded')].reason", priority = "1", description = "What is wrong on the worst nodes."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!isQuantity(self.budget) || !isQuantity(self.perPod) || quantity(self.perPod).compareTo(quantity(self.budget)) <= 0")
        .message("perPod is more than budget: one pod's part can't be more than the whole; lower perPod or raise budget").field_path(".perPod"),
    validation = Rule::new("!('posix' in self.modes) || has(self.shmSize)")
        .message("mode posix needs shmSize, the size of the domain's /dev/shm on each node, as in 256Mi").field_path(".modes"),
    validation = Rule::new("!has(self.sysv) || 'sysv' in self.modes")
        .message("sysv bounds mode sysv, which modes does not have; add it there, or remove sysv").field_path(".sysv"),
)]
pub struct DomainSpec {
    /// What members share. `channel`: tables, queues and calls by the podshm library, each pod kept apart from the others by the kernel.
    /// `posix`: one /dev/shm for all members of a node. `sysv`: System V memory for all members of a node. Members of the last two trust
    /// each other.
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("expected at least one of channel, posix, sysv"))]
    pub modes: BTreeSet<Mode>,
    /// All of the domain's regions on a node (mode channel), those of the agent's successor included. The budgets of all domains together
    /// stay below podshmd's memory limit.
    #[serde(default = "budget")]
    pub budget: Bytes,
    /// One pod's part of the budget.
    #[serde(default = "per_pod")]
    pub per_pod: Bytes,
    /// Size of the domain's /dev/shm on a node (mode posix). Another size takes effect on a node once no pod there has the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // Never null: then nobody has to say what that would mean.
    #[schemars(with = "Bytes")]
    pub shm_size: Option<Bytes>,
    /// Bounds of mode sysv. Where it is left out: 64Mi each, 4096 segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SysvSpec")]
    pub sysv: Option<SysvSpec>,
    /// Who may serve the domain, with role agent. Nobody where the list is empty. A change takes effect with the next volume; pods that
    /// have one keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub serve: Vec<PartySpec>,
    /// Who may join the domain, with role member. Nobody where the list is empty. A change takes effect with the next volume; pods that have
    /// one keep it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub join: Vec<PartySpec>,
    /// What pods of this domain still do of the ways of before, while a fleet moves over: a note for people. `host`: hostIPC, and the node's
    /// /dev/shm by hostPath; who may is a value of the chart, admission.hostMemory.allow. `sidecar`: an agent of their own, with a Memory
    /// emptyDir at /dev/shm.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub older_schemes: BTreeSet<OlderScheme>,
}

// With these a domain of any one mode fits into what the chart gives podshmd.
fn budget() -> Bytes {
    Bytes(64 << 20)
}

fn per_pod() -> Bytes {
    Bytes(16 << 20)
}

fn shm_size() -> Bytes {
    Bytes(64 << 20)
}

fn shmmni() -> u32 {
    4096
}

impl Default for SysvSpec {
    /// 256 MiB, all of it in one segment or in 4,096.
    fn default() -> Self {
        SysvSpec { mechanism: Mechanism::default(), shmmax: shm_size(), shmall: shm_size(), shmmni: shmmni() }
    }
}

impl DomainSpec {
    /// Bytes of /dev/shm: what is said, or 256 MiB.
    pub fn shm_bytes(&self) -> u64 {
        self.shm_size.unwrap_or_else(shm_size).0
    }

    /// For the broker.
    pub fn limits(&self) -> Limits {
        Limits { budget: self.budget.0, member_share: self.per_pod.0, ..Limits::default() }
    }

    /// Who may do what.
    pub fn policy(&self) -> Policy {
        let party = |spec: &PartySpec| Party {
            namespace: spec.namespace.clone(),
            service_accounts: spec.service_accounts.clone(),
        };
        Policy { serve: self.serve.iter().map(party).collect(), join: self.join.iter().map(party).collect() }
    }
}
