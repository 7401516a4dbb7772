//! The serving agent, as a client sees it: replaced as a whole when another one takes over, or when a table grows.

use crate::broker_socket::Received;
use crate::error::Error;
use podshm_layout::geometry::{ARMED, WAKE};
use podshm_layout::ring::Consumer;
use podshm_layout::table::TableReader;
use podshm_layout::wake::Waker;
use podshm_layout::{PAGE, RegionKind};
use podshm_proto::{Region, Services};
use podshm_region::fork::{self, ProcessFd};
use podshm_region::{Memory, ReadMap};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Collects the numbers of regions that were dropped.
#[derive(Debug)]
pub(crate) struct Releaser {
    epoch: u32,
    pub(crate) ids: Mutex<Vec<u64>>,
    pub(crate) event: OwnedFd,
}

impl Releaser {
    pub(crate) fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::system("eventfd")(e.into()))?;
        Ok(Releaser { epoch: fork::install(), ids: Mutex::default(), event })
    }

    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// A mapped region and its descriptor; dropping it tells the broker.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) map: Option<ReadMap>,
    memory: Option<Memory>,
    id: u64,
    releaser: Arc<Releaser>,
}

impl Mapped {
    pub(crate) fn new(fd: OwnedFd, region: &Region, layout: u32, releaser: &Arc<Releaser>) -> Result<Self, Error> {
        let memory = Memory::from_fd(fd)?;
        let map = ReadMap::map(&memory, region.bytes)?;
        let header = region.header(layout).ok_or_else(|| Error::Protocol(format!("region of kind {}", region.kind)))?;
        header.check(&map).map_err(podshm_region::RegionError::from)?;
        Ok(Mapped { map: Some(map), memory: Some(memory), id: region.id, releaser: Arc::clone(releaser) })
    }

    pub(crate) fn map(&self) -> &ReadMap {
        self.map.as_ref().expect("mapped until dropped")
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // The table readers and ring consumers that clone the mapping are dropped with the link that owns both.
        self.map = None;
        self.memory = None;
        // What a forked child lets go of is the parent's: it is not named to the broker, and a thread that is not here may hold the lock.
        if fork::epoch() != self.releaser.epoch {
            return;
        }
        if let Ok(mut ids) = self.releaser.ids.lock() {
            ids.push(self.id);
        }
        self.releaser.wake();
    }
}

/// One generation of a table.
#[derive(Debug)]
pub(crate) struct TableGeneration {
    pub(crate) reader: TableReader<ReadMap>,
    pub(crate) generation: u64,
    _mapped: Mapped,
}

impl TableGeneration {
    pub(crate) fn new(fd: OwnedFd, region: &Region, layout: u32, releaser: &Arc<Releaser>) -> Result<Self, Error> {
        let geometry = region.table().map_err(podshm_region::RegionError::from)?;
        let mapped = Mapped::new(fd, region, layout, releaser)?;
        let reader = TableReader::new(mapped.map().clone(), geometry);
        Ok(TableGeneration { reader, generation: region.generation, _mapped: mapped })
    }
}

/// A, the tables and the doorbell of one agent.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) epoch: u64,
    /// By service index.
    pub(crate) tables: BTreeMap<usize, Arc<TableGeneration>>,
    pub(crate) channel: Arc<Channel>,
}

/// The part of a link that stays when only a table grows.
#[derive(Debug)]
pub(crate) struct Channel {
    /// First page of A: armed word, wake word, cursor lines.
    pub(crate) head: ReadMap,
    rings: Vec<(ReadMap, podshm_layout::RingGeometry)>,
    pub(crate) waker: Mutex<Waker>,
    alive: AtomicBool,
    pub(crate) doorbell: ProcessFd,
    place: u64,
    _mapped: Mapped,
}

impl Link {
    /// Maps what came with a welcome or with a new agent: A, the tables, and last the doorbell.
    pub(crate) fn from_message(
        services: &Services,
        regions: Vec<Region>,
        received: &mut Received,
        epoch: u64,
        layout: u32,
        releaser: &Arc<Releaser>,
    ) -> Result<Self, Error> {
        let mut answer = None;
        let mut tables = BTreeMap::new();
        for region in &regions {
            let fd = received.fd("a region")?;
            if region.kind == RegionKind::Agent as u32 && answer.is_none() {
                answer = Some((Mapped::new(fd, region, layout, releaser)?, region.owner));
            } else if region.kind == RegionKind::Table as u32 && services.tables().any(|i| i as u64 == region.owner) {
                let table = TableGeneration::new(fd, region, layout, releaser)?;
                tables.insert(region.owner as usize, Arc::new(table));
            } else {
                return Err(Error::Protocol(format!("region of kind {} was not expected here", region.kind)));
            }
        }
        let (mapped, place) = answer.ok_or_else(|| Error::Protocol("the agent's region is missing".into()))?;
        let geometry = services.channel(0, place).map_err(|e| Error::Protocol(e.to_string()))?;
        if podshm_layout::mem::Load::size(mapped.map()) as u64 != geometry.agent_bytes {
            return Err(Error::Protocol(format!("agent's region is not of {} bytes", geometry.agent_bytes)));
        }
        let doorbell = received.fd("the doorbell")?;
        let rings = geometry
            .to_client
            .iter()
            .map(|ring| (mapped.map().part(ring.offset as usize, ring.bytes as usize), *ring))
            .collect();
        let channel = Channel {
            head: mapped.map().part(0, PAGE),
            rings,
            waker: Mutex::new(Waker::at(ARMED)),
            alive: AtomicBool::new(true),
            doorbell: ProcessFd::new(doorbell),
            place,
            _mapped: mapped,
        };
        Ok(Link { epoch, tables, channel: Arc::new(channel) })
    }

    /// The same agent with one table replaced.
    pub(crate) fn with_table(&self, service: usize, table: TableGeneration) -> Link {
        let mut tables = self.tables.clone();
        tables.insert(service, Arc::new(table));
        Link { epoch: self.epoch, tables, channel: Arc::clone(&self.channel) }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.channel.alive.load(Ordering::Acquire)
    }

    pub(crate) fn set_dead(&self) {
        self.channel.alive.store(false, Ordering::Release);
    }
}

impl Channel {
    /// A fresh consumer of the responses of call number `ring`.
    pub(crate) fn responses(&self, ring: usize) -> Consumer<ReadMap> {
        let (map, geometry) = &self.rings[ring];
        Consumer::new(map.clone(), geometry, geometry.start)
    }

    pub(crate) fn response_geometry(&self, ring: usize) -> podshm_layout::RingGeometry {
        self.rings[ring].1
    }

    /// The number that tells this agent's rings from its predecessor's.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    /// After publishing: wakes the agent if it sleeps.
    #[inline]
    pub(crate) fn ring_doorbell(&self, waker: &mut Waker) {
        if waker.check(&self.head).is_some() {
            // Full, or hung up: then the agent is awake, or gone.
            crate::wakes::ring(&self.doorbell);
        }
    }

    /// After reading answers: wakes the agent if its next ones wait for room.
    #[inline]
    pub(crate) fn ring_for_room(&self, waker: &mut Waker) {
        if waker.check_for_room(&self.head) {
            crate::wakes::ring(&self.doorbell);
        }
    }

    pub(crate) fn wake_word(&self) -> u32 {
        podshm_layout::mem::Load::load(&self.head, WAKE, Ordering::Acquire) as u32
    }
}
