//! What participants do, each in a pod and a process of its own.

pub mod agent;
pub mod broker;
pub mod client;
pub mod many;
pub mod publisher;

use podshm_testkit::SOCKET_DIR_ENV;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Keys of table `values` that are always there.
pub const KEYS: u32 = 16;

/// How long a participant may wait for others: a hang's bound, on a machine that is busy with everything else too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The key of this number.
pub fn key(number: u32) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// Where a participant finds the socket of a domain.
pub fn socket_dir(domain: &str) -> anyhow::Result<PathBuf> {
    let root = std::env::var_os(SOCKET_DIR_ENV)
        .ok_or_else(|| anyhow::anyhow!("{SOCKET_DIR_ENV} is not set: expected to be started in a pod"))?;
    Ok(PathBuf::from(root).join(domain))
}

/// Set by a signal.
#[derive(Clone, Debug)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Set from the first `signal` on.
    pub fn on(signal: i32) -> anyhow::Result<Flag> {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
        Ok(Flag(flag))
    }

    /// Whether it came.
    pub fn is_set(&self) -> bool {
        // Relaxed: nothing else is told by it.
        self.0.load(Ordering::Relaxed)
    }
}
