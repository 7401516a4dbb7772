//! Where the cluster is: one directory, a few addresses.

use std::path::{Path, PathBuf};

/// Overrides the directory. It may not be below /run, /var/lib or /var/log: nodes have their own there.
pub const DIRECTORY_ENV: &str = "PODSHM_CLUSTER_DIR";

/// Nodes that there always are.
pub const NODES: [&str; 2] = ["a", "b"];
/// How many nodes there are: 2, or not set, to 5; 0 is a control plane alone, whose nodes somebody simulates.
pub const NODES_ENV: &str = "PODSHM_CLUSTER_NODES";

/// All nodes of this cluster.
pub fn nodes() -> &'static [&'static str] {
    const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];
    let Some(said) = std::env::var_os(NODES_ENV).filter(|said| !said.is_empty()) else { return &ALL[..NODES.len()] };
    match said.to_str().and_then(|said| said.parse::<usize>().ok()) {
        Some(count @ (0 | 2..=5)) => &ALL[..count],
        _ => panic!("{NODES_ENV}: expected 0, or 2 to 5, found {said:?}"),
    }
}
/// Which cluster this is of several on one machine: 0, or not set, to 9.
pub const INSTANCE_ENV: &str = "PODSHM_CLUSTER_INSTANCE";

/// 0 unless the environment says otherwise.
pub(crate) fn instance() -> u32 {
    let Some(said) = std::env::var_os(INSTANCE_ENV).filter(|said| !said.is_empty()) else { return 0 };
    match said.to_str().and_then(|said| said.parse().ok()) {
        Some(instance @ 0..=9) => instance,
        _ => panic!("{INSTANCE_ENV}: expected 0 to 9, found {said:?}"),
    }
}

/// What everything of the cluster is called where the machine sees it: cgroups, the host's interface (15 bytes at most).
pub fn name() -> String {
    match instance() {
        0 => "podshm-cluster".into(),
        instance => format!("podshm-cluster{instance}"),
    }
}

// 198.18.0.0/15 is for tests of this kind: nobody routes it.
/// The host's end of the link to the control plane.
pub fn host() -> String {
    format!("198.18.0.{}", instance() * 4 + 1)
}
/// The control plane's end.
pub fn control() -> String {
    format!("198.18.0.{}", instance() * 4 + 2)
}
/// The control plane on the nodes' bridge.
pub const BRIDGE: &str = "198.18.1.1";
/// Services' addresses. The first is the API server's: it listens there itself, so that no proxy is needed for it.
pub const SERVICES: &str = "198.18.2.0/24";
/// The API server as pods find it.
pub const API_SERVICE: &str = "198.18.2.1";

/// Where a registry listens, if there is one; without TLS.
pub const REGISTRY_PORT: u16 = 5000;
/// It, as the host calls it: in the names of images, too.
pub fn registry() -> String {
    format!("{}:{REGISTRY_PORT}", control())
}

/// A node's address.
pub fn node_address(index: usize) -> String {
    format!("198.18.1.{}", 11 + index)
}

/// A node's pods: network, and the gateway in it.
pub fn pod_network(index: usize) -> (String, String) {
    (format!("198.18.{}.0/24", 16 + index), format!("198.18.{}.1", 16 + index))
}

/// The cluster's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Default for Place {
    fn default() -> Self {
        Self::here()
    }
}

impl Place {
    /// As the environment says; /var/tmp/podshm-cluster otherwise.
    pub fn here() -> Self {
        Place(std::env::var_os(DIRECTORY_ENV).map_or_else(|| PathBuf::from("/var/tmp").join(name()), PathBuf::from))
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Something in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A node's part of it.
    pub fn node(&self, node: &str) -> PathBuf {
        self.0.join("nodes").join(node)
    }

    /// A program's log.
    pub fn log(&self, program: &str) -> PathBuf {
        self.0.join("logs").join(format!("{program}.log"))
    }

    /// Where the pid of a set of namespaces is written: the control plane's, or a node's.
    pub fn pid_file(&self, set: &str) -> PathBuf {
        self.0.join(format!("{set}.pid"))
    }

    /// There once a set has its interfaces and routes.
    pub fn network_file(&self, set: &str) -> PathBuf {
        self.0.join(format!("{set}.network"))
    }

    /// For kubectl and tests.
    pub fn kubeconfig(&self) -> PathBuf {
        Foreign::cluster().map_or_else(|| self.0.join("kubeconfig"), |foreign| foreign.kubeconfig)
    }
}

/// Names the kubeconfig of a cluster that is not ours, which tests run on instead. `scripts/cluster.sh` sets it of KUBECONFIG.
pub const FOREIGN_ENV: &str = "PODSHM_FOREIGN_KUBECONFIG";
/// Where images are pushed to, and that cluster's nodes pull them from: `registry.example/team`.
pub const REGISTRY_ENV: &str = "IMAGE_REGISTRY";

/// A cluster that somebody else has brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// How to reach it.
    pub kubeconfig: PathBuf,
    /// Where its images are.
    pub registry: String,
}

impl Foreign {
    /// The one that the environment names, if any.
    pub fn cluster() -> Option<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let kubeconfig = set(FOREIGN_ENV)?.into();
        let registry = set(REGISTRY_ENV);
        let registry =
            registry.unwrap_or_else(|| panic!("{FOREIGN_ENV} is set, and {REGISTRY_ENV} says of no registry"));
        Some(Foreign { kubeconfig, registry: registry.trim_end_matches('/').to_owned() })
    }
}
