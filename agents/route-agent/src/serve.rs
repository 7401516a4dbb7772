//! The agent at work: source, store and health tied to a podshm domain.
//!
//! ```text
//! start: list ─▶ store ─▶ table ─▶ ready        (the predecessor serves meanwhile)
//! take-over: its state ─▶ health ─▶ all routes weighed anew ─▶ table
//! each round: records ─▶ health; events ─▶ store ─▶ table; some times a second health ─▶ weights ─▶ table
//! close: health ─▶ state for the successor
//! ```
//! - The table is filled before the predecessor's state is there, since the predecessor serves on until that is done. The state
//!   is published before anything else is done: before the first record or request is handled. Until then, some hundred
//!   microseconds in which clients go over, a pick may still hit who is ejected.
//! - What can't be published now (the table must grow and the broker is away) is kept and tried again; meanwhile the
//!   table isn't touched, so readers see its age.
//! - While the source can't ask upstream, what is known is served on; the table isn't touched either.
//! - After a crash the state is empty: everybody is healthy again.

mod config;
mod routes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use podshm::{Agent, ErrorKind, Progress};
use route_client::{
    RouteKey,
    client::{EXPLAIN, MAX_EXPLAIN_LEN, REPORTS, ROUTES},
};

use crate::{Changes, Health, Source, SourceEvent, Store, delivered::Log};

pub use config::{Config, ServeError, Stats};
use routes::Routes;

/// Bytes of a client's ring of reports.
pub const REPORT_RING: u32 = 64 * 1024;
/// The longest record: a report and a trailer.
pub const MAX_RECORD_LEN: u32 = 128;
/// A request that begins so is a probe: it comes back as it is.
pub const ECHO: &[u8] = b"echo:";
const EXPLAIN_RING: u32 = 32 * 1024;
/// How often error rates are judged and weights published.
const TICK: Duration = Duration::from_millis(200);
/// How often the table is touched and numbers are given.
const SECOND: Duration = Duration::from_secs(1);
/// The longest sleep.
const SLEEP: Duration = Duration::from_millis(20);
/// Events taken in one round, so that a burst doesn't keep records waiting.
const EVENTS_PER_ROUND: usize = 64;
/// Bytes published as one batch.
const BATCH: usize = 1 << 20;
/// What the table begins with; it grows by itself. The same for every agent, however many routes it begins with: what clients have joined
/// with is what a successor has to offer.
const KEYS: u64 = 1024;
const TABLE: u64 = 4 << 20;
/// Problems that are kept to be asked for; all are logged.
const PROBLEMS: usize = 100;

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    Serving,
    /// A successor is ready: [`Server::close`].
    CloseAsked,
}

/// A serving agent.
#[derive(Debug)]
pub struct Server<S> {
    config: Config,
    agent: Agent,
    source: S,
    source_ended: bool,
    routes: Routes,
    /// Values that are still to be published.
    pending: BTreeMap<RouteKey, Option<Arc<[u8]>>>,
    taken_over: bool,
    /// It was said that what is upstream can't be asked, and not that it can be again.
    away: bool,
    started: Instant,
    next_tick: Instant,
    next_second: Instant,
    events: u64,
    bad_input: u64,
    problems: VecDeque<String>,
}

impl<S: Source> Server<S> {
    /// Takes the source's list, connects, fills the table and says that it is ready.
    pub fn start(config: Config, mut source: S) -> Result<Self, ServeError> {
        let started = Instant::now();
        let mut problems = Vec::new();
        let list = loop {
            match source.poll(0) {
                Some(SourceEvent::Snapshot(list)) => break list,
                Some(SourceEvent::Bad(error)) => problems.push(error.to_string()),
                Some(SourceEvent::Away { found }) => problems.push(found),
                Some(SourceEvent::End) => return Err(ServeError::NoList { found: problems.join("; ") }),
                Some(SourceEvent::Event(_)) => {}
                None if started.elapsed() > config.timeout => {
                    return Err(ServeError::NoList { found: format!("nothing in {:?}", config.timeout) });
                }
                None => std::thread::sleep(SLEEP),
            }
        };
        problems.extend(list.bad.iter().map(ToString::to_string));
        if !list.complete {
            problems.push("the list of slices broke off: routes that it didn't come to are missing".into());
        }
        let mut health = Health::new(config.health);
        let mut store = Store::new();
        let changes = store.replace(list, &health);
        problems.extend(changes.bad.iter().map(ToString::to_string));
        for change in &changes.routes {
            health.set_members(change.key.id(), &store.members(&change.key), 0);
        }
        let log = config
            .log_delivered
            .as_ref()
            .map(|path| Log::open(path).map_err(|source| ServeError::Log { path: path.clone(), source }));
        let log = log.transpose()?;

        let agent = Agent::builder()
            .table(ROUTES, KEYS, TABLE)
            .queue(REPORTS, REPORT_RING, MAX_RECORD_LEN)
            .idempotent_call(EXPLAIN, EXPLAIN_RING, MAX_EXPLAIN_LEN as u32)
            .connect(&config.socket_dir, config.timeout)?;
        source.wake_by(agent.waker());
        let routes = Routes { store, health, log, log_error: None, now_ns: 0, records: 0, bad_records: 0 };
        let mut server = Self {
            config,
            agent,
            source,
            source_ended: false,
            routes,
            pending: BTreeMap::new(),
            taken_over: false,
            away: false,
            started,
            next_tick: started,
            next_second: started,
            events: 0,
            bad_input: 0,
            problems: VecDeque::new(),
        };
        problems.into_iter().for_each(|problem| server.complain(problem));
        let mut table = server.agent.table(ROUTES)?;
        for (key, value) in server.routes.store.values() {
            table.put(key.as_bytes(), value)?;
        }
        server.agent.ready()?;
        Ok(server)
    }

    /// One round: records, requests, events, and what is due. Sleeps a little if there is nothing.
    pub fn step(&mut self) -> Result<Step, ServeError> {
        let progress = self.agent.poll(&mut self.routes)?;
        if let Some(source) = self.routes.log_error.take() {
            return Err(ServeError::Log { path: self.config.log_delivered.clone().unwrap_or_default(), source });
        }
        if progress == Progress::CloseAsked {
            return Ok(Step::CloseAsked);
        }
        let now = Instant::now();
        self.routes.now_ns = self.ns(now);
        if !self.taken_over && self.agent.inherited_state().is_some() {
            self.take_over();
            self.publish()?;
            return Ok(Step::Serving);
        }
        self.take_events();
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            for route in self.routes.health.tick(self.routes.now_ns) {
                if let Some(change) = self.routes.store.reweigh(route, &self.routes.health) {
                    self.pending.insert(change.key, change.value);
                }
            }
        }
        self.publish()?;
        if progress == Progress::Idle {
            let due = self.source.next_due_ns().filter(|_| !self.source_ended);
            let left = due.map_or(SLEEP, |due| Duration::from_nanos(due.saturating_sub(self.routes.now_ns)));
            self.agent.wait(left.min(SLEEP))?;
        }
        Ok(Step::Serving)
    }

    /// Serves until `stop` says so or a successor is ready, gives its numbers to `each_second`, then closes.
    pub fn run(
        mut self,
        mut stop: impl FnMut() -> bool,
        mut each_second: impl FnMut(&Stats),
    ) -> Result<Stats, ServeError> {
        let mut next = Instant::now();
        while !stop() && self.step()? == Step::Serving {
            if Instant::now() >= next {
                next += SECOND;
                each_second(&self.stats());
            }
        }
        self.close()
    }

    /// Ends in order; the successor gets what is known of the endpoints' health, as much as fits.
    pub fn close(mut self) -> Result<Stats, ServeError> {
        let stats = self.stats();
        let now_ns = self.ns(Instant::now());
        let (state, left_out) = self.routes.health.snapshot_within(now_ns, podshm_proto::MAX_STATE);
        if left_out > 0 {
            tracing::warn!(
                left_out,
                most = podshm_proto::MAX_STATE,
                "the health of all endpoints doesn't fit; the successor gets the ejected and those that err most"
            );
        }
        self.agent.close(state)?;
        Ok(stats)
    }

    /// The numbers now.
    pub fn stats(&self) -> Stats {
        let Routes { store, health, records, bad_records, .. } = &self.routes;
        Stats {
            version: self.config.version.clone(),
            epoch: self.agent.epoch(),
            clients: self.agent.clients(),
            records: *records,
            routes: store.counts().2,
            events: self.events,
            ejected: store.values().map(|(key, _)| health.ejected(key.id())).sum(),
            upstream: self.source.connections(),
            bad_records: *bad_records,
            bad_input: self.bad_input,
            is_current: self.source.is_current(),
        }
    }

    /// The last problems with the input, at most 100.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }

    fn ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Goes on from the predecessor's health: every route is weighed anew.
    fn take_over(&mut self) {
        self.taken_over = true;
        let state = self.agent.inherited_state().unwrap_or_default();
        if state.is_empty() {
            tracing::info!(epoch = self.agent.epoch(), "serving; no state from a predecessor, everybody is healthy");
            return;
        }
        let Routes { store, health, now_ns, .. } = &mut self.routes;
        match Health::restore(self.config.health, state, *now_ns) {
            Ok(restored) => *health = restored,
            Err(error) => {
                tracing::error!(%error, "the predecessor's state can't be used; everybody is healthy");
                return;
            }
        }
        let keys: Vec<RouteKey> = store.values().map(|(key, _)| key.clone()).collect();
        for key in &keys {
            health.set_members(key.id(), &store.members(key), *now_ns);
        }
        health.forget_pending();
        for key in keys {
            if let Some(change) = store.reweigh(key.id(), health) {
                self.pending.insert(change.key, change.value);
            }
        }
        let (epoch, bytes) = (self.agent.epoch(), state.len());
        tracing::info!(epoch, bytes, reweighed = self.pending.len(), "serving, with the predecessor's state");
    }

    fn take_events(&mut self) {
        if self.away && self.source.is_current() {
            self.away = false;
            tracing::info!("the source of slices is back");
        }
        for _ in 0..EVENTS_PER_ROUND {
            if self.source_ended {
                return;
            }
            let Some(event) = self.source.poll(self.routes.now_ns) else { return };
            let Routes { store, health, .. } = &mut self.routes;
            match event {
                SourceEvent::Event(event) => {
                    let changes = store.apply(event, health);
                    self.events += 1;
                    self.take_changes(changes);
                }
                SourceEvent::Snapshot(list) => {
                    let bad: Vec<String> = list.bad.iter().map(ToString::to_string).collect();
                    let changes = store.replace(list, health);
                    bad.into_iter().for_each(|problem| self.complain(problem));
                    self.take_changes(changes);
                }
                SourceEvent::Bad(error) => self.complain(error.to_string()),
                SourceEvent::Away { found } => {
                    self.away = true;
                    tracing::warn!(found, "the source of slices is away; what is known stays in use, and grows old");
                }
                SourceEvent::End => {
                    self.source_ended = true;
                    tracing::info!(events = self.events, "the source has no more events; what is known stays in use");
                }
            }
        }
    }

    fn take_changes(&mut self, changes: Changes) {
        changes.bad.iter().for_each(|error| self.complain(error.to_string()));
        let Routes { store, health, now_ns, .. } = &mut self.routes;
        for change in changes.routes {
            health.set_members(change.key.id(), &store.members(&change.key), *now_ns);
            self.pending.insert(change.key, change.value);
        }
    }

    fn publish(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        while !self.pending.is_empty() {
            let mut bytes = 0;
            let batch: Vec<_> = self
                .pending
                .iter()
                .take_while(|(_, value)| {
                    let before = bytes;
                    bytes += value.as_ref().map_or(0, |v| v.len());
                    before == 0 || bytes <= BATCH
                })
                .map(|(key, value)| (key.as_bytes().to_vec(), value.as_ref().map(|v| v.to_vec())))
                .collect();
            match self.agent.table(ROUTES)?.publish(&batch) {
                Ok(()) => {
                    for _ in &batch {
                        self.pending.pop_first();
                    }
                }
                Err(error) if may_pass(error.kind()) => {
                    if now >= self.next_second {
                        self.next_second = now + SECOND;
                        let waiting = self.pending.len();
                        tracing::error!(%error, waiting, "routes can't be published; the old ones stay, trying again");
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if now >= self.next_second {
            self.next_second = now + SECOND;
            // What nobody can vouch for grows old: readers see it.
            if self.source.is_current() {
                self.agent.table(ROUTES)?.touch();
            }
        }
        Ok(())
    }

    fn complain(&mut self, problem: String) {
        tracing::warn!("{problem}");
        self.bad_input += 1;
        if self.problems.len() == PROBLEMS {
            self.problems.pop_front();
        }
        self.problems.push_back(problem);
    }
}

/// Whether a publication that failed so may succeed later.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TableFull | ErrorKind::Deadline | ErrorKind::BrokerAway | ErrorKind::Refused)
}
