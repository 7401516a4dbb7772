//! Kills, stops, upgrades, roll-backs and squeezes under load, on a schedule that a seed gives; and a verdict from what the participants
//! wrote down themselves.
//!
//! ```text
//!  Schedule ── a fault ──► Node: broker, two agents, clients, each in a pod of its own ── logs ──► Judge ──► Verdict ──► a table
//!  (schedule.rs)           (node.rs, agents.rs, clients.rs, run.rs; roles/)      (entry.rs)  (verdict.rs, gaps.rs)  (table.rs)
//! ```
#![forbid(unsafe_code)]

pub mod agents;
pub mod clients;
pub mod entry;
pub mod gaps;
pub mod node;
pub mod roles;
pub mod run;
pub mod scale;
pub mod schedule;
pub mod table;
pub mod verdict;
