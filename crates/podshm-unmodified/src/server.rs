//! The daemon's side of the preload library: one thread, one epoll, never on the data path.
//!
//! ```text
//!  member's socket ── a connection per call ──► calls.rs ──► Memory::answer
//!  control.sock    ── run, ls, rm ────────────► desk.rs
//!                                               watch.rs   once a second: what went without a word, what is to be reaped
//! ```

mod calls;
mod desk;
mod watch;

pub use calls::SOCKET;

use crate::alert::Alert;
use crate::answer::Memory;
use crate::events::Pending;
use crate::native::Native;
use crate::place::{Config, Doing, Place, PlaceError, make_directory};
use crate::posix::Posix;
use crate::reaper::{Reaper, Shared};
use crate::store::Store;
use crate::turn::Turn;
use calls::{Listener, Waiting};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const STOP: u64 = 0;
const CONTROL: u64 = 1;
const FIRST: u64 = 2;
/// How often what went without a word is looked for.
const TICK: Duration = Duration::from_secs(1);

/// A running server. It stops when dropped, once whoever has called has an answer; the domain's memory stays.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    reaper: Option<Reaper>,
}

impl Server {
    /// Sets the domain up if it is not there, takes over what a predecessor left, and serves it. Waits for a predecessor that has
    /// not ended yet.
    pub fn start(place: Place, config: Config) -> Result<Self, PlaceError> {
        make_directory(&place.path(""), 0o700)?;
        let turn = Turn::take(&place)?;
        place.set_up(&config)?;
        // In native mode the kernel has the segments, and this stays empty.
        let path = place.path("sysv");
        let store =
            Store::open(&path, config.limits).doing(|| format!("taking over the segments at {}", path.display()))?;
        let path = place.path("shm");
        let idle = Shared::default();
        let told = config.reap_after.map(|_| idle.clone());
        let posix = Posix::open(&path, told).doing(|| format!("opening {}", path.display()))?;
        let reaper = config.reap_after.map(|grace| Reaper::start(&place, grace, idle.clone())).transpose()?;
        let control = place.path("control.sock");
        let listener = bind_and_rename(&control, |path| UnixListener::bind(path), 0o600)
            .doing(|| format!("listening at {}", control.display()))?;
        listener.set_nonblocking(true).doing(|| "preparing the control socket".into())?;
        let setting_up = || "setting up the event loop".to_owned();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(setting_up)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).doing(setting_up)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), readable).doing(setting_up)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(CONTROL), readable).doing(setting_up)?;
        let mut serving = Loop {
            place,
            alert: Alert::at(config.shm_alert_percent),
            config,
            memory: Memory { store, posix, events: Pending::default() },
            native: Native::default(),
            epoll,
            stop: Arc::clone(&stop),
            control: listener,
            next: FIRST,
            listeners: BTreeMap::new(),
            waiting: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            idle,
            _turn: turn,
        };
        // Members that a predecessor served.
        let members = std::fs::read_dir(serving.place.path("members"));
        for member in members.into_iter().flatten().flatten() {
            serving.add_member(&member.file_name().to_string_lossy())?;
        }
        let thread = std::thread::Builder::new()
            .name("podshm-unmodified".into())
            .spawn(move || serving.run())
            .doing(|| "starting the server's thread".into())?;
        Ok(Server { stop, thread: Some(thread), reaper })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.reaper = None;
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds under another name and renames, so that there is no moment without a socket; nobody's socket is ever unlinked.
fn bind_and_rename<T>(path: &Path, bind: impl FnOnce(&Path) -> std::io::Result<T>, mode: u32) -> std::io::Result<T> {
    let next = path.with_extension("next");
    let _ = std::fs::remove_file(&next);
    let socket = bind(&next)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&next, path)?;
    Ok(socket)
}

#[derive(Debug)]
struct Loop {
    place: Place,
    config: Config,
    alert: Alert,
    memory: Memory,
    epoll: OwnedFd,
    stop: Arc<OwnedFd>,
    control: UnixListener,
    next: u64,
    listeners: BTreeMap<u64, Listener>,
    waiting: BTreeMap<u64, Waiting>,
    idle_since: BTreeMap<i32, Instant>,
    idle: Shared,
    native: Native,
    /// The last to go: the next daemon begins when this one has let go of everything.
    _turn: Turn,
}

impl Loop {
    fn run(mut self) {
        let mut ticked = Instant::now();
        loop {
            let came = match self.wait(TICK.saturating_sub(ticked.elapsed())) {
                Ok(came) => came,
                Err(error) => {
                    tracing::error!(%error, "waiting for events");
                    return;
                }
            };
            for id in came {
                match id {
                    STOP => return self.finish(),
                    CONTROL => self.accept_control(),
                    id if self.listeners.contains_key(&id) => self.accept(id),
                    id => self.hear(id),
                }
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick();
            }
        }
    }

    /// Who has something to say; none, where nobody had in that time.
    fn wait(&self, time: Duration) -> rustix::io::Result<Vec<u64>> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let timeout = rustix::event::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok(came) => Ok(events[..came].iter().map(|event| event.data.u64()).collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
