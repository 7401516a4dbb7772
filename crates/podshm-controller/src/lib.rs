//! What one process for the whole cluster does.

#![forbid(unsafe_code)]

pub mod domains;
pub mod lease;
pub mod rollout;
pub mod uninstall;
