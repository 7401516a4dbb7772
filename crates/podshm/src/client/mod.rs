//! The client's side: one join by one process.
//!
//! ```text
//!  Client ─ Arc ─► Shared ── own: C (armed word, cursors); an Outlet per queue, a CallService per call: each behind a
//!                     │        lock that costs the one thread which uses it next to nothing
//!                     │
//!                     └─ link: ArcSwap<Link> ── the serving agent: A, tables, doorbell   ◄── swapped by the
//!                                                                                      library thread
//! ```
//! The library thread owns the broker's socket: it maps what a new agent brings and swaps the link. A handle sees the swap by
//! one cached word. The thread also turns the doorbell into the event descriptor and wakes futures.

mod call;
mod future;
mod inbox;
mod line;
mod link;
mod outlet;
mod queue;
mod table;
mod thread;
mod waiting;

pub use call::{Caller, Pending};
pub use future::CallFuture;
pub use queue::{QueueBatch, QueueSender};
pub use table::{Guard, Key, Reader, Table, TableSnapshot};
pub use waiting::Spin;

use crate::broker_socket::BrokerSocket;
use crate::error::Error;
use crate::wakes::WakeStats;
use arc_swap::ArcSwap;
use inbox::Inbox;
use line::CallService;
use link::Link;
use outlet::Outlet;
use podshm_layout::geometry::{ARMED, NOTICE_AGENT_EPOCH};
use podshm_layout::mem::Load;
use podshm_layout::ring::Producer;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::{Layout, Layouts, PAGE, RegionKind};
use podshm_proto::{Down, RegionIds, ServiceKind, Services, Up, Written};
use podshm_region::biased::Biased;
use podshm_region::{Memory, ReadMap, Window, WriteMap, fork};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waiting::Sleepers;

/// A joined client. Cheap to clone; handles made from it are usable from many threads.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    _thread: Arc<thread::Joined>,
}

/// What this client reads, and what its own region is written at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaks {
    pub(crate) layouts: Layouts,
    pub(crate) own: Layout,
}

/// What handles and the library thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) epoch: u32,
    pub(crate) id: u64,
    pub(crate) domain: String,
    pub(crate) member: String,
    pub(crate) services: Services,
    /// First page of C: armed word and cursor lines.
    pub(crate) own: Window,
    /// By service index.
    queues: BTreeMap<usize, Arc<Biased<Outlet>>>,
    calls: BTreeMap<usize, Arc<CallService>>,
    pub(crate) notice: ReadMap,
    pub(crate) link: ArcSwap<Link>,
    /// Bumped after each swap of the link: the one cached word of every handle.
    pub(crate) version: AtomicU64,
    pub(crate) broker_away: AtomicBool,
    pub(crate) sleepers: Sleepers,
    pub(crate) futures: future::Futures,
    pub(crate) wakes: Mutex<WakeStats>,
    /// Regions that were dropped and are to be named to the broker.
    pub(crate) released: Arc<link::Releaser>,
    pub(crate) event: OwnedFd,
    /// Descriptor of C, to be presented to a broker that restarted.
    pub(crate) _region: Memory,
}

impl Client {
    /// Joins the domain whose socket is in `directory` (in a pod: where the podshm volume is mounted). Waits until `timeout` for
    /// a broker and an agent to be there. Returns when records are accepted.
    pub fn join(directory: impl AsRef<Path>, timeout: Duration) -> Result<Self, Error> {
        Self::join_speaking(Layouts::ALL, directory, timeout)
    }

    /// [`Client::join`] as a release that speaks these memory layouts only would do it; for tests.
    #[doc(hidden)]
    pub fn join_speaking(layouts: Layouts, directory: impl AsRef<Path>, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let mut broker = BrokerSocket::connect(directory.as_ref(), deadline)?;
        broker.hello(false, Vec::new(), layouts)?;
        let thread = thread::prepare()?;
        step::at(Step::JoinConnected);
        let mut received = broker.await_message("an agent to join", deadline)?;
        let Down::Welcome(welcome) = received.message.clone() else {
            return Err(Error::Protocol("the first message must be a welcome".into()));
        };
        step::at(Step::JoinWelcomed);
        let services = Services::check(welcome.services).map_err(|e| Error::Protocol(e.to_string()))?;
        let notice = Memory::from_fd(received.fd("the notice page")?)?;
        let notice = ReadMap::map(&notice, PAGE as u64)?;
        let released = Arc::new(link::Releaser::new()?);

        let mut regions = welcome.regions.into_iter();
        let c = regions.next().ok_or_else(|| Error::Protocol("the client's region is missing".into()))?;
        let memory = Memory::from_fd(received.fd("the client's region")?)?;
        let speaks = Speaks { layouts, own: layouts.parse(c.layout)? };
        let (place, agent) = regions.clone().next().map_or((0, c.layout), |a| (a.owner, a.layout));
        let written = Written { client: speaks.own, agent: layouts.parse(agent)? };
        let geometry = services.channel(welcome.client, place, written).map_err(|e| Error::Protocol(e.to_string()))?;
        if c.kind != RegionKind::Client as u32 || memory.bytes() != geometry.client_bytes {
            let what = format!("client's region of {} bytes, expected {}", memory.bytes(), geometry.client_bytes);
            return Err(Error::Protocol(what));
        }
        let mut map = WriteMap::map(&memory)?;
        step::at(Step::JoinMapped);
        broker.send(Up::Mapped(RegionIds { ids: vec![c.id] }))?;
        step::at(Step::JoinAcknowledged);
        // The broker seals while the rest is mapped.
        let link =
            Link::from_message(&services, regions.collect(), &mut received, welcome.epoch, speaks, &notice, &released)?;
        let own = map.window(0, PAGE);
        let (mut queues, mut calls) = (BTreeMap::new(), BTreeMap::new());
        for (index, (_, kind)) in services.iter().enumerate().filter(|(_, (_, kind))| *kind != ServiceKind::Table) {
            let to_agent = services.ring_to_agent(index);
            let ring = geometry.to_agent[to_agent];
            let producer = Producer::new(map.window(ring.offset as usize, ring.bytes as usize), &ring);
            let outlet = Outlet::new(producer, to_agent, Arc::clone(&link.channel));
            if kind == ServiceKind::Call {
                let answers = services.ring_to_client(index);
                let inbox = Inbox::new(answers, to_agent, &link.channel, &own);
                calls.insert(index, Arc::new(CallService::new(outlet, inbox, answers)));
            } else {
                queues.insert(index, Arc::new(Biased::plain(outlet)));
            }
        }
        // Nothing is accepted before the seal; an agent may take over or a table grow meanwhile.
        let mut early = Vec::new();
        loop {
            let received = broker.await_message("the client's region to be sealed", deadline)?;
            match received.message {
                Down::Sealed(_) => break,
                _ => early.push(received),
            }
        }
        step::at(Step::JoinSealed);
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::system("eventfd")(e.into()))?;
        let shared = Arc::new(Shared {
            epoch: fork::install(),
            id: welcome.client,
            domain: welcome.domain,
            member: welcome.member,
            services,
            own,
            queues,
            calls,
            notice,
            link: ArcSwap::from_pointee(link),
            version: AtomicU64::new(1),
            broker_away: AtomicBool::new(false),
            sleepers: Sleepers::new(ARMED),
            futures: future::Futures::default(),
            wakes: Mutex::default(),
            released,
            event,
            _region: memory,
        });
        let thread = thread.start(Arc::clone(&shared), broker, early, speaks, map)?;
        Ok(Client { shared, _thread: Arc::new(thread) })
    }

    /// This client's number in the domain, as the agent sees it.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The domain's name.
    pub fn domain(&self) -> &str {
        &self.shared.domain
    }

    /// Who this pod is, as the broker knows it: `namespace/pod`.
    pub fn member(&self) -> &str {
        &self.shared.member
    }

    /// How many agents have served this domain so far, by the broker's notice page.
    pub fn agent_epoch(&self) -> Result<u64, Error> {
        self.shared.check_fork()?;
        Ok(self.shared.notice.load(NOTICE_AGENT_EPOCH, Ordering::Acquire))
    }

    /// Whether the agent that this client is linked to has not hung up. Never so in a forked child.
    pub fn agent_present(&self) -> bool {
        self.shared.check_fork().is_ok() && self.shared.link.load().is_alive()
    }

    /// What this client's library thread was woken by.
    pub fn wake_stats(&self) -> WakeStats {
        self.shared.wakes.lock().map_or_else(|poisoned| *poisoned.into_inner(), |stats| *stats)
    }

    /// The table `name`.
    pub fn table(&self, name: &str) -> Result<Table, Error> {
        let service = self.service(name, ServiceKind::Table)?;
        Ok(Table::new(self.clone(), service))
    }

    /// The queue `name`.
    pub fn queue(&self, name: &str) -> Result<QueueSender, Error> {
        let service = self.service(name, ServiceKind::Queue)?;
        Ok(QueueSender::new(self.clone(), Arc::clone(&self.shared.queues[&service])))
    }

    /// The call `name`.
    pub fn call(&self, name: &str) -> Result<Caller, Error> {
        let service = self.service(name, ServiceKind::Call)?;
        let longest = self.shared.services.at(service).map_or(0, |(s, _)| s.longest as usize);
        Ok(Caller::new(self.clone(), Arc::clone(&self.shared.calls[&service]), longest))
    }

    fn service(&self, name: &str, expected: ServiceKind) -> Result<usize, Error> {
        self.shared.check_fork()?;
        match self.shared.services.find(name) {
            Some((index, found)) if found == expected => Ok(index),
            Some((_, found)) => Err(Error::WrongKind { name: name.to_owned(), found, expected }),
            None => {
                let offered: Vec<&str> = self.shared.services.iter().map(|(s, _)| s.name.as_str()).collect();
                let (name, domain) = (name.to_owned(), self.shared.domain.clone());
                Err(Error::NoService { name, domain, offered: offered.join(", ") })
            }
        }
    }
}

impl Shared {
    /// In a process that is registered for barriers: lets pushes and calls go without fences, and a lock's owner without atomics.
    /// Says whether that holds for all; a queue or call that somebody is in is not waited for.
    pub(crate) fn take_part_in_barriers(&self) -> bool {
        self.link.load().channel.lighten();
        let queues = self.queues.values().map(|queue| queue.allow_owner());
        // Every one is asked, whatever those before it said.
        queues.chain(self.calls.values().map(|call| call.allow_owner())).filter(|allowed| !allowed).count() == 0
    }

    /// Refuses to touch the parent's memory. One load.
    #[inline(always)]
    pub(crate) fn check_fork(&self) -> Result<(), Error> {
        if fork::epoch() == self.epoch { Ok(()) } else { Err(forked()) }
    }
}

/// A child that passed the fork handlers by is found out here: it lets go of the parent's sockets now.
#[cold]
pub(crate) fn forked() -> Error {
    fork::leave_parent();
    Error::Forked
}
