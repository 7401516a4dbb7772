//! `podshmd nri-relay`: passes bytes between podshmd, which is not root, and the container runtime's socket, which is root's. It understands
//! none of them.
//!
//! ```text
//!  podshmd ── own.sock, in a directory of this pod ──► relay ──► nri.sock of the node
//! ```

use crate::sockets;
use anyhow::Context;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// What `podshmd nri-relay` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where podshmd connects: in a directory of this pod's own.
    #[arg(long, default_value = "/run/podshmd/nri.sock")]
    socket: PathBuf,
    /// The container runtime's.
    #[arg(long, default_value = "/var/run/nri/nri.sock")]
    runtime: PathBuf,
}

/// Serves until it is ended.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let at = &options.socket;
    let (file, listener) = sockets::listen(at).with_context(|| format!("listening at {}", at.display()))?;
    // The next one takes its place by renaming.
    std::mem::forget(file);
    listener.set_nonblocking(false)?;
    // Whoever sees the directory is a container of this pod.
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o666)).context("letting podshmd connect")?;
    let runtime = options.runtime.clone();
    std::thread::Builder::new().name("relay".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = pass(stream, &runtime) {
                tracing::warn!(%error, runtime = %runtime.display(), "the container runtime can't be reached");
            }
        }
    })?;
    let waiting = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    waiting.block_on(async {
        // A container's first process does not end by a signal that it does not ask for.
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => anyhow::Ok(()),
            _ = int.recv() => Ok(()),
        }
    })
}

/// One connection, as long as both ends have it. The next one begins meanwhile: podshmd may have been replaced.
fn pass(podshmd: UnixStream, runtime: &Path) -> io::Result<()> {
    let runtime = UnixStream::connect(runtime)?;
    for (from, to) in [(podshmd.try_clone()?, runtime.try_clone()?), (runtime, podshmd)] {
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            let _ = io::copy(&mut &from, &mut &to);
            // The other direction ends with this one.
            for end in [from, to] {
                let _ = end.shutdown(Shutdown::Both);
            }
        })?;
    }
    Ok(())
}
