//! Pushing records to the agent.

use super::outlet::Outlet;
use super::waiting::Spin;
use super::{Client, Shared};
use crate::error::Error;
use podshm_layout::ring::{Part, PushError, Reservation};
use podshm_region::biased::{Biased, Guard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The way to the agent's queue. Clones and threads share one ring; each record is accepted or refused as a whole.
///
/// The first thread that pushes has the ring at hand: a push costs it about what writing the record does. Others take a lock.
///
/// ```no_run
/// # fn main() -> Result<(), podshm::Error> {
/// use std::time::Duration;
/// let client = podshm::Client::join("/run/podshm/routing", Duration::from_secs(5))?;
/// let reports = client.queue("reports")?;
/// reports.push(b"one record", Duration::from_millis(100))?;
/// let mut batch = reports.batch()?;
/// for n in 0..16u64 {
///     batch.try_push(&n.to_le_bytes())?;
/// }
/// batch.publish(); // accepted from here on
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct QueueSender {
    client: Client,
    outlet: Arc<Biased<Outlet>>,
    dropped: Arc<AtomicU64>,
}

impl QueueSender {
    pub(super) fn new(client: Client, outlet: Arc<Biased<Outlet>>) -> Self {
        QueueSender { client, outlet, dropped: Arc::default() }
    }

    /// Accepts the record now or says that the ring is full. Returns the record's position: its sequence number.
    #[inline(always)]
    pub fn try_push(&self, record: &[u8]) -> Result<u64, Error> {
        self.push_one(record.len(), |outlet, room| {
            outlet.producer.write(room, 0, record);
            Ok(())
        })
    }

    /// A batch of one, without what lets a batch be kept: one look for a fork, and nothing to publish where there is no room.
    #[inline(always)]
    fn push_one(
        &self,
        len: usize,
        write: impl FnOnce(&mut Outlet, &Reservation) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let shared = &*self.client.shared;
        shared.check_fork()?;
        let mut outlet = self.outlet.enter()?;
        outlet.follow(shared);
        let room = outlet.room(len, shared)?;
        write(&mut outlet, &room)?;
        let position = outlet.producer.commit(room, Part::Whole);
        outlet.publish();
        Ok(position)
    }

    /// Accepts the record or counts it as dropped; says which.
    pub fn push_or_drop(&self, record: &[u8]) -> Result<bool, Error> {
        match self.try_push(record) {
            Ok(_) => Ok(true),
            Err(Error::Push(PushError::Full { .. })) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    /// Records that [`QueueSender::push_or_drop`] has dropped, through this handle and its clones.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Accepts the record, waiting for room until `timeout`.
    #[inline]
    pub fn push(&self, record: &[u8], timeout: Duration) -> Result<u64, Error> {
        match self.try_push(record) {
            Err(Error::Push(PushError::Full { .. })) => self.push_when_there_is_room(record, timeout),
            other => other,
        }
    }

    #[cold]
    fn push_when_there_is_room(&self, record: &[u8], timeout: Duration) -> Result<u64, Error> {
        let start = Instant::now();
        loop {
            wait_for_room(&self.client.shared, &self.outlet, start + timeout)?;
            match self.try_push(record) {
                Err(Error::Push(PushError::Full { .. })) if start.elapsed() < timeout => {}
                Err(Error::Push(PushError::Full { .. })) => {
                    return Err(Error::Deadline { what: "room in the queue", waited: start.elapsed() });
                }
                other => return other,
            }
        }
    }

    /// Where the agent stands in this queue: it has handled every record with a lower position. That a push went well says only that
    /// there was room.
    pub fn taken(&self) -> Result<u64, Error> {
        let shared = &*self.client.shared;
        shared.check_fork()?;
        let mut outlet = self.outlet.enter()?;
        outlet.follow(shared);
        Ok(outlet.taken()?)
    }

    /// Writes `len` bytes in place by `fill` and accepts the record, or says that the ring is full.
    #[inline(always)]
    pub fn try_push_with(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, Error> {
        self.push_one(len, |outlet, room| {
            outlet.producer.fill(room, fill);
            // `fill` may have forked: then this record is the parent's.
            self.client.shared.check_fork()
        })
    }

    /// Holds the ring for several records that are accepted together; other threads wait meanwhile.
    #[inline(always)]
    pub fn batch(&self) -> Result<QueueBatch<'_>, Error> {
        let shared = &*self.client.shared;
        shared.check_fork()?;
        let mut outlet = self.outlet.enter()?;
        outlet.follow(shared);
        Ok(QueueBatch { outlet, shared })
    }
}

/// Several records. They are accepted when it is published or dropped.
#[derive(Debug)]
pub struct QueueBatch<'a> {
    outlet: Guard<'a, Outlet>,
    shared: &'a Shared,
}

impl QueueBatch<'_> {
    /// Adds a record, or says that the ring is full.
    #[inline(always)]
    pub fn try_push(&mut self, record: &[u8]) -> Result<u64, Error> {
        let room = self.room(record.len())?;
        let outlet = &mut *self.outlet;
        outlet.producer.write(&room, 0, record);
        Ok(outlet.producer.commit(room, Part::Whole))
    }

    /// Adds a record of `len` bytes that `fill` writes in place.
    #[inline(always)]
    pub fn try_push_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, Error> {
        let room = self.room(len)?;
        let outlet = &mut *self.outlet;
        outlet.producer.fill(&room, fill);
        self.shared.check_fork()?;
        Ok(outlet.producer.commit(room, Part::Whole))
    }

    /// Accepts everything so far and wakes the agent if it sleeps.
    #[inline]
    pub fn publish(&mut self) {
        // A batch that came over a fork is the parent's: nothing is there to publish.
        if self.shared.check_fork().is_ok() {
            self.outlet.publish();
        }
    }

    #[inline(always)]
    fn room(&mut self, len: usize) -> Result<Reservation, Error> {
        self.shared.check_fork()?;
        Ok(self.outlet.room(len, self.shared)?)
    }
}

impl Drop for QueueBatch<'_> {
    #[inline]
    fn drop(&mut self) {
        self.publish();
    }
}

/// Waits until an eighth of the ring is free: fewer wake-ups than one per record.
fn wait_for_room(shared: &Shared, outlet: &Biased<Outlet>, until: Instant) -> Result<(), Error> {
    let start = Instant::now();
    let enough = || -> Result<bool, Error> {
        let mut outlet = outlet.enter()?;
        outlet.follow(shared);
        Ok(outlet.free()? >= outlet.producer.bytes() / 8)
    };
    loop {
        if enough()? || Instant::now() >= until {
            return Ok(());
        }
        if Spin::default().goes_on(start.elapsed()) {
            std::hint::spin_loop();
            continue;
        }
        let link = shared.link.load_full();
        shared.sleepers.sleep(&link.channel, until, || enough().unwrap_or(true));
    }
}
