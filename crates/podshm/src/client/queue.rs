//! Pushing records to the agent.

use super::waiting::Spin;
use super::{Client, Shared};
use crate::error::Error;
use podshm_layout::ring::{Part, Producer, PushError};
use podshm_region::Window;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The way to the agent's queue. Clones and threads share one ring; each record is accepted or refused as a whole.
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
    ring: usize,
    dropped: Arc<AtomicU64>,
}

impl QueueSender {
    pub(super) fn new(client: Client, service: usize) -> Self {
        let ring = client.shared.services.ring_to_agent(service);
        QueueSender { client, ring, dropped: Arc::default() }
    }

    /// Accepts the record now or says that the ring is full. Returns the record's position: its sequence number.
    #[inline]
    pub fn try_push(&self, record: &[u8]) -> Result<u64, Error> {
        let shared = &*self.client.shared;
        shared.check_fork()?;
        let mut producer = lock(shared, self.ring);
        let link = shared.link.load();
        let position = producer.push(record, &link.cursors(&shared.notice))?;
        if let Ok(mut waker) = link.channel.waker.lock() {
            link.channel.ring_doorbell(&mut waker);
        }
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
    pub fn push(&self, record: &[u8], timeout: Duration) -> Result<u64, Error> {
        match self.try_push(record) {
            Err(Error::Push(PushError::Full { .. })) => {}
            other => return other,
        }
        let start = Instant::now();
        loop {
            wait_for_room(&self.client.shared, self.ring, start + timeout, Spin::default())?;
            match self.try_push(record) {
                Err(Error::Push(PushError::Full { .. })) if start.elapsed() < timeout => {}
                Err(Error::Push(PushError::Full { .. })) => {
                    return Err(Error::Deadline { what: "room in the queue", waited: start.elapsed() });
                }
                other => return other,
            }
        }
    }

    /// Writes `len` bytes in place by `fill` and accepts the record.
    pub fn push_with(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, Error> {
        let mut batch = self.batch()?;
        let position = batch.try_push_with(len, fill)?;
        batch.publish();
        Ok(position)
    }

    /// Holds the ring for several records that are accepted together; other threads wait meanwhile.
    pub fn batch(&self) -> Result<QueueBatch<'_>, Error> {
        self.client.shared.check_fork()?;
        Ok(QueueBatch { producer: lock(&self.client.shared, self.ring), shared: &self.client.shared })
    }
}

/// Several records. They are accepted when it is published or dropped.
#[derive(Debug)]
pub struct QueueBatch<'a> {
    producer: MutexGuard<'a, Producer<Window>>,
    shared: &'a Shared,
}

impl QueueBatch<'_> {
    /// Adds a record, or says that the ring is full.
    #[inline]
    pub fn try_push(&mut self, record: &[u8]) -> Result<u64, Error> {
        let room = self.room(record.len())?;
        self.producer.write(&room, 0, record);
        Ok(self.producer.commit(room, Part::Whole))
    }

    /// Adds a record of `len` bytes that `fill` writes in place.
    #[inline]
    pub fn try_push_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, Error> {
        let room = self.room(len)?;
        self.producer.fill(&room, fill);
        Ok(self.producer.commit(room, Part::Whole))
    }

    /// Accepts everything so far and wakes the agent if it sleeps.
    pub fn publish(&mut self) {
        if self.producer.publish() {
            let link = self.shared.link.load();
            if let Ok(mut waker) = link.channel.waker.lock() {
                link.channel.ring_doorbell(&mut waker);
            }
        }
    }

    #[inline]
    fn room(&mut self, len: usize) -> Result<podshm_layout::ring::Reservation, Error> {
        let link = self.shared.link.load();
        Ok(self.producer.reserve(len, &link.cursors(&self.shared.notice))?)
    }
}

impl Drop for QueueBatch<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}

/// A thread that panicked while it held a ring left a whole record or nothing: the lock's poison means nothing here.
pub(super) fn lock(shared: &Shared, ring: usize) -> MutexGuard<'_, Producer<Window>> {
    shared.rings[ring].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until an eighth of the ring is free: fewer wake-ups than one per record.
pub(super) fn wait_for_room(shared: &Shared, ring: usize, until: Instant, spin: Spin) -> Result<(), Error> {
    let start = Instant::now();
    let enough = |shared: &Shared| -> Result<bool, Error> {
        let link = shared.link.load();
        let mut producer = lock(shared, ring);
        let free = producer.refresh(&link.cursors(&shared.notice))?;
        Ok(free >= producer.bytes() / 8)
    };
    loop {
        if enough(shared)? || Instant::now() >= until {
            return Ok(());
        }
        let spinning = match spin {
            Spin::Never => false,
            Spin::For(budget) => start.elapsed() < budget,
            Spin::Always => true,
        };
        if spinning {
            std::hint::spin_loop();
            continue;
        }
        let link = shared.link.load_full();
        shared.sleepers.sleep(&shared.own, &link.channel, until, || enough(shared).unwrap_or(true));
    }
}
