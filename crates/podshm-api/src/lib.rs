//! What podshm's parts say to each other about a cluster: the custom resource, and what a node reports. No I/O.

#![forbid(unsafe_code)]

/// The CSI driver's name: of the CSIDriver object, and in pods' volumes.
pub const DRIVER: &str = "podshm.dev";

pub mod bytes;
pub mod crd;
pub mod domain;
pub mod report;
pub mod rollout;
pub mod status;
mod text;

pub use bytes::Bytes;
pub use domain::{DomainSpec, Mechanism, Mode, OlderScheme, PartySpec, ShmDomain, SysvSpec};
pub use status::{Condition, ConditionStatus, DomainStatus, WorstNode};
pub use text::clipped;
