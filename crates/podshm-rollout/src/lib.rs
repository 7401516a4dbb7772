//! What a gray rollout does next. No I/O: the cluster as it is seen goes in, actions come out.
//!
//! ```text
//!  AgentRollout ─┐                       ┌─► actions (label a node, scale a workload, …)
//!                ├─► step(rollout, world)┤
//!  World ────────┘                       └─► the rollout's next status
//! ```
//! Nothing is remembered between two steps but what the cluster itself holds: a node's state is in its annotation, a workload's in
//! its own, the rollout's in its status. So a controller may be killed between any two actions; the next one looks and goes on.
//!
//! A node's way:
//! ```text
//!  Pending → Preparing → AgentReady → Verifying → Migrating → Soaking → Done
//!     └► Skipped   └──────────┴──────────┴──► Failed      any of them → RolledBack
//! ```

#![forbid(unsafe_code)]

mod action;
mod batches;
mod capacity;
mod forms;
mod gates;
mod health;
mod moves;
mod nodes;
mod plan;
mod quantity;
mod seen;
mod shared;
mod step;
mod world;

pub use action::{Action, Asked, Change};
pub use batches::{assign, eligible};
pub use capacity::is_wanted;
pub use forms::{FormError, join, slim_form, slim_name};
pub use plan::{Finding, Move, Plan, PlannedBatch, plan};
pub use shared::{All, ByName};
pub use step::{Step, step};
pub use world::{BadQuery, FormPods, World};
