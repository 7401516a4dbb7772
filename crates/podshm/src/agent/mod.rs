//! The agent's side: one process that serves a domain.
//!
//! ```text
//!  Agent::poll ─┬─ broker: clients come and go, a successor waits
//!               ├─ doorbells (epoll): cold clients that have something
//!               └─ hot clients, each a bounded batch: claim, handle, acknowledge, answer, wake
//! ```
//! A client is *hot* while it has records: it is polled and never signals. After a while without any it is *cold*: armed, and its
//! doorbell wakes the agent. So a thousand idle clients cost nothing.

mod answer;
mod answers;
mod broker;
mod client;
mod clients;
mod connect;
mod desk;
mod doorbells;
mod event_loop;
mod handler;
mod moving;
mod rejoin;
mod serve;
mod table;

pub use answer::{Answer, Deferred};
pub use connect::{AgentBuilder, DEFAULT_CALL_RING, DEFAULT_RING};
pub use event_loop::AgentWaker;
pub use handler::{Handler, Record, Request};
pub use table::TableWriter;

use crate::absence::Absence;
use crate::broker_socket::BrokerSocket;
use crate::clock;
use crate::error::Error;
use crate::wakes::WakeStats;
use answer::{Deferral, Inbound};
use clients::Clients;
use podshm_layout::Layouts;
use podshm_layout::step::{self, Step};
use podshm_proto::{ClientId, MAX_STATE, RegionIds, Services, State, Up};
use podshm_region::{Memory, ReadMap, Window, fork};
use rustix::event::{Timespec, epoll};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const BROKER: u64 = 0;
const DEFERRED: u64 = 1;
const TIMER: u64 = u64::MAX;
/// Rounds over the hot clients, and records handled in them, between two looks at the doorbells and the broker: a look is a system call,
/// a round without work some ten nanoseconds. Records count because handlers may take their time: neither a cold client nor a successor
/// waits for more of them than this, however many the hot clients send.
const ROUNDS: u32 = 1024;

/// Most that one look takes up.
const AT_ONCE: usize = 64;

/// How long an agent serves without making sure that its broker is the one that it was, in ns: one that was started anew lets nobody
/// else serve for longer than this (see `BrokerConfig::LEAST_GRACE`). It matters to an agent that was stopped: it can't see an epoch on
/// a notice page whose writer is dead.
const LEASE: u64 = 1_000_000_000;

/// Rounds without work between two looks at the clock.
const IDLE_ROUNDS: u32 = 64;

/// What a [`Agent::poll`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Records or requests were handled.
    Handled(usize),
    /// Nothing to do now.
    Idle,
    /// A successor is ready: call [`Agent::close`] and end.
    CloseAsked,
}

/// A connected agent. It serves from [`Agent::ready`] on, once the broker lets it take over.
///
/// ```no_run
/// # fn main() -> Result<(), podshm::Error> {
/// use std::time::Duration;
/// struct Log;
/// impl podshm::Handler for Log {
///     fn record(&mut self, record: podshm::Record<'_>) {
///         println!("{}: {} bytes", record.member, record.bytes.len());
///     }
/// }
/// let mut agent = podshm::Agent::builder().table("routes", 10_000, 4 << 20).queue("reports", 64 * 1024, 1024)
///     .connect("/run/podshm/routing", Duration::from_secs(5))?;
/// agent.table("routes")?.put(b"shop/cart:http", b"10.0.0.7:80")?;
/// agent.ready()?;
/// agent.run(&mut Log, || false)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Agent {
    process: u32,
    broker: Option<BrokerSocket>,
    absence: Absence,
    /// When it last made sure of its broker, in coarse ns.
    sure: u64,
    /// How often it went back to a broker.
    returns: u32,
    /// Every region that is held here, to be presented to a broker that was started anew.
    held: RefCell<HashMap<u64, Arc<Memory>>>,
    said_ready: bool,
    services: Services,
    layouts: Layouts,
    notice: ReadMap,
    poll: OwnedFd,
    clients: Clients,
    /// Clients whose doorbells have rung and still hold what they were rung by. They are hot.
    unheard: Vec<u64>,
    /// Clients that ring too much, or whose doorbell is gone.
    polled: Vec<u64>,
    wakes: WakeStats,
    /// In the epoll, for event loops: when a polled client's turn comes.
    timer: Option<OwnedFd>,
    /// Answer regions that are mapped, by their number, until a client gets them.
    pool: HashMap<u64, (podshm_proto::Region, podshm_region::WriteMap)>,
    tables: BTreeMap<usize, table::Slot>,
    epoch: u64,
    state: Option<Vec<u8>>,
    state_is_new: bool,
    close_asked: bool,
    /// Clients that are to go over to another region.
    moving: usize,
    rounds: u32,
    spin: Duration,
    /// Rounds without work since the last one with some.
    idle: u32,
    idle_since: Instant,
    /// It has slept since it last handled something.
    slept: bool,
    /// What it handled last it had slept before, and whether more followed soon when that was last so.
    first: bool,
    first_is_followed: bool,
    scratch: Vec<u8>,
    deferral: Deferral,
    deferred: mpsc::Receiver<Inbound>,
}

impl Agent {
    /// Starts to describe an agent.
    pub fn builder() -> AgentBuilder {
        AgentBuilder::default()
    }

    /// The writer of table `name`.
    pub fn table(&mut self, name: &str) -> Result<TableWriter<'_>, Error> {
        self.check_fork()?;
        let index = self.service(name, podshm_proto::ServiceKind::Table)?;
        Ok(TableWriter::new(self, index))
    }

    /// Says that the tables are filled. The broker lets this agent take over at once, or when its predecessor has closed.
    pub fn ready(&mut self) -> Result<(), Error> {
        self.check_fork()?;
        self.said_ready = true;
        // A broker that is away hears it when it is back.
        self.tell(Up::Ready(podshm_proto::Nothing {}))?;
        step::at(Step::HandoverReady);
        Ok(())
    }

    /// How many agents have served the domain up to this one; 0 before it serves.
    pub fn epoch(&self) -> u64 {
        // Until then the field is one that no notice page has: whoever compares must not find that this agent serves.
        if self.state.is_some() { self.epoch } else { 0 }
    }

    /// What the predecessor left by [`Agent::close`]; `None` before this agent serves, empty after a crash.
    pub fn inherited_state(&self) -> Option<&[u8]> {
        self.state.as_deref()
    }

    /// Clients that are served now, dead ones that are being drained included.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Clients that are polled now; the others sleep on their doorbells.
    pub fn hot_clients(&self) -> usize {
        self.clients.hot().len()
    }

    /// How long the agent goes on polling after the last record before it sleeps; 50 µs by default. Where records and calls come
    /// one by one with pauses it sleeps at once: polling would find nothing, and who was just answered may need this very core.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Serves until `stop` says so or a successor is ready; then closes in order, leaving no state.
    pub fn run(&mut self, handler: &mut impl Handler, mut stop: impl FnMut() -> bool) -> Result<(), Error> {
        loop {
            match self.poll(handler)? {
                Progress::Handled(_) => {}
                Progress::Idle => self.wait(Duration::from_millis(20))?,
                Progress::CloseAsked => return self.close(Vec::new()),
            }
            if stop() {
                return self.close(Vec::new());
            }
        }
    }

    /// One round: a bounded batch from each client that has something. The round in which this agent takes over serves nobody, so
    /// that what it inherits can be put to use first.
    #[inline]
    pub fn poll(&mut self, handler: &mut impl Handler) -> Result<Progress, Error> {
        self.check_fork()?;
        self.rounds += 1;
        if self.rounds >= ROUNDS || self.clients.hot().is_empty() {
            self.rounds = 0;
            self.look(Duration::ZERO)?;
            if std::mem::take(&mut self.state_is_new) {
                return Ok(Progress::Idle);
            }
        }
        if self.close_asked {
            return Ok(Progress::CloseAsked);
        }
        let handled = self.serve_hot(handler)?;
        if handled > 0 {
            self.idle = 0;
            self.rounds += handled as u32;
            self.first = std::mem::take(&mut self.slept);
            return Ok(Progress::Handled(handled));
        }
        self.idle += 1;
        Ok(Progress::Idle)
    }

    /// Sleeps until something comes, for at most `timeout`. While clients were hot a moment ago it spins instead.
    #[inline]
    pub fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        self.check_fork()?;
        if self.spins() {
            std::hint::spin_loop();
            return Ok(());
        }
        self.hear();
        let began = self.sleep_begins();
        if self.clients.cool_down() {
            self.idle = 0;
            self.look(timeout)?;
            self.sleep_ends(began);
        }
        Ok(())
    }

    /// To be asked while clients are still hot: when a sleep begins that follows the first work after another one.
    fn sleep_begins(&self) -> Option<Instant> {
        (self.first && !self.clients.hot().is_empty()).then(Instant::now)
    }

    fn sleep_ends(&mut self, began: Option<Instant>) {
        self.slept = true;
        if let Some(began) = began {
            // Twice, because whoever got an answer had to wake up first.
            self.first_is_followed = began.elapsed() < 2 * self.spin;
        }
    }

    /// Whether clients were hot a moment ago, and whether more is to be expected of them.
    #[inline]
    fn spins(&mut self) -> bool {
        let alone = self.first && !self.first_is_followed;
        if alone || self.clients.hot().is_empty() || self.spin.is_zero() {
            return false;
        }
        // A look at the clock costs more than a round without work.
        if self.idle == IDLE_ROUNDS {
            self.idle_since = Instant::now();
        }
        self.idle == 0 || !self.idle.is_multiple_of(IDLE_ROUNDS) || self.idle_since.elapsed() < self.spin
    }

    /// Looks at doorbells, the broker and deferred answers; waits for them for at most `timeout`. Says how many had something.
    fn look(&mut self, timeout: Duration) -> Result<usize, Error> {
        self.wakes.looks += 1;
        let mut began = clock::now_coarse();
        self.look_for_broker()?;
        if self.broker.is_none() && self.absence.is_alone() {
            self.sure = began;
        }
        self.hear();
        let timeout = self.until_next_look(timeout);
        let mut events = Vec::with_capacity(AT_ONCE);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let is_whole = match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(found) => found < AT_ONCE,
            // Also where it was stopped in its sleep: what came meanwhile is not told.
            Err(rustix::io::Errno::INTR) => false,
            Err(e) => return Err(Error::system("epoll_wait")(e.into())),
        };
        let found = events.len();
        for event in events {
            match event.data.u64() {
                BROKER => {
                    self.flush_broker();
                    self.read_broker()?;
                }
                DEFERRED => self.take_deferred(),
                TIMER => self.timer_called(),
                token => self.doorbell(token - 2, event.flags),
            }
        }
        // It may have hung up by now where the look was long, or not whole. The clock first: it may be stopped between the two.
        let now = clock::now_coarse();
        if !is_whole || now.saturating_sub(began) > LEASE / 2 {
            began = now;
            self.flush_broker();
            self.read_broker()?;
        }
        // One that was found a moment ago has yet to say whether another has served in this one's place.
        if self.has_broker() {
            self.sure = began;
        }
        Ok(found + self.look_at_polled())
    }

    /// Whether another agent serves by now, by the broker's notice page: one cached word.
    #[inline]
    fn check_epoch(&self) -> Result<(), Error> {
        if serve::serves(&self.notice, self.epoch) { Ok(()) } else { Err(Error::Superseded) }
    }

    #[inline]
    fn serve_hot(&mut self, handler: &mut impl Handler) -> Result<usize, Error> {
        let mut handled = 0;
        if serve::is_late(self.sure) {
            // It was stopped, or its author was busy. What comes of the look is known before anything is handled.
            self.rounds = ROUNDS;
            return Ok(0);
        }
        let (mut drained, mut left) = (Vec::new(), Vec::new());
        for at in 0..self.clients.hot().len() {
            self.check_epoch()?;
            let Some(client) = self.clients.hot_at(at) else { continue };
            // A client that marks a ring wakes its agent as for a record, so that whoever is cold has marked none.
            if self.moving > 0 && client.move_is_due() {
                let reading = moving::Reading { services: &self.services, layouts: self.layouts, held: &self.held };
                left.extend(client.follow_move(reading));
                self.scratch.resize(self.scratch.len().max(client.longest_record()), 0);
            }
            let mut tools = serve::Tools {
                services: &self.services,
                scratch: &mut self.scratch,
                deferral: &mut self.deferral,
                notice: &self.notice,
                epoch: self.epoch,
                sure: self.sure,
            };
            let done = client.serve(&mut tools, handler);
            if !self.deferral.is_served_here() {
                return Err(crate::client::forked());
            }
            handled += done;
            if done == 0 && client.gone && client.is_drained() {
                drained.push(client.id);
            }
        }
        if !left.is_empty() {
            self.moving -= left.len();
            self.tell(Up::Release(RegionIds { ids: left }))?;
        }
        for id in drained {
            self.forget(id)?;
        }
        Ok(handled)
    }

    fn forget(&mut self, id: u64) -> Result<(), Error> {
        if let Some(client) = self.clients.remove(id) {
            let ids = client.regions();
            self.moving -= usize::from(client.next.is_some());
            drop(client);
            self.tell(Up::Drained(ClientId { client: id }))?;
            self.tell(Up::Release(RegionIds { ids }))?;
        }
        Ok(())
    }

    /// Finishes what is in hand, closes every ring where it stands, leaves `state` to the successor and hangs up. Nothing is handled
    /// after this.
    pub fn close(&mut self, mut state: Vec<u8>) -> Result<(), Error> {
        self.check_fork()?;
        if state.len() > MAX_STATE {
            return Err(Error::TooLong { what: "state for the successor", found: state.len(), most: MAX_STATE });
        }
        // Calls that handlers have put off, and answers that have no room yet, get a second.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && self.check_epoch().is_ok() {
            self.take_deferred();
            let mut waiting = self.deferral.out > 0;
            for client in self.clients.iter_mut() {
                client.flush_answers();
                waiting |= client.has_answers_waiting();
            }
            if !waiting {
                break;
            }
            self.look(Duration::from_millis(1))?;
        }
        for client in self.clients.iter_mut() {
            client.close();
        }
        step::at(Step::HandoverClosed);
        self.tell(Up::Closed(State { state: std::mem::take(&mut state) }))?;
        self.tell(Up::Bye(podshm_proto::Nothing {}))?;
        self.clients.clear();
        self.broker = None;
        self.absence.give_up();
        self.held.get_mut().clear();
        Ok(())
    }

    /// Refuses to touch the parent's memory and sockets. One load.
    #[inline(always)]
    fn check_fork(&self) -> Result<(), Error> {
        if fork::epoch() == self.process { Ok(()) } else { Err(crate::client::forked()) }
    }

    fn take_deferred(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.deferral.event, &mut count);
        while let Ok(inbound) = self.deferred.try_recv() {
            self.deferral.out = self.deferral.out.saturating_sub(1);
            let id = inbound.client;
            if let Some(client) = self.clients.get_mut(id) {
                client.answer_later(inbound);
                // An answer that has no room: its client is to ring for reading, too.
                if client.has_answers_waiting() {
                    self.clients.heat_up(id);
                }
            }
        }
    }

    fn service(&self, name: &str, expected: podshm_proto::ServiceKind) -> Result<usize, Error> {
        match self.services.find(name) {
            Some((index, found)) if found == expected => Ok(index),
            Some((_, found)) => Err(Error::WrongKind { name: name.to_owned(), found, expected }),
            None => {
                let offered: Vec<&str> = self.services.iter().map(|(s, _)| s.name.as_str()).collect();
                Err(Error::NoService {
                    name: name.to_owned(),
                    domain: "this agent's".into(),
                    offered: offered.join(", "),
                })
            }
        }
    }
}

/// The first page of a region that this agent writes.
type Own = Window;
