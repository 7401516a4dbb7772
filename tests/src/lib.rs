//! What the tests that cross crates share: a broker with sockets in a directory of its own.

pub mod attacks;
pub mod conform;
pub mod conformance;
pub mod daemon;
pub mod deliveries;
pub mod gates;
pub mod load;
pub mod many;
pub mod participant;
pub mod pods;
pub mod previous;
pub mod programs;
pub mod raw;
pub mod restarting;
pub mod roles;
pub mod serving;
pub mod work;

use podshm_broker::{Broker, DomainConfig, Identity, Limits, Rights};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A broker, its domain `d`, and a directory that goes with it.
#[derive(Debug)]
pub struct Node {
    /// The broker.
    pub broker: Broker,
    root: PathBuf,
}

/// How long anything may take here.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks without a pause until it is so.
pub fn until(what: &str, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < deadline, "{what} did not happen");
    }
}

/// Domain `d` with a broker that gives its participants the time which a busy machine takes.
pub fn patient() -> DomainConfig {
    DomainConfig { map_deadline: PATIENCE * 3, room_grace: PATIENCE * 3, ..DomainConfig::new("d") }
}

/// Makes the socket directory of a pod and listens there: `agent` pods may serve, others may join.
pub fn add_pod(broker: &Broker, domain: &str, root: &Path, name: &str) {
    let directory = root.join(name);
    std::fs::create_dir_all(&directory).expect("a pod's directory");
    let (namespace, pod, uid, service_account) = ("test".into(), name.into(), name.into(), "default".into());
    let who = Identity { namespace, pod, uid, service_account };
    let serve = name.starts_with("agent");
    broker.add_socket(domain, &directory, who, Rights { join: !serve, serve }).expect("a socket");
}

impl Node {
    /// A broker with one domain `d`.
    pub fn new(limits: Limits) -> Self {
        Self::with(DomainConfig { limits, ..DomainConfig::new("d") })
    }

    /// A broker with this domain, which is named `d`.
    pub fn with(config: DomainConfig) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podshm-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        // A test that was killed may have left one behind, in a process of the same number.
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("a directory for sockets");
        let broker = Broker::start().expect("a broker");
        broker.add_domain(config).expect("a domain");
        Node { broker, root }
    }

    /// The socket directory of a pod, made at its first use; `agent` pods may serve, others may join.
    pub fn pod(&self, name: &str) -> PathBuf {
        let directory = self.root.join(name);
        if !directory.exists() {
            add_pod(&self.broker, "d", &self.root, name);
        }
        directory
    }

    /// Where the sockets are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until the domain's numbers are as `good` says.
    pub fn settle(&self, what: &str, good: impl Fn(&podshm_broker::DomainStats) -> bool) {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let stats = self.broker.stats("d").expect("stats");
            if good(&stats) {
                return;
            }
            assert!(std::time::Instant::now() < until, "{what} did not happen: {stats:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
