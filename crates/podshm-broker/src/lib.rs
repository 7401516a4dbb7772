//! The broker: makes regions and hands them out over Unix sockets. It is never on the data path.
//!
//! ```text
//!  Broker (handle) ── commands ──► Loop: one thread, one epoll
//!                                   ├─ listeners: one socket per pod; whoever connects there *is* that pod
//!                                   ├─ connections: read a message, decide, answer
//!                                   └─ State: domains, clients, agents, regions, books
//! ```
#![forbid(unsafe_code)]

mod agents;
mod clients;
mod connections;
mod descriptors;
mod event_loop;
#[doc(hidden)]
pub mod fuzzing;
mod layouts;
mod liveness;
mod moving;
mod regions;
mod state;

pub use event_loop::Broker;
pub use podshm_domain::{Identity, Limits, Rights};
/// Named steps at which a test can stop or kill this process.
#[cfg(feature = "steps")]
pub use podshm_region::steps;
pub use state::{ClientStats, DomainConfig, DomainStats};

/// Why the broker could not do what its owner asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No such domain.
    #[error("no domain {found:?} here; create it first, or check the name")]
    NoDomain {
        /// The name.
        found: String,
    },
    /// The domain is there already.
    #[error("domain {found:?} exists already; remove it first, or use it as it is")]
    DomainExists {
        /// The name.
        found: String,
    },
    /// The notice page could not be made.
    #[error(transparent)]
    Region(#[from] podshm_region::RegionError),
    /// The handle came over a fork.
    #[error("this broker runs in the process that forked; start another one in the child")]
    Forked,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}
