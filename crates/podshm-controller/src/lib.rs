//! What one process for the whole cluster does.

#![forbid(unsafe_code)]

pub mod rollout;
