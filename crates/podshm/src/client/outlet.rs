//! One ring to the agent, as this process writes it: the producer, and what it knows of the agent that reads.

use super::Shared;
use super::link::Channel;
use podshm_layout::geometry::ARMED;
use podshm_layout::ring::{Producer, PushError, Reservation};
use podshm_layout::wake::Waker;
use podshm_region::Window;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) producer: Producer<Window>,
    /// Index among the rings to the agent.
    ring: usize,
    pub(crate) channel: Arc<Channel>,
    /// The link's version that `channel` is of.
    version: u64,
    waker: Waker,
}

impl Outlet {
    pub(crate) fn new(producer: Producer<Window>, ring: usize, channel: Arc<Channel>) -> Self {
        Outlet { producer, ring, channel, version: 0, waker: Waker::at(ARMED) }
    }

    /// Goes over to the agent that serves now. One load where nothing has changed.
    #[inline(always)]
    pub(crate) fn follow(&mut self, shared: &Shared) {
        // Acquire: pairs with the release in the library thread's swap. The one cached word.
        let version = shared.version.load(Ordering::Acquire);
        if version != self.version {
            self.follow_to(shared, version);
        }
    }

    #[cold]
    fn follow_to(&mut self, shared: &Shared, version: u64) {
        self.version = version;
        let link = shared.link.load();
        if !Arc::ptr_eq(&link.channel, &self.channel) {
            self.channel = Arc::clone(&link.channel);
            // Another agent may write another layout.
            if let Some(cursor) = self.channel.cursor(self.ring) {
                self.producer.read_cursors_at(cursor);
            }
            self.waker = Waker::at(ARMED);
        }
    }

    /// Room for a record, also where another agent has taken over since this was entered, and has made room.
    #[inline(always)]
    pub(crate) fn room(&mut self, len: usize, shared: &Shared) -> Result<Reservation, PushError> {
        match self.reserve(len) {
            Err(PushError::Full { .. }) => {
                self.follow(shared);
                self.reserve(len)
            }
            other => other,
        }
    }

    #[inline(always)]
    pub(crate) fn reserve(&mut self, len: usize) -> Result<Reservation, PushError> {
        self.producer.reserve(len, &self.channel.cursors())
    }

    /// Bytes that are free now.
    pub(crate) fn free(&mut self) -> Result<u64, PushError> {
        self.producer.refresh(&self.channel.cursors())
    }

    /// Where the agent stands: it has handled what lies before.
    pub(crate) fn taken(&mut self) -> Result<u64, PushError> {
        self.free()?;
        Ok(self.producer.acked())
    }

    /// Publishes what was committed and wakes the agent if it sleeps.
    #[inline(always)]
    pub(crate) fn publish(&mut self) {
        if self.producer.publish() {
            self.channel.ring_doorbell(&mut self.waker);
        }
    }

    /// Wakes an agent that has just taken over if it sleeps: what was published until now may have rung its predecessor's doorbell.
    pub(crate) fn knock(&mut self) {
        self.channel.ring_doorbell(&mut self.waker);
    }

    /// After responses were read: wakes the agent if others wait for room.
    #[inline(always)]
    pub(crate) fn made_room(&mut self) {
        self.channel.ring_for_room(&mut self.waker);
    }
}
