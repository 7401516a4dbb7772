//! The library thread: owns the broker's socket, swaps the link, turns the doorbell into events.

use super::link::{Link, TableGeneration};
use super::moving::Coming;
use super::{Shared, Speaks};
use crate::absence::{Absence, Returning};
use crate::broker_socket::{BrokerSocket, Received, wait};
use crate::clock;
use crate::error::Error;
use crate::wakes::{self, WakeStats, Wakes};
use podshm_layout::geometry::ARMED;
use podshm_layout::step::{self, Step};
use podshm_layout::wake::Waker;
use podshm_proto::{Down, Offer, RefusalKind, RegionIds, Rejoin, Rejoined, Service, Services, Stood, Up, Use};
use podshm_region::{Memory, WriteMap, barrier};
use rustix::event::PollFlags;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Ends the thread when the last client handle is gone.
#[derive(Debug)]
pub(crate) struct Joined {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Until the thread has taken it.
    _work: Arc<Mutex<Option<(Worker, WriteMap)>>>,
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

/// A thread that looks for its work from time to time: starting one takes as long as the broker's answer does, so both are
/// waited for together, and waking one on another core takes a quarter as long.
#[derive(Debug)]
pub(crate) struct Waiting {
    work: Arc<Mutex<Option<(Worker, WriteMap)>>>,
    thread: JoinHandle<()>,
}

pub(crate) fn prepare() -> Result<Waiting, Error> {
    let work = Arc::new(Mutex::new(None));
    let slot = Arc::downgrade(&work);
    let run = move || {
        let mut pause = Duration::from_micros(100);
        let (mut worker, region): (Worker, WriteMap) = loop {
            std::thread::sleep(pause);
            // Dropped where the join failed.
            let Some(slot) = slot.upgrade() else { return };
            if let Some(work) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
                break work;
            }
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        // So that no push waits for its pages to be zeroed and mapped. Those that come before this touch their own.
        if let Err(error) = region.touch() {
            tracing::debug!(%error, "pages are touched as they are used");
        }
        drop(region);
        worker.begin_to_register();
        worker.run();
    };
    let builder = std::thread::Builder::new().name("podshm-client".into()).stack_size(128 * 1024);
    let thread = builder.spawn(run).map_err(Error::system("starting the library thread"))?;
    Ok(Waiting { work, thread })
}

/// The broker's end of a join.
pub(crate) struct Broker<'a> {
    pub(crate) socket: BrokerSocket,
    pub(crate) directory: &'a Path,
    /// Messages that came before the thread.
    pub(crate) early: Vec<Received>,
}

impl Waiting {
    /// Puts the thread to work; `region` is the client's own.
    pub(crate) fn start(
        self,
        shared: Arc<Shared>,
        broker: Broker<'_>,
        speaks: Speaks,
        region: WriteMap,
    ) -> Result<Joined, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            shared: Arc::clone(&shared),
            broker: Some(broker.socket),
            absence: Absence::new(broker.directory),
            speaks,
            coming: None,
            stop: Arc::clone(&stop),
            hung_up: 0,
            takes_part: false,
            tries: 0,
            heard: 0,
            wakes: Wakes::new(clock::now()),
            began: Vec::new(),
        };
        for received in broker.early {
            worker.message(received);
        }
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some((worker, region));
        Ok(Joined { stop, shared, thread: Some(self.thread), _work: self.work })
    }
}

#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    broker: Option<BrokerSocket>,
    absence: Absence,
    speaks: Speaks,
    /// The C that it is to go over to once that is sealed.
    coming: Option<Coming>,
    stop: Arc<AtomicBool>,
    /// Epoch of the agent whose hang-up was noticed already.
    hung_up: u64,
    /// See [`Shared::take_part_in_barriers`].
    takes_part: bool,
    tries: u32,
    /// Epoch of the agent whose wakes are counted.
    heard: u64,
    wakes: Wakes,
    /// Where the last agent stood that had begun, once another has come.
    began: Vec<Stood>,
}

impl Worker {
    /// Has the process registered for barriers, if it isn't. The kernel may need some ten milliseconds for that, so a thread of
    /// its own waits for it, which holds nothing of this client; doorbells and new agents don't wait.
    fn begin_to_register(&mut self) {
        if barrier::is_registered() {
            return self.take_part();
        }
        let builder = std::thread::Builder::new().name("podshm-barriers".into()).stack_size(128 * 1024);
        if let Err(error) = builder.spawn(barrier::register) {
            tracing::debug!(%error, "no thread to register for barriers: pushes fence for themselves");
            self.takes_part = true;
        }
    }

    fn take_part(&mut self) {
        self.tries += 1;
        // Whoever stays in for seconds loses nothing but speed.
        self.takes_part = self.shared.take_part_in_barriers() || self.tries > 100;
    }

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
                let room = if broker.is_clogged() { PollFlags::OUT } else { PollFlags::empty() };
                fds.push((broker.as_fd(), PollFlags::IN | room));
            }
            let return_due = self.absence.next().map(|next| next.saturating_duration_since(Instant::now()));
            let deadline = self.shared.futures.next_deadline();
            let due = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            // Nobody tells when the process is registered for barriers.
            let look_again = (!self.takes_part).then_some(Duration::from_millis(20));
            let pauses = due.into_iter().chain(look_again).chain(pause).chain(return_due);
            let events = wait(&fds, pauses.min());
            drop(fds);
            self.count(|stats| stats.looks += 1);
            if !self.takes_part && barrier::is_registered() {
                self.take_part();
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                self.shared.futures.serve(&self.shared);
            }
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
            self.look_for_broker();
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

    /// Makes the event descriptor readable and wakes the futures whose responses have come.
    fn signal(&self) {
        self.shared.sleepers.wants_doorbell.store(0, Ordering::Relaxed);
        let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        self.shared.futures.serve(&self.shared);
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
            // A failure shows where it is read from.
            let _ = broker.flush();
            match broker.receive() {
                Ok(Some(received)) => self.message(received),
                Ok(None) => return,
                Err(error) => return self.broker_is_away(&error),
            }
        }
    }

    fn broker_is_away(&mut self, error: &Error) {
        self.broker = None;
        let refused = self.absence.is_asked && matches!(error, Error::Refused { .. });
        if !self.shared.broker_away.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "the broker is away; open channels go on");
        }
        match error {
            Error::Refused { kind, .. } if refused && *kind != RefusalKind::OverLimit => {
                tracing::error!(%error, "the broker does not know this client any more; it goes on with what it has");
                self.absence.give_up();
            }
            _ => self.absence.begin(),
        }
    }

    /// Goes back to a broker that was started anew, with everything that is held here.
    fn look_for_broker(&mut self) {
        let Some(broker) = self.absence.look() else { return };
        let link = self.shared.link.load_full();
        if self.coming.as_ref().is_some_and(|coming| coming.presentable().is_none()) {
            self.coming = None;
        }
        let mut held = self.shared.released.held();
        let mut offers = Vec::new();
        let mut offer = |id: u64, used: Use, memory: Option<Arc<Memory>>| {
            offers.extend(memory.map(|memory| (Offer { id, used: used.into(), ..Offer::default() }, memory)));
        };
        let own = self.shared.sleepers.own().region();
        offer(own, Use::Own, held.remove(&own));
        if let Some(coming) = &self.coming {
            offer(coming.region.id, Use::Next, coming.presentable().map(Arc::new));
        }
        offer(link.channel.region(), Use::Answer, held.remove(&link.channel.region()));
        for table in link.tables.values() {
            offer(table.region(), Use::Table, held.remove(&table.region()));
        }
        // Older ones, which somebody here still reads.
        for (id, memory) in held {
            offer(id, Use::Held, Some(memory));
        }
        let hung_up = self.hung_up == link.epoch;
        let began = if link.channel.stands().is_some() { Vec::new() } else { self.began.clone() };
        let rejoin = Rejoin { client: self.shared.id, epoch: link.epoch, hung_up, began, ..Rejoin::default() };
        let who = Returning { is_agent: false, services: Vec::new(), layouts: self.speaks.layouts, rejoin };
        match broker.present(who, offers) {
            Ok(()) => self.broker = Some(broker),
            Err(error) => self.broker_is_away(&error),
        }
        step::at(Step::RejoinPresented);
    }

    /// Changes have been seen on the old page up to its writer's end; from here on they come on this one.
    fn rejoined(&mut self, received: &mut Received, rejoined: &Rejoined) -> Result<(), Error> {
        let notice = Memory::from_fd(received.fd("the notice page")?)?;
        self.shared.notice.replace(&notice)?;
        step::at(Step::RejoinMapped);
        self.coming.take_if(|coming| rejoined.dropped.contains(&coming.region.id));
        self.absence.end();
        self.shared.broker_away.store(false, Ordering::Release);
        tracing::info!(domain = self.shared.domain, client = self.shared.id, "back at the broker");
        // An agent that is waited for may have gone with the page before.
        self.signal();
        Ok(())
    }

    fn message(&mut self, mut received: Received) {
        let result = match received.message.clone() {
            Down::NewAgent(new) => {
                let speaks = self.speaks;
                self.offered(new.services).and_then(|services| {
                    let (shared, began) = (&self.shared, &mut self.began);
                    let (notice, released) = (&shared.notice, &shared.released);
                    let regions = new.regions;
                    let link =
                        Link::from_message(&services, regions, &mut received, new.epoch, speaks, notice, released)?;
                    link.channel.lighten();
                    // Its A may be gone with broker and agents before the next one has begun.
                    if let Some(stood) = shared.link.load().channel.stands() {
                        *began = stood;
                    }
                    self.swap(link);
                    // Tables are there with the link; what needs rings comes with a region that has them.
                    shared.offer.store(Arc::new(shared.offer.load().with_tables(&services)));
                    Ok(())
                })
            }
            Down::NewTable(region) => (|| {
                let fd = received.fd("a table")?;
                let table = TableGeneration::new(fd, &region, self.speaks, &self.shared.released)?;
                let link = self.shared.link.load().with_table(region.owner as usize, table);
                self.swap(link);
                Ok(())
            })(),
            Down::Next(next) => Coming::map(next, &mut received, self.speaks.layouts).map(|coming| {
                let ids = vec![coming.region.id];
                self.coming = Some(coming);
                step::at(Step::MoveMapped);
                self.tell(Up::Mapped(RegionIds { ids }));
            }),
            Down::Sealed(sealed) => match self.coming.take_if(|coming| sealed.ids.contains(&coming.region.id)) {
                Some(coming) => self.move_to(coming),
                None => Ok(()),
            },
            Down::Rejoined(rejoined) => self.rejoined(&mut received, &rejoined),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::error!(%error, "the broker's message was not followed; the client goes on with what it has");
        }
    }

    /// The services of the domain from now on: an agent may offer more than those before it.
    fn offered(&self, services: Vec<Service>) -> Result<Services, Error> {
        if services.is_empty() {
            return Ok(self.shared.offer.load().services.clone());
        }
        Services::check(services).map_err(|e| Error::Protocol(e.to_string()))
    }

    /// Goes over to C's next generation, and tells agent and broker.
    fn move_to(&mut self, coming: Coming) -> Result<(), Error> {
        let (id, layout) = (coming.region.id, coming.layout);
        self.shared.move_to(coming)?;
        self.speaks.own = layout;
        // What came newly takes part, too.
        (self.takes_part, self.tries) = (false, 0);
        self.shared.link.load().channel.ring_doorbell(&mut Waker::at(ARMED));
        step::at(Step::MoveDone);
        self.tell(Up::Moved(RegionIds { ids: vec![id] }));
        Ok(())
    }

    fn tell(&self, message: Up) {
        if let Some(broker) = &self.broker {
            let _ = broker.send(message);
        }
    }

    fn swap(&self, link: Link) {
        step::at(Step::LinkMapped);
        self.shared.link.store(Arc::new(link));
        self.shared.version.fetch_add(1, Ordering::Release);
        step::at(Step::LinkSwapped);
        // Nobody may call for a long time: the old agent's regions are let go here, after its last answers were taken.
        let offer = self.shared.offer.load_full();
        for service in offer.calls.values() {
            if let Ok(mut line) = service.visit() {
                line.outlet.follow(&self.shared);
                line.outlet.knock();
                if let Err(error) = service.pump(&mut line, &self.shared, None) {
                    tracing::error!(%error, "responses can't be read");
                }
            }
        }
        for outlet in offer.queues.values() {
            if let Ok(mut outlet) = outlet.visit() {
                outlet.follow(&self.shared);
                outlet.knock();
            }
        }
        self.shared.arrivals.announce();
        self.signal();
    }
}
