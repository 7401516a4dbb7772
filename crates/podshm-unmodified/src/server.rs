//! The daemon's side of the preload library: one thread, one epoll, never on the data path.
//!
//! ```text
//!  member's socket ── a connection per call ──► Loop ──► Memory::answer
//!  control.sock    ── run, ls, rm ────────────►  │
//!                                                └─ once a second: what went without a word, what is to be reaped
//! ```

use crate::alert::{Alert, Crossing};
use crate::answer::{Answer, Memory, now};
use crate::control::{LONGEST, Listed, Listing, Question, Response};
use crate::peer::{Peer, started};
use crate::place::{Config, Doing, Place, PlaceError, make_directory};
use crate::posix::Posix;
use crate::reaper::{Reaper, Shared};
use crate::segments::Segment;
use crate::store::Store;
use podshm_preload::wire::{self, HEAD, TAIL, WORDS, Words};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recvmsg,
    sendmsg, socket_with,
};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a member's socket is, in its directory.
pub const SOCKET: &str = "shm.sock";

const STOP: u64 = 0;
const CONTROL: u64 = 1;
const FIRST: u64 = 2;
/// How often what went without a word is looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long somebody may be connected without asking.
const DAWDLING: Duration = Duration::from_secs(10);
/// Connections that have not asked yet.
const WAITING: usize = 1024;

/// A running server. It stops when dropped; the domain's memory stays.
#[derive(Debug)]
pub struct Server {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
    _reaper: Option<Reaper>,
}

impl Server {
    /// Sets the domain up if it is not there, takes over what a predecessor left, and serves it.
    pub fn start(place: Place, config: Config) -> Result<Self, PlaceError> {
        place.set_up(&config)?;
        // In native mode the kernel has the segments, and this stays empty.
        let path = place.path("sysv");
        let store =
            Store::open(&path, config.limits).doing(|| format!("taking over the segments at {}", path.display()))?;
        let path = place.path("shm");
        let idle = Shared::default();
        let told = config.reap_after.map(|_| idle.clone());
        let posix = Posix::open(&path, told).doing(|| format!("opening {}", path.display()))?;
        let reaper =
            config.reap_after.map(|grace| Reaper::start(&config.name, path, grace, idle.clone())).transpose()?;
        let control = place.path("control.sock");
        let listener = replace_socket(&control, |path| UnixListener::bind(path), 0o600)
            .doing(|| format!("listening at {}", control.display()))?;
        listener.set_nonblocking(true).doing(|| "preparing the control socket".into())?;
        let setting_up = || "setting up the event loop".to_owned();
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).doing(setting_up)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).doing(setting_up)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), readable).doing(setting_up)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(CONTROL), readable).doing(setting_up)?;
        let mut serving = Loop {
            place,
            alert: Alert::at(config.shm_alert_percent),
            config,
            memory: Memory { store, posix },
            epoll,
            control: listener,
            next: FIRST,
            listeners: BTreeMap::new(),
            waiting: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            idle,
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
        Ok(Server { stop, thread: Some(thread), _reaper: reaper })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds under another name and renames, so that there is no moment without a socket; nobody's socket is ever unlinked.
fn replace_socket<T>(path: &Path, bind: impl FnOnce(&Path) -> std::io::Result<T>, mode: u32) -> std::io::Result<T> {
    let next = path.with_extension("next");
    let _ = std::fs::remove_file(&next);
    let socket = bind(&next)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&next, path)?;
    Ok(socket)
}

#[derive(Debug)]
struct Listener {
    member: String,
    /// Runs under this name.
    users: u32,
    socket: OwnedFd,
}

#[derive(Debug)]
struct Waiting {
    member: String,
    socket: OwnedFd,
    since: Instant,
}

#[derive(Debug)]
struct Loop {
    place: Place,
    config: Config,
    alert: Alert,
    memory: Memory,
    epoll: OwnedFd,
    control: UnixListener,
    next: u64,
    listeners: BTreeMap<u64, Listener>,
    waiting: BTreeMap<u64, Waiting>,
    idle_since: BTreeMap<i32, Instant>,
    idle: Shared,
}

impl Loop {
    fn run(mut self) {
        let mut ticked = Instant::now();
        loop {
            let mut events =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
            let left = TICK.saturating_sub(ticked.elapsed());
            let timeout =
                rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let came = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
                Ok(came) => came,
                Err(Errno::INTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "waiting for events");
                    return;
                }
            };
            for event in &events[..came] {
                match event.data.u64() {
                    STOP => return,
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

    fn tick(&mut self) {
        self.waiting.retain(|_, waiting| waiting.since.elapsed() < DAWDLING);
        self.memory.store.sweep(now());
        self.reap();
        self.watch_fill();
    }

    fn watch_fill(&mut self) {
        let Ok(fill) = self.place.fill() else { return };
        let (domain, percent, level) = (&self.config.name, fill.percent(), self.config.shm_alert_percent);
        match self.alert.look(&fill) {
            Some(Crossing::Rose) => tracing::warn!(
                domain,
                percent,
                level,
                used = fill.used,
                size = fill.size,
                files = fill.inodes_used,
                of = fill.inodes,
                "the domain's /dev/shm is filling up; once it is full ftruncate is ENOSPC over the preload, and a touch is \
                 SIGBUS without it: see `podshm ls`, remove what is left with `podshm rm`"
            ),
            Some(Crossing::Fell) => tracing::info!(domain, percent, level, "the domain's /dev/shm has room again"),
            None => {}
        }
    }

    /// Names, ages and, after the domain's grace, removes what nobody will come back to.
    fn reap(&mut self) {
        let Some(grace) = self.config.reap_after else { return };
        let all: Vec<Segment> = self.memory.store.segments().all().cloned().collect();
        self.idle_since.retain(|id, _| all.iter().any(|segment| segment.id == *id));
        for segment in all {
            if !creator_gone(&segment) || self.memory.store.count(segment.id, now()) > 0 {
                self.idle_since.remove(&segment.id);
                continue;
            }
            let since = *self.idle_since.entry(segment.id).or_insert_with(|| {
                let creator = &segment.creator;
                tracing::info!(
                    domain = self.config.name,
                    id = segment.id,
                    key = segment.key,
                    size = segment.size,
                    member = creator.member,
                    pid = creator.pid,
                    grace,
                    "a segment has neither its creator nor an attachment"
                );
                Instant::now()
            });
            if since.elapsed() >= Duration::from_secs(grace) {
                tracing::warn!(domain = self.config.name, id = segment.id, size = segment.size, "a segment was reaped");
                self.memory.store.remove_by_force(segment.id);
                self.idle_since.remove(&segment.id);
            }
        }
    }

    fn add_member(&mut self, member: &str) -> Result<(), PlaceError> {
        if let Some(known) = self.listeners.values_mut().find(|listener| listener.member == member) {
            known.users += 1;
            return Ok(());
        }
        let directory = self.place.member(member);
        make_directory(&directory, 0o755)?;
        let path = directory.join(SOCKET);
        let listening = |path: &Path| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            bind(&socket, &SocketAddrUnix::new(path)?)?;
            listen(&socket, 1024)?;
            Ok(socket)
        };
        let socket = replace_socket(&path, listening, 0o666).doing(|| format!("listening at {}", path.display()))?;
        let id = self.next;
        self.next += 1;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN)
            .doing(|| "watching a member's socket".into())?;
        self.listeners.insert(id, Listener { member: member.to_owned(), users: 1, socket });
        Ok(())
    }

    fn remove_member(&mut self, member: &str) {
        let Some(listener) = self.listeners.values_mut().find(|listener| listener.member == member) else { return };
        listener.users -= 1;
        if listener.users == 0 {
            self.listeners.retain(|_, listener| listener.member != member);
            let _ = std::fs::remove_dir_all(self.place.member(member));
        }
    }

    fn accept(&mut self, id: u64) {
        while let Some(listener) = self.listeners.get(&id) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&listener.socket, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    tracing::error!(member = listener.member, %error, "a call could not be taken");
                    return;
                }
            };
            let member = listener.member.clone();
            if self.serve(&member, &socket) {
                continue;
            }
            if self.waiting.len() >= WAITING {
                self.waiting.pop_first();
            }
            let id = self.next;
            self.next += 1;
            if epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_ok() {
                self.waiting.insert(id, Waiting { member, socket, since: Instant::now() });
            }
        }
    }

    fn hear(&mut self, id: u64) {
        if let Some(waiting) = self.waiting.remove(&id) {
            self.serve(&waiting.member, &waiting.socket);
        }
    }

    /// Answers what was asked; false if nothing has been asked yet.
    fn serve(&mut self, member: &str, socket: &OwnedFd) -> bool {
        let mut bytes = [0u8; HEAD + TAIL];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        };
        let mut fd = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.into_iter().next().or(fd);
            }
        }
        if received.bytes < HEAD || received.flags.contains(ReturnFlags::TRUNC) {
            return true; // no such message; whoever sent it gets no answer
        }
        let mut words: Words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        let Some(operation) = wire::operation(&words) else { return true };
        let answer = Peer::of(socket, member, words[4] as i32)
            .and_then(|peer| self.memory.answer(&peer, &words, &bytes[HEAD..received.bytes], fd));
        let (answer, result) = match answer {
            Ok(answer) => (answer, None),
            Err(error) => (Answer::default(), Some(-i64::from(error.raw_os_error()))),
        };
        let reply = wire::reply(operation, result.unwrap_or(answer.result), answer.values);
        let head: Vec<u8> = reply.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::FORK_BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            tracing::error!("a reply with {} descriptors did not fit", fds.len());
            return true;
        }
        let parts = [IoSlice::new(&head), IoSlice::new(&answer.tail)];
        // A caller that has gone away needs no answer; the locks of its descriptors go with the message.
        let _ = sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        true
    }

    fn accept_control(&mut self) {
        while let Ok((stream, _)) = self.control.accept() {
            // Root's alone, and short: it may wait a moment.
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
            let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
            if let Err(error) = self.converse(&stream) {
                tracing::warn!(%error, "a conversation over the control socket");
            }
        }
    }

    fn converse(&mut self, stream: &UnixStream) -> std::io::Result<()> {
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST as u64)).read_line(&mut line)?;
        let response = match serde_json::from_str(&line) {
            Ok(question) => self.respond(question),
            Err(error) => Response::Refused(format!("expected a question of this release's podshm: {error}")),
        };
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        let mut stream = stream;
        stream.write_all(&line)
    }

    fn respond(&mut self, question: Question) -> Response {
        match question {
            Question::AddMember(member) => match self.add_member(&member) {
                Ok(()) => {
                    tracing::info!(
                        domain = self.config.name,
                        member,
                        "a member; System V calls that do not come through the library (static programs, raw calls) are an \
                         errno in it: its own IPC namespace has shmmni, shmall, sem and msgmni of 0"
                    );
                    Response::Done
                }
                Err(error) => Response::Refused(error.to_string()),
            },
            Question::RemoveMember(member) => {
                self.remove_member(&member);
                Response::Done
            }
            Question::Idle => Response::Idle(self.idle.idle()),
            Question::List => Response::Listing(self.list()),
            Question::Remove(id, force) => self.remove(id, force),
            Question::NotStarted(member, why) => {
                tracing::warn!(domain = self.config.name, member, why, "a member was not started");
                Response::Done
            }
        }
    }

    fn remove(&mut self, id: i32, force: bool) -> Response {
        let attached = self.memory.store.count(id, now());
        if self.memory.store.segments().find(id).is_err() {
            return Response::Refused(format!("no segment {id} here; `podshm ls` shows those that are"));
        }
        if attached > 0 && !force {
            return Response::Refused(format!(
                "segment {id} is attached {attached} times; end those programs, or remove it with --force: they keep what they have mapped"
            ));
        }
        self.memory.store.remove_by_force(id);
        Response::Done
    }

    fn list(&mut self) -> Listing {
        self.memory.store.sweep(now());
        let all: Vec<Segment> = self.memory.store.segments().all().cloned().collect();
        let listed = |segment: Segment| Listed {
            id: segment.id,
            key: segment.key,
            size: segment.size,
            uid: segment.owned.uid,
            mode: segment.owned.mode,
            attached: self.memory.store.count(segment.id, now()),
            creator: format!("{}:{}", segment.creator.member, segment.creator.pid),
            creator_gone: creator_gone(&segment),
            idle_seconds: self.idle_since.get(&segment.id).map(|since| since.elapsed().as_secs()),
        };
        let segments = all.into_iter().map(listed).collect();
        Listing {
            config: self.config.clone(),
            fill: self.place.fill().ok(),
            pages: self.memory.store.segments().pages(),
            segments,
            members: self.listeners.values().map(|listener| listener.member.clone()).collect(),
        }
    }
}

fn creator_gone(segment: &Segment) -> bool {
    started(segment.creator.node_pid) != Some(segment.creator.started)
}
