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
mod commit;
mod connections;
mod descriptors;
mod event_loop;
#[doc(hidden)]
pub mod fuzzing;
mod layouts;
mod ledger;
mod left_state;
mod liveness;
mod moving;
mod place;
mod regions;
mod rejoin;
mod restore;
mod roster;
mod state;
mod upgrade;

pub use event_loop::{Broker, BrokerConfig};
pub use podshm_domain::{Identity, Limits, Rights};
pub use podshm_proto::RefusalKind;
/// Named steps at which a test can stop or kill this process.
#[cfg(feature = "steps")]
pub use podshm_region::steps;
pub use state::{ClientStats, DomainConfig, DomainStats, SuccessorWaits};

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
    /// Somebody has the domain.
    #[error("domain {found:?} is in use: {by}; it can go when nobody has it any more")]
    InUse {
        /// The name.
        found: String,
        /// By whom.
        by: String,
    },
    /// The notice page could not be made.
    #[error(transparent)]
    Region(#[from] podshm_region::RegionError),
    /// The ledger holds what no broker has written.
    #[error(
        "ledger {}, at byte {at}: {what}; somebody else wrote there. Move it away to begin with empty books: those who are joined go on with what they have, and join anew",
        path.display()
    )]
    Ledger {
        /// The file.
        path: std::path::PathBuf,
        /// Where in it.
        at: u64,
        /// What was found, and expected.
        what: String,
    },
    /// Another broker serves this root.
    #[error("another broker serves {} and does not give way; end it first", root.display())]
    Running {
        /// The root.
        root: std::path::PathBuf,
    },
    /// The handle came over a fork.
    #[error("this broker runs in the process that forked; start another one in the child")]
    Forked,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}
