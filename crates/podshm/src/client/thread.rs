//! The library thread: owns the broker's socket, swaps the link, turns the doorbell into events.

use super::Shared;
use super::link::{Link, TableGeneration};
use super::waiting::SLICE;
use crate::broker_socket::{BrokerSocket, Received, wait};
use crate::error::Error;
use podshm_layout::step::{self, Step};
use podshm_proto::{Down, RegionIds, Up};
use rustix::event::PollFlags;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, TryLockError};
use std::thread::JoinHandle;

/// Ends the thread when the last client handle is gone.
#[derive(Debug)]
pub(crate) struct Joined {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.shared.check_fork().is_err() {
            // The thread exists in the parent only: leave it and its socket alone.
            std::mem::forget(self.thread.take());
            return;
        }
        self.stop.store(true, Ordering::Release);
        self.shared.released.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn start(
    shared: Arc<Shared>,
    broker: BrokerSocket,
    early: Vec<Received>,
    layout: u32,
) -> Result<Joined, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut worker = Worker {
        shared: Arc::clone(&shared),
        broker: Some(broker),
        layout,
        stop: Arc::clone(&stop),
        hung_up: 0,
        unrung: Vec::new(),
    };
    for received in early {
        worker.message(received);
    }
    let thread = std::thread::Builder::new()
        .name("podshm-client".into())
        .stack_size(128 * 1024)
        .spawn(move || worker.run())
        .map_err(Error::system("starting the library thread"))?;
    Ok(Joined { stop, shared, thread: Some(thread) })
}

struct Worker {
    shared: Arc<Shared>,
    broker: Option<BrokerSocket>,
    layout: u32,
    stop: Arc<AtomicBool>,
    /// Epoch of the agent whose hang-up was noticed already.
    hung_up: u64,
    /// Rings that somebody has been writing since before the last swap of the link.
    unrung: Vec<usize>,
}

impl Worker {
    fn run(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let link = self.shared.link.load_full();
            let mut fds = vec![(self.shared.released.event.as_fd(), PollFlags::IN)];
            let watch_doorbell = self.hung_up != link.epoch;
            if watch_doorbell {
                fds.push((link.channel.doorbell.as_fd(), PollFlags::IN | PollFlags::RDHUP));
            }
            if let Some(broker) = &self.broker {
                fds.push((broker.as_fd(), PollFlags::IN));
            }
            let events = wait(&fds, (!self.unrung.is_empty()).then_some(SLICE));
            drop(fds);
            if !self.unrung.is_empty() {
                self.ring_new_agent();
            }
            if events[0].contains(PollFlags::IN) {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.shared.released.event, &mut count);
                self.release();
            }
            if watch_doorbell && !events[1].is_empty() {
                self.doorbell(&link, events[1]);
            }
            let broker_at = 1 + usize::from(watch_doorbell);
            if events.get(broker_at).is_some_and(|e| !e.is_empty()) {
                self.drain_broker();
            }
        }
        if let Some(broker) = &self.broker {
            let _ = broker.send(Up::Bye(podshm_proto::Nothing {}));
        }
    }

    fn doorbell(&mut self, link: &Link, event: PollFlags) {
        let mut bytes = [0; 64];
        while rustix::io::read(&link.channel.doorbell, &mut bytes[..]).is_ok_and(|n| n > 0) {}
        if event.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
            self.hung_up = link.epoch;
            link.set_dead();
        }
        self.signal();
    }

    /// Makes the event descriptor readable and wakes every future.
    fn signal(&self) {
        self.shared.sleepers.wants_doorbell.store(0, Ordering::Relaxed);
        let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        for call in &self.shared.calls {
            if let Ok(mut inbox) = call.lock() {
                inbox.wake_all();
            }
        }
    }

    fn release(&mut self) {
        let ids = match self.shared.released.ids.lock() {
            Ok(mut ids) => std::mem::take(&mut *ids),
            Err(_) => return,
        };
        if let (false, Some(broker)) = (ids.is_empty(), &self.broker) {
            let _ = broker.send(Up::Release(RegionIds { ids }));
        }
    }

    fn drain_broker(&mut self) {
        loop {
            let Some(broker) = &mut self.broker else { return };
            match broker.receive() {
                Ok(Some(received)) => self.message(received),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the broker is away; open channels go on");
                    self.shared.broker_away.store(true, Ordering::Release);
                    self.broker = None;
                }
            }
        }
    }

    fn message(&mut self, mut received: Received) {
        let result = match received.message.clone() {
            Down::NewAgent(new) => {
                let shared = &self.shared;
                Link::from_message(
                    &shared.services,
                    new.regions,
                    &mut received,
                    new.epoch,
                    self.layout,
                    &shared.released,
                )
                .map(|link| {
                    self.swap(link);
                    self.unrung = (0..self.shared.rings.len()).collect();
                    self.ring_new_agent();
                })
            }
            Down::NewTable(region) => (|| {
                let fd = received.fd("a table")?;
                let table = TableGeneration::new(fd, &region, self.layout, &self.shared.released)?;
                let link = self.shared.link.load().with_table(region.owner as usize, table);
                self.swap(link);
                Ok(())
            })(),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::error!(%error, "the broker's message was not followed; the client goes on with what it has");
        }
    }

    /// Who published by the old link looked whether the old agent slept; the new one may have gone to sleep meanwhile. A ring that is
    /// free now was left by all of them, and whoever comes to it next finds the new link.
    fn ring_new_agent(&mut self) {
        let shared = &self.shared;
        self.unrung.retain(|ring| matches!(shared.rings[*ring].try_lock(), Err(TryLockError::WouldBlock)));
        let link = shared.link.load();
        if let Ok(mut waker) = link.channel.waker.lock() {
            link.channel.ring_doorbell(&mut waker);
        }
    }

    fn swap(&self, link: Link) {
        step::at(Step::LinkMapped);
        self.shared.link.store(Arc::new(link));
        self.shared.version.fetch_add(1, Ordering::Release);
        step::at(Step::LinkSwapped);
        for (ring, call) in self.shared.calls.iter().enumerate() {
            if let Ok(mut inbox) = call.lock() {
                inbox.follow(&self.shared, ring);
            }
        }
        self.signal();
    }
}
