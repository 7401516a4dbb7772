//! Describing an agent and connecting it.

use super::answer::Deferral;
use super::clients::Clients;
use super::table::Why;
use super::{Agent, BROKER, DEFERRED};
use crate::absence::Absence;
use crate::broker_socket::{BrokerSocket, Received};
use crate::error::Error;
use podshm_layout::geometry::{RingGeometry, SLEEPER_FENCES};
use podshm_layout::mem::Store;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::{Layouts, PAGE, RegionKind};
use podshm_proto::{Down, Region, RegionIds, Service, Services, Up};
use podshm_region::{Memory, ReadMap, WriteMap, barrier, fork};
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The ring to start with for a queue: 32 KiB, some four hundred records of 64 bytes. Beside a call of [`DEFAULT_CALL_RING`] a client
/// costs its node 72 KiB of regions.
pub const DEFAULT_RING: u32 = 32 * 1024;

/// The ring to start with for a call: 16 KiB each way, more than a hundred requests of 64 bytes in flight. Payloads of 64 KiB and more go
/// faster through a larger one: see the bench.
pub const DEFAULT_CALL_RING: u32 = 16 * 1024;

/// What an agent offers.
#[derive(Clone, Debug, Default)]
pub struct AgentBuilder {
    services: Vec<Service>,
    layouts: Layouts,
}

impl AgentBuilder {
    /// A table with room for `keys` keys whose records take `bytes` in all; it grows when that is not enough.
    pub fn table(mut self, name: &str, keys: u64, bytes: u64) -> Self {
        self.services.push(Service { name: name.into(), kind: 1, keys, bytes, ..Service::default() });
        self
    }

    /// A queue with a ring of `ring` bytes (a power of two from 4,096 on, [`DEFAULT_RING`] to start with) in each client, for records of up to `longest` bytes
    /// (at most half the ring, less 16).
    pub fn queue(mut self, name: &str, ring: u32, longest: u32) -> Self {
        self.services.push(Service { name: name.into(), kind: 2, ring, longest, ..Service::default() });
        self
    }

    /// A call with a ring of `ring` bytes ([`DEFAULT_CALL_RING`] to start with) each way, for requests and responses of up to `longest` bytes
    /// (at most 1 GiB). Longer than a quarter of the ring, they go in fragments. An agent that dies leaves the calls in its hand with an
    /// unknown outcome.
    pub fn call(self, name: &str, ring: u32, longest: u32) -> Self {
        self.call_full(name, ring, longest, false)
    }

    /// [`AgentBuilder::call`] whose requests may be handled twice without harm: a successor repeats what its predecessor may have handled.
    pub fn idempotent_call(self, name: &str, ring: u32, longest: u32) -> Self {
        self.call_full(name, ring, longest, true)
    }

    fn call_full(mut self, name: &str, ring: u32, longest: u32, idempotent: bool) -> Self {
        self.services.push(Service {
            name: name.into(),
            kind: 3,
            ring,
            longest,
            response_ring: ring,
            longest_response: longest,
            idempotent,
            ..Service::default()
        });
        self
    }

    /// Speaks these memory layouts only, as another release would; for tests.
    #[doc(hidden)]
    pub fn layouts(mut self, layouts: Layouts) -> Self {
        self.layouts = layouts;
        self
    }

    /// Connects to the broker whose socket is in `directory`, waiting for it until `timeout`, and maps this agent's regions.
    pub fn connect(self, directory: impl AsRef<Path>, timeout: Duration) -> Result<Agent, Error> {
        Services::offer(self.services.clone())
            .map_err(|e| Error::Refused { kind: podshm_proto::RefusalKind::Services, message: e.to_string() })?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.clone().try_to_connect(directory.as_ref(), deadline) {
                // The broker was started anew in the midst of it, and knows nothing of what is half done.
                Err(error) if error.is_hang_up() && Instant::now() < deadline => {
                    tracing::debug!(%error, "connecting again");
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }

    fn try_to_connect(self, directory: &Path, deadline: Instant) -> Result<Agent, Error> {
        let mut broker = BrokerSocket::connect(directory, deadline)?;
        broker.hello(true, self.services.clone(), self.layouts)?;
        step::at(Step::JoinConnected);
        let mut received = broker.await_message("the broker's welcome", deadline)?;
        let Down::Welcome(welcome) = received.message.clone() else {
            return Err(Error::Protocol("the first message must be a welcome".into()));
        };
        // In the order that the domain counts them in: those of the predecessors come first.
        let services = if welcome.services.is_empty() { self.services } else { welcome.services };
        let services = Services::check(services).map_err(|e| Error::Protocol(e.to_string()))?;
        step::at(Step::JoinWelcomed);
        let notice = Memory::from_fd(received.fd("the notice page")?)?;
        let notice = ReadMap::map(&notice, PAGE as u64)?;
        let system = |what: &'static str| move |e: rustix::io::Errno| Error::system(what)(e.into());
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("epoll_create"))?;
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system("eventfd"))?);
        for (fd, token) in [(broker.as_fd(), BROKER), (event.as_fd(), DEFERRED)] {
            epoll::add(&poll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
                .map_err(system("epoll_ctl"))?;
        }
        let longest =
            services.iter().map(|(s, _)| RingGeometry::most_record(s.ring.max(4096)) as usize).max().unwrap_or(4096);
        let (sender, deferred) = mpsc::channel();
        let mut agent = Agent {
            process: fork::install(),
            broker: Some(broker),
            absence: Absence::new(directory),
            sure: crate::clock::now_coarse(),
            returns: 0,
            held: RefCell::default(),
            said_ready: false,
            layouts: self.layouts,
            notice,
            poll,
            clients: Clients::default(),
            unheard: Vec::new(),
            polled: Vec::new(),
            wakes: crate::wakes::WakeStats::default(),
            timer: None,
            pool: HashMap::new(),
            tables: BTreeMap::new(),
            epoch: u64::MAX,
            state: None,
            state_is_new: false,
            close_asked: false,
            moving: 0,
            rounds: 0,
            spin: Duration::from_micros(50),
            idle: 0,
            idle_since: Instant::now(),
            slept: false,
            first: false,
            first_is_followed: true,
            scratch: vec![0; longest],
            deferral: Deferral { sender, event, out: 0, process: fork::epoch() },
            deferred,
            services,
        };
        // Every table and the first answer regions must be here and sealed before the author fills the tables.
        while agent.tables.len() < agent.services.tables().count()
            || agent.pool.is_empty()
            || agent.tables.values().any(|t| !t.is_sealed())
        {
            let Some(broker) = &mut agent.broker else { return Err(Error::BrokerAway { what: "connecting" }) };
            let received = broker.await_message("this agent's regions", deadline)?;
            agent.follow(received)?;
        }
        Ok(agent)
    }
}

impl Agent {
    pub(super) fn map_for_writing(&mut self, regions: Vec<Region>, received: &mut Received) -> Result<(), Error> {
        let mut ids = Vec::new();
        for region in regions {
            self.layouts.parse(region.layout)?;
            let memory = Memory::from_fd(received.fd("a region to write")?)?;
            if memory.bytes() != region.bytes {
                let message =
                    format!("region {} has {} bytes, the broker said {}", region.id, memory.bytes(), region.bytes);
                return Err(Error::Protocol(message));
            }
            let mut map = WriteMap::map(&memory)?;
            map.touch()?;
            if region.kind == RegionKind::Table as u32 {
                self.new_table_region(region, map, Why::Wanted)?;
            } else {
                // Before any client has the region: it reads this once, when it maps it.
                let fences = u64::from(barrier::global_works());
                map.prepare(|region| region.store(SLEEPER_FENCES, fences, Ordering::Release));
                self.pool.insert(region.id, (region, map));
            }
            self.held.get_mut().insert(region.id, Arc::new(memory));
            ids.push(region.id);
        }
        step::at(Step::JoinMapped);
        self.tell(Up::Mapped(RegionIds { ids }))?;
        step::at(Step::JoinAcknowledged);
        Ok(())
    }

    /// A table that the broker wants to be written once more, at another layout.
    pub(super) fn map_for_rewriting(&mut self, region: Region, received: &mut Received) -> Result<(), Error> {
        self.layouts.parse(region.layout)?;
        let memory = Memory::from_fd(received.fd("a table to write again")?)?;
        if memory.bytes() != region.bytes || region.kind != RegionKind::Table as u32 {
            return Err(Error::Protocol(format!("region {} of kind {} to be rewritten", region.id, region.kind)));
        }
        let map = WriteMap::map(&memory)?;
        map.touch()?;
        self.new_table_region(region, map, Why::Rewritten)?;
        self.held.get_mut().insert(region.id, Arc::new(memory));
        self.tell(Up::Mapped(RegionIds { ids: vec![region.id] }))
    }
}
