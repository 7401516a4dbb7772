//! Going over to C's next generation, which has more rings or another layout, while handles go on.

use super::Shared;
use super::own::Own;
use crate::broker_socket::Received;
use crate::error::Error;
use podshm_layout::geometry::{MOVED, MOVED_ALL};
use podshm_layout::mem::Store;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::{Layout, Layouts, RegionKind, RingGeometry};
use podshm_proto::{Next, Region, Services, Written};
use podshm_region::{Memory, WriteMap};
use std::sync::Arc;

/// The next C, mapped and not used yet.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) region: Region,
    pub(crate) layout: Layout,
    services: Services,
    rings: Vec<RingGeometry>,
    memory: Memory,
    map: WriteMap,
}

impl Coming {
    pub(crate) fn map(next: Next, received: &mut Received, layouts: Layouts) -> Result<Self, Error> {
        let region = next.region;
        let layout = layouts.parse(region.layout)?;
        let services = Services::check(next.services).map_err(|e| Error::Protocol(e.to_string()))?;
        let geometry = services.channel(next.client, 0, Written::both(layout));
        let geometry = geometry.map_err(|e| Error::Protocol(e.to_string()))?;
        let memory = Memory::from_fd(received.fd("the client's next region")?)?;
        if region.kind != RegionKind::Client as u32 || memory.bytes() != geometry.client_bytes {
            let what = format!("client's next region of {} bytes, expected {}", memory.bytes(), geometry.client_bytes);
            return Err(Error::Protocol(what));
        }
        let map = WriteMap::map(&memory)?;
        map.touch()?;
        Ok(Coming { region, layout, services, rings: geometry.to_agent, memory, map })
    }
}

impl Coming {
    /// Its memory, for a broker that was started anew, if it is sealed: if not, that broker knows nothing of it.
    pub(crate) fn presentable(&self) -> Option<Memory> {
        self.memory.check(self.region.bytes).and_then(|()| self.memory.try_clone()).ok()
    }
}

impl Shared {
    /// Goes over, ring by ring, each under its lock: what is in it is there, too, and the next record has the position that it would
    /// have had. The agent follows each once the old region says so, so that whoever holds one ring for long holds up no other.
    pub(crate) fn move_to(&self, coming: Coming) -> Result<(), Error> {
        let Coming { region, layout, services, rings, memory, mut map } = coming;
        let (offer, link) = (self.offer.load_full(), self.link.load_full());
        let own = Arc::new(Own::new(region, layout, memory, &mut map, &self.released));
        // First what may fail.
        let larger = offer.extended(services, &rings, &mut map, &own, &link.channel)?;
        let mut windows = Vec::new();
        for index in offer.queues.keys().chain(offer.calls.keys()) {
            let number = offer.services.ring_to_agent(*index);
            let ring = rings.get(number).ok_or_else(|| Error::Protocol(format!("no ring {number} to go over to")))?;
            windows.push((number, map.window(ring.offset as usize, ring.bytes as usize)));
        }
        let mut windows = windows.into_iter();
        let mut marks = Marks { old: self.sleepers.own(), word: 0 };
        for (outlet, (number, window)) in offer.queues.values().zip(windows.by_ref()) {
            let mut outlet = outlet.visit()?;
            outlet.producer.move_to(window);
            marks.set(1 << number);
        }
        for (service, (number, window)) in offer.calls.values().zip(windows) {
            let mut line = service.visit()?;
            line.outlet.producer.move_to(window);
            line.inbox.move_to(Arc::clone(&own));
            marks.set(1 << number);
        }
        self.sleepers.move_to(own);
        step::at(Step::MoveSleepers);
        marks.set(MOVED_ALL);
        // What is new is used from here on only: its records are where an agent looks by now.
        self.offer.store(Arc::new(larger));
        Ok(())
    }
}

/// What has gone over, as the old region says.
struct Marks {
    old: Arc<Own>,
    word: u64,
}

impl Marks {
    /// While the ring's lock is held: a record that is pushed after it rings the doorbell for both.
    fn set(&mut self, mark: u64) {
        step::at(Step::MoveCopied);
        self.word |= mark;
        // Release: pairs with the agent's acquire; whoever sees the mark sees the ring copied.
        self.old.first.store(MOVED, self.word, Ordering::Release);
        step::at(Step::MoveMarked);
    }
}
