//! What an agent is started with, its numbers, and why it can't serve.

use std::{fmt, path::PathBuf, time::Duration};

use crate::HealthConfig;

/// Why the agent can't serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The library said so.
    #[error(transparent)]
    Podshm(#[from] podshm::Error),
    /// There is nothing to serve.
    #[error("expected a list of slices from the source, found none ({found}); look at its path")]
    NoList {
        /// What the source said instead.
        found: String,
    },
    /// The log of deliveries can't be written.
    #[error("log of deliveries {path}: {source}; give a path on a tmpfs with room")]
    Log {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the podshm socket.
    pub socket_dir: PathBuf,
    /// How long to wait for the broker.
    pub timeout: Duration,
    /// What this agent calls itself.
    pub version: String,
    /// Where to log deliveries, if anywhere.
    pub log_delivered: Option<PathBuf>,
    /// When to eject.
    pub health: HealthConfig,
}

impl Config {
    /// Defaults, for a socket in this directory.
    pub fn new(socket_dir: impl Into<PathBuf>) -> Self {
        Self {
            socket_dir: socket_dir.into(),
            timeout: Duration::from_secs(30),
            version: env!("CARGO_PKG_VERSION").into(),
            log_delivered: None,
            health: HealthConfig::default(),
        }
    }
}

/// The agent's numbers. As text they are one line of `name=value`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// What the agent calls itself.
    pub version: String,
    /// How many agents have served, up to this one; 0 before it serves.
    pub epoch: u64,
    /// Clients that are served.
    pub clients: usize,
    /// Records that were delivered.
    pub records: u64,
    /// Routes in the store.
    pub routes: usize,
    /// Events that were applied.
    pub events: u64,
    /// Endpoints that are ejected, once per route.
    pub ejected: usize,
    /// Connections upstream.
    pub upstream: u64,
    /// Records that were no reports.
    pub bad_records: u64,
    /// Slices, events and names that could not be used.
    pub bad_input: u64,
    /// What is known is still so, as far as the source knows.
    pub is_current: bool,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, epoch, clients, records, routes, events, ejected, upstream, .. } = self;
        write!(f, "version={version} epoch={epoch} clients={clients} records={records} routes={routes} ")?;
        write!(f, "events={events} ejected={ejected} upstream={upstream}")
    }
}
