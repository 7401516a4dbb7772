//! A business process: in both domains it reports, calls and looks up, and writes down what it was promised and what it saw.
//!
//! ```text
//!  reporter  records of both domains, a few at a time       decider  calls that are answered at once
//!  reader    values of both domains                         slow     calls that stay in the handler for a while
//!  bulk      calls in parts, with a pause between two       explain  calls to the route agent
//! ```

use super::publisher::VALUE;
use super::{Flag, KEYS, PATIENCE, key, socket_dir};
use crate::entry::{Entry, Log, Outcome, What, now};
use crate::roles::agent::ANSWER;
use crate::schedule::Domain;
use crate::verdict::CALLS;
use podshm::{Caller, Client, Error, ErrorKind, Key};
use podshm_testkit::numbered;
use route_client::client::{EXPLAIN, REPORTS, ROUTES};
use route_client::report::{Outcome as Ended, Report};
use route_client::wire::Route;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Shorter waits are not written down.
const SHORTEST_WAIT: u64 = 500_000;
/// How long a push waits for room before it is tried anew.
const ROOM: Duration = Duration::from_millis(100);
/// How long a call in parts rests with some of them sent: most of the time, so that a hand-over finds one.
const HALF: Duration = Duration::from_millis(60);
/// Operations that may fail as they must not, in [`What::Odd`]: calls by their number, and these.
const PUSH: u16 = 100;
const LOOKUP: u16 = 101;

/// What a thread of a client has.
struct Hand {
    log: Log,
    sender: u32,
    stop: Flag,
    pace: Duration,
}

impl Hand {
    fn write(&mut self, aux: u16, entry: Entry) {
        self.log.write(Entry { aux, ..entry }).expect("the log has room");
    }

    fn note(&mut self, what: What, aux: u16, number: u64) {
        self.write(aux, Entry::new(what, self.sender, number));
    }

    /// What was first tried at `since` is there.
    fn waited(&mut self, aux: u16, since: u64) {
        let length = now() - since;
        if length >= SHORTEST_WAIT {
            self.note(What::Waited, aux, length);
        }
    }

    fn odd(&mut self, operation: u16, error: &Error) {
        eprintln!("client {:#x}: operation {operation}: {error}", self.sender);
        self.note(What::Odd, operation, error.kind() as u64);
    }

    fn goes_on(&self) -> bool {
        !self.stop.is_set()
    }
}

/// Joins both domains, works until SIGTERM, and leaves in order. SIGUSR1 makes it leak.
pub fn run(log: PathBuf, sender: u32, routes: &Path, pace: Duration) -> anyhow::Result<()> {
    let (stop, leaks) = (Flag::on(15)?, Flag::on(10)?);
    let log = Log::open(&log)?;
    let hand = || anyhow::Ok(Hand { log: log.another()?, sender, stop: stop.clone(), pace });
    let clients = [
        Client::join(socket_dir(Domain::Work.name())?, PATIENCE)?,
        Client::join(socket_dir(Domain::Routes.name())?, PATIENCE)?,
    ];
    let mut main = hand()?;
    for (domain, client) in clients.iter().enumerate() {
        main.note(What::Joined, domain as u16, client.id());
    }
    let names = std::fs::read_to_string(routes)?;
    let [work, routing] = &clients;
    let reporter = Reporter::new(hand()?, &clients)?;
    let reader = Reader::new(hand()?, &clients, &names)?;
    let mut threads = vec![spawn("reporter", move || reporter.run())?, spawn("reader", move || reader.run())?];
    for (name, services) in [("decider", vec![0, 1]), ("slow", vec![2]), ("bulk", vec![3])] {
        let callers = services.iter().map(|s| work.call(CALLS[*s])).collect::<Result<Vec<_>, _>>()?;
        let calls = Calls { hand: hand()?, callers, first: services[0] as u16, next: [0; 2], since: None };
        threads.push(spawn(name, move || calls.run())?);
    }
    let explain = Explain { hand: hand()?, caller: routing.call(EXPLAIN)?, since: None };
    threads.push(spawn("explain", move || explain.run())?);
    println!("joined");
    while !stop.is_set() {
        if leaks.is_set() {
            podshm_testkit::cgroup::leak();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of client {sender:#x} panicked"))?;
    }
    main.note(What::Left, 0, 0);
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work)
}

struct Reporter {
    hand: Hand,
    queues: [podshm::QueueSender; 2],
    accepted: [u64; 2],
    since: [Option<u64>; 2],
}

impl Reporter {
    fn new(hand: Hand, clients: &[Client; 2]) -> Result<Reporter, Error> {
        let queues = [clients[0].queue("records")?, clients[1].queue(REPORTS)?];
        Ok(Reporter { hand, queues, accepted: [0; 2], since: [None; 2] })
    }

    fn run(mut self) {
        let mut last = Instant::now();
        for turn in 0u64.. {
            if !self.hand.goes_on() {
                break;
            }
            let is_some = [self.some(0, turn % 2 == 1), turn % 2 == 1 && self.some(1, false)];
            if is_some.contains(&true) {
                last = Instant::now();
            } else if last.elapsed() > PATIENCE {
                self.hand.note(What::Odd, PUSH, 0);
                return;
            }
            std::thread::sleep(self.hand.pace);
        }
    }

    /// A few records, one by one or as a batch; says whether any was accepted.
    fn some(&mut self, domain: usize, as_batch: bool) -> bool {
        let first = self.accepted[domain];
        let count = 1 + first % 8;
        self.hand.note(What::Intends, domain as u16, first + count);
        let began = now();
        let since = *self.since[domain].get_or_insert(began);
        let mut result = Ok(());
        let queue = &self.queues[domain];
        let sender = self.hand.sender;
        if as_batch {
            let mut accepted = 0;
            match queue.batch() {
                Ok(mut batch) => {
                    for number in first..first + count {
                        result = batch.try_push(&record(domain, sender, number)).map(drop);
                        if result.is_err() {
                            break;
                        }
                        accepted += 1;
                    }
                    batch.publish();
                }
                Err(error) => result = Err(error),
            }
            self.accepted[domain] += accepted;
        } else {
            for number in first..first + count {
                result = queue.push(&record(domain, sender, number), ROOM).map(drop);
                if result.is_err() {
                    break;
                }
                self.accepted[domain] += 1;
            }
        }
        if let Err(error) = result
            && !matches!(error.kind(), ErrorKind::Full | ErrorKind::Deadline | ErrorKind::AgentAway)
        {
            self.hand.odd(PUSH, &error);
        }
        let is_some = self.accepted[domain] > first;
        self.hand.note(What::Accepted, domain as u16, self.accepted[domain]);
        if is_some {
            self.since[domain] = None;
            self.hand.waited(2 + domain as u16, since);
        }
        is_some
    }
}

fn record(domain: usize, sender: u32, number: u64) -> Vec<u8> {
    if domain == 0 {
        return numbered::encode(sender, number, 24 + (number as usize * 13) % 180);
    }
    let report = Report {
        route: number % 97,
        endpoint: number % 1000,
        outcome: Ended::Success,
        latency_ns: 100_000,
        seq: number,
    };
    [report.encode().as_slice(), &numbered::encode(sender, number, numbered::MIN_RECORD)].concat()
}

struct Reader {
    hand: Hand,
    values: Vec<Key>,
    newest: Vec<u64>,
    routes: Vec<Key>,
    buffer: Vec<u8>,
    found: [u64; 2],
}

impl Reader {
    fn new(hand: Hand, clients: &[Client; 2], names: &str) -> Result<Reader, Error> {
        let (values, routes) = (clients[0].table("values")?, clients[1].table(ROUTES)?);
        Ok(Reader {
            hand,
            values: (0..KEYS).map(|k| values.key(&key(k))).collect(),
            newest: vec![0; KEYS as usize],
            routes: names.lines().map(|name| routes.key(name.as_bytes())).collect(),
            buffer: vec![0; 64 * 1024],
            found: [0; 2],
        })
    }

    fn run(mut self) {
        for turn in 0usize.. {
            if !self.hand.goes_on() {
                break;
            }
            for k in 0..self.values.len() {
                self.value(k);
            }
            for n in 0..8 {
                let at = (turn * 8 + n) % self.routes.len();
                self.route(at);
            }
            if turn.is_multiple_of(16) {
                self.count();
            }
            std::thread::sleep(self.hand.pace);
        }
        self.count();
    }

    fn count(&mut self) {
        for domain in 0..2 {
            self.hand.note(What::Looked, domain as u16, self.found[domain]);
        }
    }

    /// Looks a key up; its length, if it is there.
    fn look(&mut self, domain: usize, at: usize) -> Option<usize> {
        let began = now();
        let key = if domain == 0 { &mut self.values[at] } else { &mut self.routes[at] };
        let found = key.get(&mut self.buffer);
        self.hand.waited(domain as u16, began);
        match found {
            Ok(Some(len)) => {
                self.found[domain] += 1;
                return Some(len);
            }
            Ok(None) => self.hand.note(What::Missing, domain as u16, at as u64),
            Err(error) => self.hand.odd(LOOKUP, &error),
        }
        None
    }

    fn value(&mut self, k: usize) {
        let Some(len) = self.look(0, k) else { return };
        match numbered::decode(&self.buffer[..len.min(VALUE)]) {
            Ok(value) if value.sender as usize == k => {
                let newest = self.newest[k];
                if value.sequence < newest {
                    let entry = Entry::new(What::Back, self.hand.sender, value.sequence);
                    self.hand.write(k as u16, Entry { extra: newest, ..entry });
                }
                self.newest[k] = value.sequence;
            }
            _ => self.hand.note(What::Torn, 0, k as u64),
        }
    }

    fn route(&mut self, at: usize) {
        let Some(len) = self.look(1, at) else { return };
        let mut bytes = &self.buffer[..len];
        if Route::decode(&mut bytes).is_err() {
            self.hand.note(What::Torn, 1, at as u64);
        }
    }
}

/// How a call ended. What must not happen is written down by its caller.
fn outcome(result: Result<bool, &Error>) -> Option<Outcome> {
    Some(match result {
        Ok(true) => Outcome::Answered,
        Ok(false) => Outcome::Wrong,
        Err(error) => match error.kind() {
            ErrorKind::AgentAway => Outcome::Away,
            ErrorKind::OutcomeUnknown => Outcome::Unknown,
            ErrorKind::Deadline => Outcome::Deadline,
            ErrorKind::Failed => Outcome::Failed,
            _ => return None,
        },
    })
}

fn ended(hand: &mut Hand, service: u16, number: u64, result: &Result<bool, Error>) -> bool {
    let how = outcome(result.as_ref().map(|good| *good));
    if let (None, Err(error)) = (how, result) {
        hand.odd(service, error);
    }
    let how = how.unwrap_or(Outcome::Failed);
    hand.write(service, Entry { flags: how as u8, ..Entry::new(What::CallEnded, hand.sender, number) });
    how == Outcome::Answered
}

struct Calls {
    hand: Hand,
    callers: Vec<Caller>,
    /// Number of the first service.
    first: u16,
    next: [u64; 2],
    /// Since when nobody has answered.
    since: Option<u64>,
}

impl Calls {
    fn run(mut self) {
        for turn in 0usize.. {
            if !self.hand.goes_on() {
                break;
            }
            let which = if turn.is_multiple_of(4) { self.callers.len() - 1 } else { 0 };
            let began = now();
            if self.one(which) {
                // Slow ones and those in parts take their time by themselves.
                if self.callers.len() > 1 {
                    self.hand.waited(4, self.since.unwrap_or(began));
                }
                self.since = None;
            } else {
                self.since.get_or_insert(began);
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(self.hand.pace / 4);
        }
    }

    /// One call to the service of this index; says whether it was answered.
    fn one(&mut self, which: usize) -> bool {
        let number = self.next[which];
        self.next[which] += 1;
        let service = self.first + which as u16;
        let is_bulk = CALLS[usize::from(service)] == "bulk";
        let len = if is_bulk { 60_000 } else { 24 + number as usize % 370 };
        let request = numbered::encode(self.hand.sender, number, len);
        self.hand.note(What::CallBegins, service, number);
        let timeout = Duration::from_secs(10);
        let mut answer = vec![0; 400];
        let caller = self.callers[which].clone();
        let result = if is_bulk {
            let mut has_paused = false;
            let hand = &mut self.hand;
            let fill = |offset: usize, part: &mut [u8]| {
                part.copy_from_slice(&request[offset..offset + part.len()]);
                if !has_paused && offset > 0 {
                    has_paused = true;
                    hand.note(What::CallHalf, service, number);
                    std::thread::sleep(HALF);
                }
                if offset + part.len() == len {
                    hand.note(What::CallFull, service, number);
                }
            };
            caller.call_with(len, fill, timeout, |offset, _, part| {
                answer[offset..offset + part.len()].copy_from_slice(part);
            })
        } else if number.is_multiple_of(2) {
            caller.call(&request, &mut answer, timeout)
        } else {
            caller.start(&request, timeout).and_then(|mut pending| pending.wait()).map(|bytes| {
                answer[..bytes.len()].copy_from_slice(&bytes);
                bytes.len()
            })
        };
        let sender = self.hand.sender;
        let is_right = |found: usize| {
            found == len.min(400)
                && numbered::decode(&answer[..found])
                    .is_ok_and(|answer| (answer.sender, answer.sequence) == (sender | ANSWER, number))
        };
        let result = result.map(is_right);
        ended(&mut self.hand, service, number, &result)
    }
}

struct Explain {
    hand: Hand,
    caller: Caller,
    since: Option<u64>,
}

impl Explain {
    fn run(mut self) {
        let service = CALLS.iter().position(|name| *name == "explain").unwrap_or(0) as u16;
        for number in 0u64.. {
            if !self.hand.goes_on() {
                break;
            }
            let mut request = *b"echo:...........................................................";
            request[8..16].copy_from_slice(&number.to_le_bytes());
            let mut answer = [0; 64];
            self.hand.note(What::CallBegins, service, number);
            let began = now();
            let result = self.caller.call(&request, &mut answer, Duration::from_secs(10));
            let result = result.map(|len| len == 64 && answer == request);
            if ended(&mut self.hand, service, number, &result) {
                self.hand.waited(5, self.since.take().unwrap_or(began));
            } else {
                self.since.get_or_insert(began);
                std::thread::sleep(Duration::from_millis(1));
            }
            if number.is_multiple_of(8) {
                std::thread::sleep(self.hand.pace / 4);
            }
        }
    }
}
