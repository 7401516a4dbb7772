//! A cluster: what podshm needs of it, judged.
//!
//! [`gather`] asks the API server, [`findings`] judges what it said and nothing else.

mod at_once;
mod gather;
mod judge;
mod placed;
mod remedy;
#[cfg(test)]
mod tests;

pub use gather::gather;
pub use judge::findings;

use podshm_api::report::NodeReport;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// podshm's namespace.
    pub namespace: String,
    pub server_version: String,
    pub csi_driver: Option<CsiDriver>,
    /// The level that podshm's namespace enforces; `None` where there is no such namespace.
    pub own_level: Option<String>,
    /// Whether there is podshmd's DaemonSet.
    pub has_daemon_set: bool,
    pub nodes: Vec<Node>,
    /// What shares memory, of the workloads of all namespaces.
    pub workloads: Vec<Workload>,
    /// `None` where the cluster has no such resource.
    pub domains: Option<Vec<Domain>>,
    pub admission: Admission,
    /// RuntimeClasses whose pods have no memory in common with the node: name and handler.
    pub foreign_runtimes: Vec<(String, String)>,
    /// What could not be asked for.
    pub unknown: Vec<String>,
}

/// The CSIDriver object, as far as podshm depends on it.
#[derive(Clone, Debug, Default)]
pub struct CsiDriver {
    pub pod_info: bool,
    pub attach_required: bool,
    pub is_ephemeral: bool,
    /// OpenShift's level for inline volumes of it.
    pub profile: Option<String>,
}

/// A node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    pub is_ready: bool,
    pub kernel: String,
    pub architecture: String,
    pub runtime: String,
    /// Whether its CSINode has the driver.
    pub is_registered: bool,
    /// Why podshmd does not go there by itself, where it does not.
    pub not_for_it: Option<String>,
    pub daemon: Daemon,
}

/// podshmd on a node.
#[derive(Clone, Debug, Default)]
pub enum Daemon {
    #[default]
    Missing,
    /// It does not say that it is ready: why, as far as Kubernetes says.
    NotReady(String),
    /// It is ready, and what it reports could not be had.
    Silent(String),
    Reports(Box<NodeReport>),
}

/// What makes pods that share memory, or such a pod that nothing makes.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// `Kind namespace/name`.
    pub name: String,
    /// What its namespace enforces; empty where nothing.
    pub level: String,
    /// In which way: it decides which levels refuse it.
    pub sharing: Sharing,
    /// The domain that it names.
    pub domain: Option<String>,
    /// Its RuntimeClass.
    pub runtime_class: Option<String>,
}

/// How pods share memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// A volume of the driver: every level lets it through.
    #[default]
    Volume,
    /// hostIPC, or the node's /dev/shm: `baseline` and `restricted` refuse it.
    Host,
}

/// A ShmDomain.
#[derive(Clone, Debug, Default)]
pub struct Domain {
    pub name: String,
    /// System V memory by the kernel: the container runtime has to ask podshmd.
    pub is_native: bool,
    /// Conditions that say that something is wrong: type, reason, message.
    pub complaints: Vec<(String, String, String)>,
}

/// What there is of admission.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Whether the API server has MutatingAdmissionPolicy at v1.
    pub can_mutate: bool,
    /// Names of podshm's policies.
    pub policies: Vec<String>,
}
