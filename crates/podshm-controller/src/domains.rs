//! What ShmDomains look like over all nodes.
//!
//! ```text
//!  podshmd of every node ── /domains ──► ../daemons.rs ──► summary.rs (pure, bounded) ──► status of each ShmDomain, by the leader alone
//! ```
//! Detail stays on the nodes: every change of a ShmDomain goes to every node's daemon, so its status is small whatever the number of nodes, and
//! written at most once in a [`PERIOD`], where something has changed. Nothing else in the API is written.

mod run;
pub mod summary;

pub use run::{PERIOD, run};
