//! `podshmd mount-helper`: the one privileged process. It mounts and unmounts what mounts.rs knows, for podshmd's own user alone, at a
//! socket that only podshmd's pod has; it has no token, no port, and runs nothing of what podshmd does otherwise.
//!
//! ```text
//!  podshmd (unprivileged) ── one connection, one Ask as JSON ──► helper ──► mounts.rs
//!                         ◄── Answer as JSON ───────────────────
//! ```

use crate::mounts::{Ask, Found, MountError, Mounts, PodVolume};
use crate::{DRIVER, sockets};
use anyhow::Context;
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Longest message.
const LONGEST: u64 = 4096;
/// How long whoever asks may take to say what.
const SLOWEST: Duration = Duration::from_secs(5);
/// How long the helper is waited for: it is started anew by the kubelet when it ends.
const AWAY: Duration = Duration::from_secs(20);

/// What `podshmd mount-helper` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where it is asked: in a directory of this pod's own.
    #[arg(long, default_value = "/run/podshmd/mount.sock")]
    socket: PathBuf,
    /// podshmd's --root, with mount propagation Bidirectional.
    #[arg(long, default_value = "/run/podshm")]
    root: PathBuf,
    /// The kubelet's --root-dir, its `pods` with mount propagation Bidirectional.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// As which user podshmd runs: nobody else may ask, and its directories are made that user's.
    #[arg(long, default_value_t = 65532)]
    uid: u32,
}

/// What was answered.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(Found),
    Refused(String),
}

/// A helper that listens.
#[derive(Debug)]
pub struct Helper {
    listener: UnixListener,
    mounts: Mounts,
}

/// Serves until it is ended.
pub fn run(options: &Options) -> anyhow::Result<()> {
    for directory in owned(&options.root, &options.kubelet_dir) {
        give(&directory, options.uid).with_context(|| format!("giving {} to podshmd", directory.display()))?;
    }
    let mounts = Mounts {
        root: options.root.clone(),
        pods: options.kubelet_dir.join("pods"),
        stage: options.socket.with_file_name("stage"),
        owner: Some(options.uid),
        is_strict: true,
    };
    let helper = Helper::listen(&options.socket, mounts, options.uid)?;
    drop_privileges().context("dropping what is not needed for mounting")?;
    tracing::info!(socket = %options.socket.display(), "mounting and unmounting for podshmd");
    // It has no more privileges than this one. What it is at work on when the process ends is asked for again.
    std::thread::Builder::new().name("mounts".into()).spawn(move || helper.serve())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        // A container's first process does not end by a signal that it does not ask for.
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => anyhow::Ok(()),
            _ = int.recv() => Ok(()),
        }
    })
}

/// What podshmd writes to: its root, and where the kubelet finds its sockets.
pub fn owned(root: &Path, kubelet_dir: &Path) -> [PathBuf; 3] {
    let below = |name: &str| kubelet_dir.join(name).join(DRIVER);
    [root.to_owned(), below("plugins"), below("plugins_registry")]
}

/// Makes a directory podshmd's own.
fn give(directory: &Path, uid: u32) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let opened = open(directory, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fchown(&opened, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))?)
}

/// Mounting, and looking into directories that are podshmd's alone, is all that it takes from here on.
pub fn drop_privileges() -> rustix::io::Result<()> {
    let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH;
    set_no_new_privs(true)?;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

impl Helper {
    /// Listens for a user: the socket is that user's, and nobody else may write to it.
    pub fn listen(socket: &Path, mounts: Mounts, uid: u32) -> anyhow::Result<Self> {
        let (file, listener) = sockets::listen(socket).with_context(|| format!("listening at {}", socket.display()))?;
        // The next helper takes its place by renaming.
        std::mem::forget(file);
        listener.set_nonblocking(false)?;
        std::os::unix::fs::chown(socket, Some(uid), None).context("giving the socket to podshmd")?;
        Ok(Helper { listener, mounts })
    }

    /// Serves one after the other; whoever is slow holds up nobody but podshmd, whose only this is.
    pub fn serve(&self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.one(stream) {
                        tracing::warn!(%error, "a request was not answered");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "accepting");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    fn one(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SLOWEST))?;
        stream.set_write_timeout(Some(SLOWEST))?;
        let answer = self.answer(&stream);
        if let Answer::Refused(why) = &answer {
            tracing::warn!(why, "refused");
        }
        stream.write_all(&serde_json::to_vec(&answer)?)
    }

    fn answer(&self, stream: &UnixStream) -> Answer {
        let asked = read(stream).and_then(|text| Ok(serde_json::from_slice::<Ask>(&text)?));
        match asked {
            Ok(ask) => match self.mounts.carry_out(&ask) {
                Ok(found) => Answer::Done(found),
                Err(error) => Answer::Refused(error.to_string()),
            },
            Err(error) => Answer::Refused(format!("no request that is known: {error}")),
        }
    }
}

/// A whole message; its writer has shut its side down behind it.
fn read(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let count = stream.take(LONGEST + 1).read_to_end(&mut text)?;
    if count as u64 > LONGEST {
        return Err(io::Error::other(format!("more than {LONGEST} bytes")));
    }
    Ok(text)
}

/// Who mounts for podshmd.
#[derive(Clone, Debug)]
pub enum Mounter {
    /// This process: it is privileged.
    Here(Mounts),
    /// The mount helper, at its socket.
    Helper(PathBuf),
}

impl Mounter {
    /// Waits for the helper.
    pub fn ready(&self) -> Result<(), MountError> {
        let nobody = PodVolume { uid: "none".into(), name: "none".into() };
        self.ask(&Ask::Look { at: nobody }).map(drop)
    }

    /// Has it done.
    pub fn ask(&self, ask: &Ask) -> Result<Found, MountError> {
        match self {
            Mounter::Here(mounts) => mounts.carry_out(ask),
            Mounter::Helper(path) => {
                let unreachable = |source| MountError::Unreachable { path: path.clone(), source };
                let since = Instant::now();
                loop {
                    match ask_at(path, ask) {
                        Ok(Answer::Done(found)) => return Ok(found),
                        Ok(Answer::Refused(said)) => return Err(MountError::Helper { said }),
                        // All that can be asked can be asked again.
                        Err(error) if since.elapsed() > AWAY => return Err(unreachable(error)),
                        Err(_) => std::thread::sleep(Duration::from_millis(100)),
                    }
                }
            }
        }
    }
}

fn ask_at(path: &Path, ask: &Ask) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(AWAY))?;
    stream.write_all(&serde_json::to_vec(ask)?)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(serde_json::from_slice(&read(&stream)?)?)
}
