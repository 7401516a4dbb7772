//! The library thread: owns the broker's socket, swaps the link, turns the doorbell into events.

use super::Shared;
use super::link::{Link, TableGeneration};
use crate::broker_socket::{BrokerSocket, Received, wait};
use crate::clock;
use crate::error::Error;
use crate::wakes::{self, WakeStats, Wakes};
use podshm_proto::{Down, RegionIds, Up};
use rustix::event::PollFlags;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

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
        heard: 0,
        wakes: Wakes::new(clock::now()),
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
    /// Epoch of the agent whose wakes are counted.
    heard: u64,
    wakes: Wakes,
}

impl Worker {
    fn run(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let link = self.shared.link.load_full();
            let mut fds = vec![(self.shared.released.event.as_fd(), PollFlags::IN)];
            let watch_doorbell = self.hung_up != link.epoch;
            if self.heard != link.epoch {
                self.heard = link.epoch;
                self.wakes = Wakes::new(clock::now());
            }
            let next_look = self.wakes.next_look().filter(|_| watch_doorbell);
            let pause = next_look.map(|next| Duration::from_nanos(next.saturating_sub(clock::now())));
            if watch_doorbell {
                // Of an agent that rings too much only the hang-up is heard.
                let heard = if next_look.is_none() { PollFlags::IN | PollFlags::RDHUP } else { PollFlags::RDHUP };
                fds.push((link.channel.doorbell.as_fd(), heard));
            }
            if let Some(broker) = &self.broker {
                fds.push((broker.as_fd(), PollFlags::IN));
            }
            let events = wait(&fds, pause);
            drop(fds);
            self.count(|stats| stats.looks += 1);
            if events[0].contains(PollFlags::IN) {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.shared.released.event, &mut count);
                self.release();
            }
            if watch_doorbell && !events[1].is_empty() {
                self.doorbell(&link, events[1]);
            } else if next_look.is_some_and(|next| next <= clock::now()) {
                self.look(&link);
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
        self.count(|stats| stats.rung += 1);
        wakes::hear(&link.channel.doorbell);
        if event.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
            self.hung_up = link.epoch;
            link.set_dead();
        } else if !self.wakes.rung(clock::now(), self.shared.sleepers.rings_asked.load(Ordering::Relaxed)) {
            self.count(|stats| stats.silenced += 1);
            tracing::warn!(
                domain = self.shared.domain,
                "the agent rings the doorbell for nothing; it is left alone for a while"
            );
        }
        self.signal();
    }

    /// A look instead of a doorbell that is left alone. Whoever waits for events gets one if it asked.
    fn look(&mut self, link: &Link) {
        self.count(|stats| stats.polls += 1);
        let found = self.shared.sleepers.wants_doorbell.load(Ordering::Relaxed) > 0;
        let listens = self.wakes.looked(clock::now(), found);
        if listens {
            wakes::empty(&link.channel.doorbell);
        }
        // What was asked for just before the doorbell was emptied is not rung again.
        if found || listens {
            self.signal();
        }
    }

    fn count(&self, count: impl FnOnce(&mut WakeStats)) {
        if let Ok(mut stats) = self.shared.wakes.lock() {
            count(&mut stats);
        }
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
                .map(|link| self.swap(link))
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

    fn swap(&self, link: Link) {
        self.shared.link.store(Arc::new(link));
        self.shared.version.fetch_add(1, Ordering::Release);
        for (ring, call) in self.shared.calls.iter().enumerate() {
            if let Ok(mut inbox) = call.lock() {
                inbox.follow(&self.shared, ring);
            }
        }
        self.signal();
    }
}
