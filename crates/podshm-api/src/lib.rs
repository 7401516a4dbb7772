//! What podshm's parts say to each other about a cluster. No I/O.

#![forbid(unsafe_code)]

pub mod report;
pub mod rollout;
