//! The client's side: one join by one process.
//!
//! ```text
//!  Client ─ Arc ─► Shared ── offer: an Outlet per queue, a CallService per call, in C: each behind a lock that costs the one
//!                     │        thread which uses it next to nothing; sleepers: the armed word in C
//!                     │
//!                     └─ link: ArcSwap<Link> ── the serving agent: A, tables, doorbell   ◄── swapped by the
//!                                                                                      library thread
//! ```
//! The library thread owns the broker's socket: it maps what a new agent brings and swaps the link. A handle sees the swap by
//! one cached word. The thread also turns the doorbell into the event descriptor and wakes futures.

mod arrivals;
mod call;
mod future;
mod inbox;
mod line;
mod link;
mod moving;
mod outlet;
mod own;
mod queue;
mod spinners;
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
use link::Link;
use own::{Offer, Own};
use podshm_layout::geometry::NOTICE_AGENT_EPOCH;
use podshm_layout::mem::Load;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::{Layout, Layouts, PAGE, RegionKind};
use podshm_proto::{Down, RegionIds, ServiceKind, Services, Up, Written};
use podshm_region::fork::{self, ProcessFd};
use podshm_region::{Memory, ReadMap, WriteMap};
use rustix::event::{EventfdFlags, eventfd};
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
    /// The domain's services, and the ways to them.
    pub(crate) offer: ArcSwap<Offer>,
    pub(crate) notice: ReadMap,
    pub(crate) link: ArcSwap<Link>,
    /// Bumped after each swap of the link: the one cached word of every handle.
    pub(crate) version: AtomicU64,
    pub(crate) broker_away: AtomicBool,
    pub(crate) sleepers: Sleepers,
    pub(crate) futures: future::Futures,
    pub(crate) arrivals: arrivals::Arrivals,
    pub(crate) wakes: Mutex<WakeStats>,
    /// Regions that were dropped and are to be named to the broker.
    pub(crate) released: Arc<link::Releaser>,
    pub(crate) event: ProcessFd,
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
        loop {
            match Self::try_to_join(layouts, directory.as_ref(), deadline) {
                // The broker was started anew in the midst of it, and knows nothing of what is half done.
                Err(error) if error.is_hang_up() && Instant::now() < deadline => {
                    tracing::debug!(%error, "joining again");
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }

    fn try_to_join(layouts: Layouts, directory: &Path, deadline: Instant) -> Result<Self, Error> {
        let mut broker = BrokerSocket::connect(directory, deadline)?;
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
        let own = Arc::new(Own::new(c, speaks.own, memory, &mut map, &released));
        let offer = Offer::default().extended(services, &geometry.to_agent, &mut map, &own, &link.channel)?;
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
            offer: ArcSwap::from_pointee(offer),
            notice,
            link: ArcSwap::from_pointee(link),
            version: AtomicU64::new(1),
            broker_away: AtomicBool::new(false),
            sleepers: Sleepers::new(own),
            futures: future::Futures::default(),
            arrivals: arrivals::Arrivals::default(),
            wakes: Mutex::default(),
            released,
            event: ProcessFd::new(event),
        });
        let broker = thread::Broker { socket: broker, directory, early };
        let thread = thread.start(Arc::clone(&shared), broker, speaks, map)?;
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
        Ok(QueueSender::new(self.clone(), Arc::clone(&self.shared.offer.load().queues[&service])))
    }

    /// The call `name`.
    pub fn call(&self, name: &str) -> Result<Caller, Error> {
        let service = self.service(name, ServiceKind::Call)?;
        let offer = self.shared.offer.load();
        let longest = offer.services.at(service).map_or(0, |(s, _)| s.longest as usize);
        Ok(Caller::new(self.clone(), Arc::clone(&offer.calls[&service]), longest))
    }

    fn service(&self, name: &str, expected: ServiceKind) -> Result<usize, Error> {
        self.shared.check_fork()?;
        let offer = self.shared.offer.load();
        match offer.services.find(name) {
            Some((index, found)) if found == expected => Ok(index),
            Some((_, found)) => Err(Error::WrongKind { name: name.to_owned(), found, expected }),
            None => {
                let offered: Vec<&str> = offer.services.iter().map(|(s, _)| s.name.as_str()).collect();
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
        let offer = self.offer.load();
        let queues = offer.queues.values().map(|queue| queue.allow_owner());
        // Every one is asked, whatever those before it said.
        queues.chain(offer.calls.values().map(|call| call.allow_owner())).filter(|allowed| !allowed).count() == 0
    }

    /// Refuses to touch the parent's memory. One load.
    #[inline(always)]
    pub(crate) fn check_fork(&self) -> Result<(), Error> {
        if self.is_of_this_process() { Ok(()) } else { Err(forked()) }
    }

    /// Whether no fork has made another process of this one since it joined. One load.
    #[inline(always)]
    pub(crate) fn is_of_this_process(&self) -> bool {
        fork::epoch() == self.epoch
    }
}

/// A child that passed the fork handlers by is found out here: it lets go of the parent's sockets now.
#[cold]
#[doc(hidden)]
pub fn forked() -> Error {
    fork::leave_parent();
    Error::Forked
}
