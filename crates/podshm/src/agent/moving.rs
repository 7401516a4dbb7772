//! A client that goes over to its region's next generation, ring by ring: the agent reads each in the old one until the client has marked
//! it, and goes on in the new one at the same position.
//!
//! Marks are followed before a ring is looked at: a predecessor may have followed one already, and be past what the old region has.

use super::client::AgentClient;
use super::serve::Ring;
use super::{Agent, Own};
use crate::broker_socket::Received;
use crate::error::Error;
use podshm_layout::geometry::{ARMED, MOVED, MOVED_ALL};
use podshm_layout::mem::Load;
use podshm_layout::ring::Consumer;
use podshm_layout::step::{self, Step};
use podshm_layout::sync::Ordering;
use podshm_layout::wake::Waker;
use podshm_layout::{ChannelGeometry, Layouts, PAGE};
use podshm_proto::{Next, Region, RegionIds, ServiceKind, Services, Up, Written};
use podshm_region::{Memory, ReadMap};
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What an agent knows of its domain that says where things lie in regions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    pub(super) services: &'a Services,
    pub(super) layouts: Layouts,
    /// Where descriptors are kept.
    pub(super) held: &'a RefCell<HashMap<u64, Arc<Memory>>>,
}

impl Reading<'_> {
    /// Maps a client's region.
    pub(super) fn map(&self, c: &Region, fd: OwnedFd) -> Result<ReadMap, Error> {
        self.layouts.parse(c.layout)?;
        let memory = Memory::from_fd(fd)?;
        let map = ReadMap::map(&memory, c.bytes)?;
        let header = c.header().ok_or_else(|| Error::Protocol(format!("client's region of kind {}", c.kind)))?;
        header.check(&map).map_err(podshm_region::RegionError::from)?;
        self.held.borrow_mut().insert(c.id, Arc::new(memory));
        Ok(map)
    }

    /// The rings that are in `c`, with their cursors in `answer`; and all those in `answer`, with their cursors in `c`.
    pub(super) fn geometry(&self, c: &Region, answer: &Region) -> Result<ChannelGeometry, Error> {
        let at = Written { client: self.layouts.parse(c.layout)?, agent: self.layouts.parse(answer.layout)? };
        let lay_out = |region: &Region| {
            let geometry = self.services.of(region).channel(c.owner, answer.owner, at);
            geometry.map_err(|e| Error::Protocol(format!("client {}: {e}", c.owner)))
        };
        let (of_client, of_agent) = (lay_out(c)?, lay_out(answer)?);
        if of_client.client_bytes > c.bytes {
            let (expected, found) = (of_client.client_bytes, c.bytes);
            return Err(Error::Protocol(format!("client {}: {found} bytes, expected {expected}", c.owner)));
        }
        Ok(ChannelGeometry { to_agent: of_client.to_agent, ..of_agent })
    }

    /// A consumer of each of the rings in a client's region, from number `from` on, with a fresh start.
    pub(super) fn new_rings(&self, geometry: &ChannelGeometry, map: &ReadMap, own: &Own, from: usize) -> Vec<Ring> {
        let rings = self.services.iter().enumerate().filter(|(_, (_, kind))| *kind != ServiceKind::Table);
        let rings = rings.zip(&geometry.to_agent).skip(from);
        rings
            .map(|((service, _), ring)| {
                ring.cursor_line().reset(own, ring.start);
                let mem = map.part(ring.offset as usize, ring.bytes as usize);
                Ring::new(self.services, service, *ring, Consumer::new(mem, ring, ring.start), 0)
            })
            .collect()
    }
}

/// A region that its client has not gone over to as a whole yet.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) region: Region,
    map: ReadMap,
    geometry: ChannelGeometry,
    /// The client's marks that were followed.
    seen: u64,
}

impl Coming {
    pub(super) fn new(region: Region, fd: OwnedFd, answer: &Region, reading: Reading<'_>) -> Result<Self, Error> {
        let geometry = reading.geometry(&region, answer)?;
        Ok(Coming { region, map: reading.map(&region, fd)?, geometry, seen: 0 })
    }
}

impl AgentClient {
    /// Whether the client has marked rings that the agent has not followed.
    #[inline]
    pub(super) fn move_is_due(&self) -> bool {
        // Acquire: pairs with the client's release of a mark, when that ring is copied.
        self.next.as_ref().is_some_and(|next| self.head.load(MOVED, Ordering::Acquire) & !next.seen != 0)
    }

    /// Goes on in the next region with the rings that the client has marked; returns the number of the region before once all is there.
    #[cold]
    pub(super) fn follow_move(&mut self, reading: Reading<'_>) -> Option<u64> {
        step::at(Step::FollowSeen);
        let marked = self.head.load(MOVED, Ordering::Acquire); // as in move_is_due()
        let all = marked & MOVED_ALL != 0;
        let Coming { map, geometry, seen, .. } = self.next.as_mut()?;
        let page = map.part(0, PAGE);
        for (number, (ring, place)) in self.rings.iter_mut().zip(&geometry.to_agent).enumerate() {
            let bit = 1 << number;
            if *seen & bit != 0 || !all && marked & bit == 0 {
                continue;
            }
            ring.move_to(map.part(place.offset as usize, place.bytes as usize));
            *seen |= bit;
            // What the client has read of the answers, it says there from now on.
            let answers = ring.answers();
            let line = answers.and_then(|index| Some((self.answers.get_mut(index)?, geometry.to_client.get(index)?)));
            if let Some((answers, line)) = line {
                answers.read_cursors_at(page.clone(), line.cursor_line());
            }
        }
        *seen |= marked;
        self.progress += 1;
        if !all {
            return None;
        }
        let Coming { region, map, geometry, .. } = self.next.take()?;
        let known = self.rings.len();
        self.rings.extend(reading.new_rings(&geometry, &map, &self.own, known));
        for (answers, line) in self.answers.iter_mut().zip(&geometry.to_client) {
            answers.read_cursors_at(page.clone(), line.cursor_line());
        }
        self.head = page;
        self.waker = Waker::at(ARMED);
        let old = std::mem::replace(&mut self.c, region.id);
        // It may have gone to sleep meanwhile, and has said so where nobody looked.
        self.wake();
        step::at(Step::FollowDone);
        Some(old)
    }
}

impl Agent {
    /// The next region of a client has come.
    pub(super) fn expect_move(&mut self, next: &Next, received: &mut Received) -> Result<(), Error> {
        let ids = vec![next.region.id];
        let reading = Reading { services: &self.services, layouts: self.layouts, held: &self.held };
        let coming = received.fd("a client's next region").and_then(|fd| match self.clients.get_mut(next.client) {
            Some(client) if client.next.is_none() => {
                client.next = Some(Coming::new(next.region, fd, &client.answer, reading)?);
                Ok(())
            }
            Some(_) => Err(Error::Protocol("it has not gone over to the one before".into())),
            None => Err(Error::Protocol("it is not served here".into())),
        });
        if let Err(error) = coming {
            tracing::error!(client = next.client, %error, "client's next region is not taken");
            return self.tell(Up::Release(RegionIds { ids }));
        }
        self.moving += 1;
        step::at(Step::FollowMapped);
        self.tell(Up::Taken(RegionIds { ids }))
    }
}
