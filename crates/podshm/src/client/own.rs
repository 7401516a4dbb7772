//! The client's own region, C, and the ways to the agent that are in it. A client that goes over to C's next generation gets another
//! one of these; its handles stay.

use super::inbox::Inbox;
use super::line::CallService;
use super::link::{Channel, Named, Releaser};
use super::outlet::Outlet;
use crate::error::Error;
use podshm_layout::cursor::CursorLine;
use podshm_layout::ring::Producer;
use podshm_layout::{Layout, PAGE, RingGeometry};
use podshm_proto::{Region, ServiceKind, Services};
use podshm_region::biased::Biased;
use podshm_region::{Memory, Window, WriteMap};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One generation of C.
#[derive(Debug)]
pub(crate) struct Own {
    /// Its first page: armed word and cursor lines.
    pub(crate) first: Window,
    layout: Layout,
    named: Named,
}

impl Own {
    pub(crate) fn new(
        region: Region,
        layout: Layout,
        memory: Memory,
        map: &mut WriteMap,
        releaser: &Arc<Releaser>,
    ) -> Self {
        Own { first: map.window(0, PAGE), layout, named: Named::new(region.id, memory, releaser) }
    }

    /// Its region's number.
    pub(crate) fn region(&self) -> u64 {
        self.named.id
    }

    /// Where this client says how far it is with the responses of ring number `ring`.
    pub(crate) fn response_cursor(&self, ring: usize) -> CursorLine {
        CursorLine::at(self.layout.cursor(ring))
    }
}

/// The services of the domain, and the way to each that has rings; by its index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    pub(crate) services: Services,
    pub(crate) queues: BTreeMap<usize, Arc<Biased<Outlet>>>,
    pub(crate) calls: BTreeMap<usize, Arc<CallService>>,
}

impl Offer {
    /// This offer with what `services` has beyond it; `rings` are those in `map`, which is C.
    pub(crate) fn extended(
        &self,
        services: Services,
        rings: &[RingGeometry],
        map: &mut WriteMap,
        own: &Arc<Own>,
        channel: &Arc<Channel>,
    ) -> Result<Offer, Error> {
        let mut offer = self.clone();
        let new = services.iter().enumerate().skip(self.services.count());
        for (index, (_, kind)) in new.filter(|(_, (_, kind))| *kind != ServiceKind::Table) {
            let to_agent = services.ring_to_agent(index);
            let (ring, cursor) = (rings.get(to_agent), channel.cursor(to_agent));
            let (Some(ring), Some(cursor)) = (ring, cursor) else {
                return Err(Error::Protocol(format!("no ring for service {index}")));
            };
            let mut producer = Producer::new(map.window(ring.offset as usize, ring.bytes as usize), ring);
            producer.read_cursors_at(cursor);
            let outlet = Outlet::new(producer, to_agent, Arc::clone(channel));
            if kind == ServiceKind::Call {
                let answers = services.ring_to_client(index);
                let inbox = Inbox::new(answers, to_agent, channel, own);
                offer.calls.insert(index, Arc::new(CallService::new(outlet, inbox, answers)));
            } else {
                offer.queues.insert(index, Arc::new(Biased::plain(outlet)));
            }
        }
        offer.services = services;
        Ok(offer)
    }

    /// This offer with those of `services` that need no more rings than it has.
    pub(crate) fn with_tables(&self, services: &Services) -> Offer {
        let has = |(index, (_, kind)): &(usize, (_, ServiceKind))| {
            *kind == ServiceKind::Table || self.queues.contains_key(index) || self.calls.contains_key(index)
        };
        let count = services.iter().enumerate().take_while(has).count();
        Offer { services: services.first(count.max(self.services.count())), ..self.clone() }
    }
}
