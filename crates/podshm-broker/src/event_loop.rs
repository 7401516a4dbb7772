//! The thread, its epoll, its sockets; and the handle that an embedding process holds.

use crate::connections::{Connection, Role};
use crate::descriptors::Reserve;
use crate::liveness::{Liveness, process_token};
use crate::place::Place;
use crate::state::{DomainConfig, DomainStats, State};
use crate::{BrokerError, Identity, Rights};
use podshm_proto::{MAX_MESSAGE, RefusalKind, decode_up};
use podshm_region::fork::{self, ProcessFd};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const COMMAND: u64 = 0;
/// Where the next broker asks this one to give way.
const DOOR: u64 = 1;
/// Messages read from one connection before the next one has its turn.
const TURN: usize = 32;

pub(crate) type Act = Box<dyn FnOnce(&mut Loop) + Send>;

/// How a broker runs.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where it keeps what the next broker needs if this one ends: a directory on a tmpfs that goes with the machine, root's alone. A
    /// broker without one leaves nothing: those who are joined go on, and nobody can rejoin what they share.
    pub state: Option<PathBuf>,
    /// How long participants of the broker before this one may take to come back. Longer than [`BrokerConfig::LEAST_GRACE`].
    pub rejoin_grace: Duration,
}

impl BrokerConfig {
    /// An agent that nothing was heard of may go on for so long: nobody takes over from it before.
    pub const LEAST_GRACE: Duration = Duration::from_secs(2);
}

impl Default for BrokerConfig {
    /// No state, 10 s.
    fn default() -> Self {
        BrokerConfig { state: None, rejoin_grace: Duration::from_secs(10) }
    }
}

/// A running broker. Dropping it ends it; channels that are open go on without it.
#[derive(Debug)]
pub struct Broker {
    process: u32,
    commands: Option<Sender<Act>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker in a thread of this process that leaves nothing to a successor.
    pub fn start() -> Result<Self, BrokerError> {
        Self::start_with(BrokerConfig::default())
    }

    /// Starts a broker in a thread of this process. Where one before it has kept its state, it goes on from there: add the same domains
    /// and sockets, and participants come back by themselves. One that runs there gives way first, and is killed if it does not answer.
    pub fn start_with(config: BrokerConfig) -> Result<Self, BrokerError> {
        let place = config.state.as_deref().map(Place::take).transpose()?;
        let system = |what: &str| {
            let what = what.to_owned();
            move |e: rustix::io::Errno| BrokerError::System { what, source: e.into() }
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system("eventfd"))?;
        let wake = Arc::new(wake);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll_create"))?;
        epoll::add(&poll, &*wake, epoll::EventData::new_u64(COMMAND), epoll::EventFlags::IN)
            .map_err(system("epoll_ctl"))?;
        let (commands, inbox) = channel();
        let mut event_loop = Loop::new(poll, Arc::clone(&wake), inbox);
        event_loop.grace = config.rejoin_grace.max(BrokerConfig::LEAST_GRACE);
        if let Some((place, passed)) = place {
            event_loop.state.begin_from(place.open_ledger()?, passed);
            let door = place.door()?;
            epoll::add(&event_loop.poll, &door, epoll::EventData::new_u64(DOOR), epoll::EventFlags::IN)
                .map_err(system("epoll_ctl"))?;
            (event_loop.place, event_loop.door) = (Some(place), Some(ProcessFd::new(door)));
        }
        let thread = std::thread::Builder::new()
            .name("podshm-broker".into())
            .spawn(move || event_loop.run())
            .map_err(|source| BrokerError::System { what: "starting the broker's thread".into(), source })?;
        Ok(Broker { process: fork::install(), commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Adds a domain.
    pub fn add_domain(&self, config: DomainConfig) -> Result<(), BrokerError> {
        self.ask(move |l| {
            if l.state.domains.contains_key(&config.name) {
                return Err(BrokerError::DomainExists { found: config.name });
            }
            let grace = l.grace;
            l.state.begin_domain(config, grace)?;
            l.state.commit();
            Ok(())
        })?
    }

    /// Ends a domain that nobody has: no pod's socket, no client, no region but its tables. Nothing of it stays, in the ledger either; one
    /// of that name that is added later begins anew.
    pub fn remove_domain(&self, domain: &str) -> Result<(), BrokerError> {
        let name = domain.to_owned();
        self.ask(move |l| {
            let sockets = l.listeners.values().filter(|listener| listener.domain == name).count();
            if sockets != 0 {
                return Err(BrokerError::InUse { found: name, by: format!("{sockets} pods have a socket") });
            }
            l.state.end_domain(&name)?;
            l.state.commit();
            Ok(())
        })?
    }

    /// Listens at `directory/broker.sock` for one pod: whoever connects there *is* `who`. The directory is what the pod gets
    /// mounted; anybody who can reach it may connect, so nobody else may. A socket that was there is replaced.
    pub fn add_socket(&self, domain: &str, directory: &Path, who: Identity, rights: Rights) -> Result<(), BrokerError> {
        let (domain, directory) = (domain.to_owned(), directory.to_owned());
        self.ask(move |l| l.add_socket(domain, &directory, who, rights))?
    }

    /// Stops listening in `directory` and ends the connections that came from there: the pod is gone.
    pub fn remove_socket(&self, directory: &Path) -> Result<(), BrokerError> {
        let directory = directory.to_owned();
        self.ask(move |l| l.remove_socket(&directory))
    }

    /// What a domain holds now.
    pub fn stats(&self, domain: &str) -> Result<DomainStats, BrokerError> {
        let name = domain.to_owned();
        self.ask(move |l| l.state.stats(&name).ok_or(BrokerError::NoDomain { found: name }))?
    }

    /// Bytes of regions that the ledger has of domains which were not added (again), but of this one: nobody's budget counts them.
    pub fn unserved_bytes(&self, except: &str) -> Result<u64, BrokerError> {
        let except = except.to_owned();
        self.ask(move |l| l.state.unserved_bytes(&except))
    }

    /// Domains that the ledger has and that were not added (again).
    pub fn unserved(&self) -> Result<Vec<String>, BrokerError> {
        self.ask(|l| l.state.restored.domains.keys().cloned().collect())
    }

    /// Whether it has ended by itself: another broker was started on its state and has taken over.
    pub fn has_given_way(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn ask<R: Send + 'static>(&self, act: impl FnOnce(&mut Loop) -> R + Send + 'static) -> Result<R, BrokerError> {
        // The thread that answers is in the process that forked.
        if fork::epoch() != self.process {
            return Err(BrokerError::Forked);
        }
        let (answer, answered) = channel();
        let act: Act = Box::new(move |l| drop(answer.send(act(l))));
        self.commands.as_ref().and_then(|c| c.send(act).ok()).ok_or(BrokerError::Stopped)?;
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        answered.recv().map_err(|_| BrokerError::Stopped)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(BrokerError::Forked) = self.ask(|l| l.stop = true) {
            std::mem::forget(self.thread.take());
        }
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Listener {
    socket: ProcessFd,
    path: PathBuf,
    inode: u64,
    domain: String,
    who: Identity,
    rights: Rights,
}

#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) poll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Act>,
    pub(crate) state: State,
    liveness: Liveness,
    listeners: BTreeMap<u64, Listener>,
    last_token: u64,
    pub(crate) stop: bool,
    /// Another broker serves in its place from here on.
    pub(crate) gives_way: bool,
    pub(crate) door: Option<ProcessFd>,
    reserve: Reserve,
    /// Listeners that are not listened to until there is a descriptor for who comes.
    deaf: Vec<u64>,
    grace: Duration,
    /// Behind the state: the ledger is closed first.
    place: Option<Place>,
}

/// Between two looks at what is overdue.
const TICK: Duration = Duration::from_millis(200);
/// A look that comes after more than this comes late: the process was stopped, or had no processor.
const LATE: Duration = Duration::from_secs(1);

impl Loop {
    pub(crate) fn new(poll: OwnedFd, wake: Arc<OwnedFd>, inbox: Receiver<Act>) -> Self {
        let reserve = Reserve::of(&wake);
        Loop {
            poll,
            wake,
            inbox,
            reserve,
            deaf: Vec::new(),
            grace: BrokerConfig::default().rejoin_grace,
            place: None,
            state: State::default(),
            liveness: Liveness::default(),
            listeners: BTreeMap::new(),
            last_token: DOOR,
            stop: false,
            gives_way: false,
            door: None,
        }
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(64);
        let mut buffer = Box::new([0u8; MAX_MESSAGE]);
        let mut checked = Instant::now();
        while !self.stop {
            events.clear();
            let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "epoll_wait failed; the broker ends");
                    return;
                }
            }
            for event in &events {
                let token = event.data.u64();
                if token == COMMAND {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&*self.wake, &mut count);
                    while let Ok(act) = self.inbox.try_recv() {
                        act(self);
                    }
                } else if token == DOOR {
                    self.give_way();
                    if self.stop {
                        return;
                    }
                } else if let Some(conn) = process_token(token) {
                    self.process_died(conn, Instant::now());
                } else if self.listeners.contains_key(&token) {
                    self.accept(token);
                } else {
                    let _ = self.read(token, &mut buffer);
                }
            }
            let passed = checked.elapsed();
            if passed > TICK {
                checked = Instant::now();
                self.state.check_agents(checked);
                self.state.check_clients(checked);
                self.state.expect_longer(passed.saturating_sub(LATE));
                self.state.check_returns(checked, events.is_empty());
                self.check_dead(checked, &mut buffer);
            }
            self.state.commit();
            self.settle();
        }
    }

    fn token(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    fn add_socket(
        &mut self,
        domain: String,
        directory: &Path,
        who: Identity,
        rights: Rights,
    ) -> Result<(), BrokerError> {
        if !self.state.domains.contains_key(&domain) {
            return Err(BrokerError::NoDomain { found: domain });
        }
        let path = directory.join("broker.sock");
        let fail = |source: io::Error| BrokerError::System { what: format!("listening at {}", path.display()), source };
        // Bound under a temporary name and renamed: a client never finds a socket that doesn't listen.
        let temporary = directory.join(format!(".broker.sock.{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| fail(e.into()))?;
        let address = SocketAddrUnix::new(&temporary).map_err(|e| fail(e.into()))?;
        bind(&socket, &address).map_err(|e| fail(e.into()))?;
        // Whoever reaches the directory may connect; the directory is the pod's alone.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&temporary, open).map_err(fail)?;
        listen(&socket, 256).map_err(|e| fail(e.into()))?;
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&temporary).map_err(fail)?);
        std::fs::rename(&temporary, &path).map_err(fail)?;
        let token = self.token();
        epoll::add(&self.poll, &socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
            .map_err(|e| fail(e.into()))?;
        self.state.may_come(&domain, &who, self.grace);
        let socket = ProcessFd::new(socket);
        self.listeners.insert(token, Listener { socket, path, inode, domain, who, rights });
        Ok(())
    }

    fn remove_socket(&mut self, directory: &Path) {
        let path = directory.join("broker.sock");
        let tokens: Vec<u64> = self.listeners.iter().filter(|(_, l)| l.path == path).map(|(t, _)| *t).collect();
        for token in tokens {
            if let Some(listener) = self.listeners.remove(&token) {
                listener.unlink();
                let theirs: Vec<u64> = self
                    .state
                    .connections
                    .values()
                    .filter(|c| c.who == listener.who && c.domain == listener.domain)
                    .map(|c| c.id)
                    .collect();
                for conn in theirs {
                    self.state.end(conn);
                }
            }
        }
    }

    fn accept(&mut self, token: u64) {
        let mut is_one_too_many = false;
        loop {
            let Some(listener) = self.listeners.get(&token) else {
                return;
            };
            let socket = match accept_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) if self.reserve.spend() => {
                    tracing::warn!(member = %listener.who.name(), "no descriptors are left; raise RLIMIT_NOFILE");
                    is_one_too_many = true;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, member = %listener.who.name(), "a connection could not be accepted; its pod waits");
                    // Until there is a descriptor for it: the kernel would say again and again that somebody is at the door.
                    let none = epoll::EventFlags::empty();
                    let _ = epoll::modify(&self.poll, &listener.socket, epoll::EventData::new_u64(token), none);
                    self.deaf.push(token);
                    return;
                }
            };
            let (domain, who, rights) = (listener.domain.clone(), listener.who.clone(), listener.rights);
            // One pod can't use up the broker's descriptors by connecting.
            let theirs = self.state.connections.values().filter(|c| c.who == who && c.domain == domain).count();
            let limit = self.state.domains.get(&domain).map_or(0, |d| d.books.limits().member_clients as usize);
            if theirs > limit + 64 {
                tracing::warn!(member = %who.name(), theirs, "too many connections; the newest is closed");
                continue;
            }
            let id = self.token();
            if epoll::add(&self.poll, &socket, epoll::EventData::new_u64(id), epoll::EventFlags::IN).is_ok() {
                let mut connection = Connection::new(id, socket, domain, who, rights);
                connection.is_one_too_many = std::mem::take(&mut is_one_too_many);
                self.liveness.watch(&self.poll, &mut connection);
                self.state.connections.insert(id, connection);
            }
        }
    }

    /// Reads for one turn; says whether there may be more.
    pub(crate) fn read(&mut self, conn: u64, buffer: &mut [u8; MAX_MESSAGE]) -> bool {
        for _ in 0..TURN {
            let Some(connection) = self.state.connections.get_mut(&conn) else {
                return false;
            };
            if connection.ending {
                return false;
            }
            match connection.receive(buffer) {
                Ok(None) => return false,
                Ok(Some(bytes)) => match decode_up(&buffer[..bytes]) {
                    Ok(message) => self.state.message(conn, message),
                    Err(error) => self.state.reject(conn, RefusalKind::Protocol, error),
                },
                Err(_) => {
                    self.state.end(conn);
                    return false;
                }
            }
        }
        true
    }

    /// Ends what is to end, and asks for writability where something waits.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for connection in self.state.connections.values_mut() {
            let patience = match connection.role {
                Role::New => Duration::from_secs(10),
                Role::Returning(_) => Duration::from_secs(30),
                _ => Duration::MAX,
            };
            let silent = now - connection.since > patience;
            let last_words = *connection.ending_since.get_or_insert(now);
            if !connection.ending {
                connection.ending_since = None;
            }
            // Whoever doesn't read its refusal is not waited for.
            let over = !connection.has_waiting() || now - last_words > Duration::from_millis(500);
            if (connection.ending && over) || silent {
                ended.push(connection.id);
                continue;
            }
            if connection.has_waiting() != connection.wants_out || connection.ending {
                connection.wants_out = connection.has_waiting();
                let out = if connection.wants_out { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
                let token = epoll::EventData::new_u64(connection.id);
                // Nothing more is read from a connection that ends.
                let input = if connection.ending { epoll::EventFlags::empty() } else { epoll::EventFlags::IN };
                let _ = epoll::modify(&self.poll, &connection.socket, token, input | out);
            }
        }
        for conn in ended {
            self.state.end(conn);
        }
        if self.reserve.refill(&self.wake) {
            for token in std::mem::take(&mut self.deaf) {
                if let Some(listener) = self.listeners.get(&token) {
                    let input = epoll::EventFlags::IN;
                    let _ = epoll::modify(&self.poll, &listener.socket, epoll::EventData::new_u64(token), input);
                }
            }
        }
    }
}

impl Listener {
    /// Removes the socket file if it is still this listener's: a successor's stays.
    fn unlink(&self) {
        let ours = std::fs::metadata(&self.path).is_ok_and(|m| std::os::unix::fs::MetadataExt::ino(&m) == self.inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Who comes in between knocks at a closed door, not at none; the next broker puts its own in its place.
        if self.gives_way {
            return;
        }
        for listener in self.listeners.values() {
            listener.unlink();
        }
    }
}
