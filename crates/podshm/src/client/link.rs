//! The serving agent, as a client sees it: replaced as a whole when another one takes over, or when a table grows.

use super::Speaks;
use crate::broker_socket::Received;
use crate::error::Error;
use podshm_layout::cursor::CursorLine;
use podshm_layout::geometry::{ARMED, NOTICE_AGENT_EPOCH, SLEEPER_FENCES, WAKE};
use podshm_layout::mem::Load;
use podshm_layout::ring::Consumer;
use podshm_layout::step::{self, Step};
use podshm_layout::table::TableReader;
use podshm_layout::wake::Waker;
use podshm_layout::{PAGE, RegionKind};
use podshm_proto::{Region, Services, Stood, Written};
use podshm_region::fork::{self, ProcessFd};
use podshm_region::{Memory, ReadMap, barrier};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Collects the numbers of regions that were dropped.
#[derive(Debug)]
pub(crate) struct Releaser {
    epoch: u32,
    pub(crate) ids: Mutex<Vec<u64>>,
    /// Every region that is held here, to be presented to a broker that was started anew.
    held: Mutex<BTreeMap<u64, Arc<Memory>>>,
    pub(crate) event: OwnedFd,
}

impl Releaser {
    /// What is held now.
    pub(crate) fn held(&self) -> BTreeMap<u64, Arc<Memory>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn new() -> Result<Self, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::system("eventfd")(e.into()))?;
        Ok(Releaser { epoch: fork::install(), ids: Mutex::default(), held: Mutex::default(), event })
    }

    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// Names a region to the broker as let go when it is dropped: the last field of whatever has the mapping.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) id: u64,
    releaser: Arc<Releaser>,
}

impl Named {
    pub(crate) fn new(id: u64, memory: Memory, releaser: &Arc<Releaser>) -> Self {
        releaser.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(memory));
        Named { id, releaser: Arc::clone(releaser) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // What a forked child lets go of is the parent's: it is not named to the broker, and a thread that is not here may hold the lock.
        if fork::epoch() != self.releaser.epoch {
            return;
        }
        drop(self.releaser.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id));
        if let Ok(mut ids) = self.releaser.ids.lock() {
            ids.push(self.id);
        }
        self.releaser.wake();
    }
}

/// A mapped region and its descriptor; dropping it tells the broker. The table readers and ring consumers that clone the mapping are
/// dropped with the link that owns both.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) map: ReadMap,
    named: Named,
}

impl Mapped {
    pub(crate) fn new(fd: OwnedFd, region: &Region, speaks: Speaks, releaser: &Arc<Releaser>) -> Result<Self, Error> {
        speaks.layouts.parse(region.layout)?;
        let memory = Memory::from_fd(fd)?;
        let map = ReadMap::map(&memory, region.bytes)?;
        let header = region.header().ok_or_else(|| Error::Protocol(format!("region of kind {}", region.kind)))?;
        header.check(&map).map_err(podshm_region::RegionError::from)?;
        Ok(Mapped { map, named: Named::new(region.id, memory, releaser) })
    }
}

/// One generation of a table.
#[derive(Debug)]
pub(crate) struct TableGeneration {
    pub(crate) reader: TableReader<ReadMap>,
    pub(crate) generation: u64,
    mapped: Mapped,
}

impl TableGeneration {
    /// Its region's number.
    pub(crate) fn region(&self) -> u64 {
        self.mapped.named.id
    }

    pub(crate) fn new(fd: OwnedFd, region: &Region, speaks: Speaks, releaser: &Arc<Releaser>) -> Result<Self, Error> {
        let geometry = region.table().map_err(podshm_region::RegionError::from)?;
        let mapped = Mapped::new(fd, region, speaks, releaser)?;
        let reader = TableReader::new(mapped.map.clone(), geometry);
        Ok(TableGeneration { reader, generation: region.generation, mapped })
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
    /// Where in it the cursors of each ring to the agent are.
    cursors: Vec<CursorLine>,
    /// The agent makes processes that are registered for it go through a fence before it sleeps …
    fences: bool,
    /// … and this one is.
    light: AtomicBool,
    alive: AtomicBool,
    pub(crate) doorbell: ProcessFd,
    place: u64,
    epoch: u64,
    notice: ReadMap,
    mapped: Mapped,
}

impl Link {
    /// Maps what came with a welcome or with a new agent: A, the tables, and last the doorbell.
    pub(crate) fn from_message(
        services: &Services,
        regions: Vec<Region>,
        received: &mut Received,
        epoch: u64,
        speaks: Speaks,
        notice: &ReadMap,
        releaser: &Arc<Releaser>,
    ) -> Result<Self, Error> {
        let mut answer = None;
        let mut tables = BTreeMap::new();
        for region in &regions {
            let fd = received.fd("a region")?;
            if region.kind == RegionKind::Agent as u32 && answer.is_none() {
                let agent = speaks.layouts.parse(region.layout)?;
                answer = Some((Mapped::new(fd, region, speaks, releaser)?, region.owner, agent, services.of(region)));
            } else if region.kind == RegionKind::Table as u32 && services.tables().any(|i| i as u64 == region.owner) {
                let table = TableGeneration::new(fd, region, speaks, releaser)?;
                tables.insert(region.owner as usize, Arc::new(table));
            } else {
                return Err(Error::Protocol(format!("region of kind {} was not expected here", region.kind)));
            }
        }
        let (mapped, place, agent, offered) =
            answer.ok_or_else(|| Error::Protocol("the agent's region is missing".into()))?;
        // It has cursors and rings for the services that its agent offers.
        let geometry = offered
            .channel(0, place, Written { client: speaks.own, agent })
            .map_err(|e| Error::Protocol(e.to_string()))?;
        if mapped.map.size() as u64 != geometry.agent_bytes {
            return Err(Error::Protocol(format!("agent's region is not of {} bytes", geometry.agent_bytes)));
        }
        let doorbell = received.fd("the doorbell")?;
        let rings = geometry
            .to_client
            .iter()
            .map(|ring| (mapped.map.part(ring.offset as usize, ring.bytes as usize), *ring))
            .collect();
        let head = mapped.map.part(0, PAGE);
        let fences = head.load(SLEEPER_FENCES, Ordering::Acquire) == 1;
        let channel = Channel {
            head,
            cursors: geometry.to_agent.iter().map(podshm_layout::RingGeometry::cursor_line).collect(),
            rings,
            fences,
            light: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            doorbell: ProcessFd::new(doorbell),
            place,
            epoch,
            notice: notice.clone(),
            mapped,
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
        self.channel.is_alive()
    }

    pub(crate) fn set_dead(&self) {
        self.channel.alive.store(false, Ordering::Release);
    }
}

/// An agent's cursors, for as long as it is the one that serves; nothing new from then on.
///
/// An agent that was stopped may wake up and acknowledge when its successor has read its cursors already: that is no room, the
/// successor has yet to read what lies there. Its store comes after the new epoch then, so who has read it sees the epoch too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursors<'a>(&'a Channel);

impl Load for Cursors<'_> {
    fn size(&self) -> usize {
        self.0.head.size()
    }

    #[inline]
    fn load(&self, offset: usize, order: podshm_layout::sync::Ordering) -> u64 {
        let word = self.0.head.load(offset, order);
        let serves = self.0.notice.load(NOTICE_AGENT_EPOCH, Ordering::Acquire) == self.0.epoch;
        if serves { word } else { 0 } // 0: it has not started
    }

    fn copy_out(&self, offset: usize, dst: &mut [u8]) {
        self.0.head.copy_out(offset, dst);
    }
}

impl Channel {
    /// The agent's cursors over this client's rings: what a producer may take for room.
    #[inline(always)]
    pub(crate) fn cursors(&self) -> Cursors<'_> {
        Cursors(self)
    }

    /// Where the agent stands in every ring to it, once it has begun on all of them.
    pub(crate) fn stands(&self) -> Option<Vec<Stood>> {
        let of_one = |line: &CursorLine| {
            line.started(&self.head)?;
            let podshm_layout::cursor::Cursors { acked, claim, closed } = line.read(&self.head);
            Some(Stood { acked, claim, closed })
        };
        self.cursors.iter().map(of_one).collect()
    }

    /// Where the agent's cursors of ring number `ring` are.
    pub(crate) fn cursor(&self, ring: usize) -> Option<CursorLine> {
        self.cursors.get(ring).copied()
    }

    /// A fresh consumer of the responses of call number `ring`.
    pub(crate) fn responses(&self, ring: usize) -> Consumer<ReadMap> {
        let (map, geometry) = &self.rings[ring];
        Consumer::new(map.clone(), geometry, geometry.start)
    }

    pub(crate) fn response_geometry(&self, ring: usize) -> podshm_layout::RingGeometry {
        self.rings[ring].1
    }

    /// Whether something lies at `position` of a response ring. One load; a hint, whatever the agent has written there.
    #[inline(always)]
    pub(crate) fn has_response(&self, ring: usize, position: u64) -> bool {
        let (map, geometry) = &self.rings[ring];
        let at = position & (u64::from(geometry.bytes) - 1) & !7;
        map.load(at as usize, Ordering::Relaxed) != 0
    }

    /// A's number.
    pub(crate) fn region(&self) -> u64 {
        self.mapped.named.id
    }

    /// The number that tells this agent's rings from its predecessor's.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    /// Leaves fences to the agent from here on, where it takes them. May take its time: see [`barrier::register_global`].
    pub(crate) fn lighten(&self) {
        if self.fences && barrier::register_global() {
            // Relaxed: whoever sees it is in a process that is registered already.
            self.light.store(true, Ordering::Relaxed);
        }
    }

    /// After publishing: wakes the agent if it sleeps.
    #[inline(always)]
    pub(crate) fn ring_doorbell(&self, waker: &mut Waker) {
        let sleeps =
            if self.light.load(Ordering::Relaxed) { waker.check_light(&self.head) } else { waker.check(&self.head) };
        if sleeps.is_some() {
            self.ring();
        }
        step::at(Step::PushDoorbell);
    }

    /// Whether the agent said that it sleeps, and has not woken up since. One load.
    pub(crate) fn agent_sleeps(&self) -> bool {
        podshm_layout::mem::Load::load(&self.head, ARMED, Ordering::Relaxed) != 0
    }

    /// After reading answers: wakes the agent if its next ones wait for room.
    #[inline(always)]
    pub(crate) fn ring_for_room(&self, waker: &mut Waker) {
        if waker.check_for_room(&self.head, self.light.load(Ordering::Relaxed)) {
            self.ring();
        }
    }

    #[cold]
    fn ring(&self) {
        crate::doorbell::ring(&self.doorbell);
    }

    #[inline(always)]
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(crate) fn wake_word(&self) -> u32 {
        self.head.load(WAKE, Ordering::Acquire) as u32
    }
}
