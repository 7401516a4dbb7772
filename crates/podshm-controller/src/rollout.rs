//! Carries out [`podshm_api::rollout::AgentRollout`]s: what is to be done is decided in `podshm-rollout`; here the cluster is watched, and
//! it is done.
//!
//! ```text
//!   watches ──► stores ──► World ──► podshm_rollout::step ──► status, then actions
//!      ▲                                                            │
//!      └────────────────────── API server ◄─────────────────────────┘
//! ```
//! One step at a time for each rollout, and none before the API server has shown what the last one wrote to the rollout.

mod act;
mod outside;
mod rights;
mod run;
mod tell;
mod view;

pub use run::run;
pub use view::{Stores, look};
