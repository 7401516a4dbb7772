//! How far a load has come, said while it runs, stalled or not: to whoever asks from another process of its pod.

use anyhow::Context;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn address() -> std::io::Result<SocketAddr> {
    // Abstract: a pod's root file system is read-only, and the name is its network namespace's own.
    SocketAddr::from_abstract_name(b"podshm-test-counter")
}

/// Of a load's own thread, which adds to it.
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Answers from now on.
    pub fn start() -> anyhow::Result<Self> {
        let listener = UnixListener::bind_addr(&address()?).context("listening for who asks how far it is")?;
        let count = Arc::new(AtomicU64::new(0));
        let said = Arc::clone(&count);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Who has gone by now asks again.
                let _ = write!(stream, "{}", said.load(Ordering::Relaxed));
            }
        });
        Ok(Counter(count))
    }

    pub fn is(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }
}

/// `count`: how far this pod's load has come.
pub fn ask() -> anyhow::Result<()> {
    let mut stream = UnixStream::connect_addr(&address()?).context("asking this pod's load")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut count = String::new();
    stream.read_to_string(&mut count)?;
    println!("{count}");
    Ok(())
}
