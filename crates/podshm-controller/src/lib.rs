//! What one process for the whole cluster does.

#![forbid(unsafe_code)]

pub mod daemons;
pub mod domains;
pub mod lease;
pub mod pages;
pub mod probes;
pub mod rollout;
pub mod uninstall;
