//! The agent of domain `work`: it takes a queue, answers calls at once and later, publishes, and writes down what it is given.

use super::publisher::Publisher;
use super::{Flag, PATIENCE, socket_dir};
use crate::entry::{Entry, Log, MARKED, What, now};
use crate::verdict::CALLS;
use podshm::steps::{self, Step, plant, set_hook};
use podshm::{Agent, AgentBuilder, Answer, Deferred, Error, ErrorKind, Handler, Progress, Record, Request};
use podshm_layout::{Layout, Layouts};
use podshm_testkit::numbered;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// Where this is 1, an agent speaks memory layout 1 only. As `podshm-test-participant` has it.
pub const LAYOUTS: &str = "PODSHM_TEST_LAYOUTS";
/// A bug for the harness to catch: see [`Bug`].
pub const BUG: &str = "PODSHM_CHAOS_BUG";
/// Ring of queue `records` and of call `bulk`.
pub const RING: u32 = 16 * 1024;
/// Longest record.
pub const RECORD: u32 = 256;
/// Longest request of `bulk`: several rings full.
pub const BULK: u32 = 64 * 1024;
/// Exit status of an agent that found out that another one serves.
pub const SUPERSEDED: u8 = 3;
/// Set in the sender's number in answers.
pub const ANSWER: u32 = 1 << 31;
/// Records between two that take their time, and how long that is: about what an agent does that writes to a disk.
const SLOW_EVERY: u64 = 16;
const SLOW: Duration = Duration::from_micros(100);
/// How long the last call in its handler still takes when the agent closes.
const LAST: Duration = Duration::from_millis(20);

/// What an agent of tests does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// It says that it has handled a record before it has.
    AcknowledgesEarly,
    /// Every other acknowledgement of a batch is skipped.
    SkipsAcknowledgements,
    /// A table's entry leads to its record before that is written.
    EntryFirst,
}

impl Bug {
    /// All of them, with what [`BUG`] says.
    pub const ALL: [(Bug, &'static str); 3] = [
        (Bug::AcknowledgesEarly, "acknowledges-early"),
        (Bug::SkipsAcknowledgements, "skips-acknowledgements"),
        (Bug::EntryFirst, "entry-first"),
    ];

    fn from_env() -> anyhow::Result<Option<Bug>> {
        let Ok(found) = std::env::var(BUG) else { return Ok(None) };
        let bug = Bug::ALL.iter().find(|(_, name)| *name == found);
        bug.map(|(bug, _)| Some(*bug)).ok_or_else(|| anyhow::anyhow!("{BUG}={found}: no such bug"))
    }
}

struct Working {
    log: Log,
    records: u64,
    /// Calls that are put off, to be answered when their time comes.
    put_off: Sender<(Instant, Deferred, Vec<u8>)>,
    in_handler: Arc<AtomicU64>,
    bug: Option<Bug>,
    /// With [`Bug::AcknowledgesEarly`]: what was acknowledged and not handled.
    unhandled: Vec<Entry>,
}

impl Working {
    fn write(&mut self, entry: Entry) {
        self.log.write(entry).expect("the log has room");
    }
}

impl Handler for Working {
    fn record(&mut self, record: Record<'_>) {
        let entry = match numbered::decode(record.bytes) {
            Ok(numbered) => Entry {
                flags: if record.maybe_seen { MARKED } else { 0 },
                extra: record.position,
                ..Entry::new(What::Delivered, numbered.sender, numbered.sequence)
            },
            Err(_) => Entry::new(What::Corrupt, 0, record.position),
        };
        self.records += 1;
        if self.bug == Some(Bug::AcknowledgesEarly) {
            self.unhandled.push(entry);
            if self.unhandled.len() >= 64 {
                let all = std::mem::take(&mut self.unhandled);
                all.into_iter().for_each(|entry| self.write(entry));
            }
        } else {
            self.write(entry);
        }
        if self.records.is_multiple_of(SLOW_EVERY) {
            // Less work in hand than there would be, were the whole node not on two cores.
            std::thread::sleep(SLOW);
        }
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let service = CALLS.iter().position(|name| *name == request.service).unwrap_or(0);
        let Ok(numbered) = numbered::decode(request.bytes) else {
            self.write(Entry::new(What::Corrupt, 0, service as u64));
            return answer.fail(Answer::FIRST_STATUS);
        };
        let (sender, number) = (numbered.sender, numbered.sequence);
        self.write(Entry {
            aux: service as u16,
            flags: if request.maybe_seen { MARKED } else { 0 },
            ..Entry::new(What::Handled, sender, number)
        });
        let bytes = numbered::encode(sender | ANSWER, number, request.len.min(400));
        match request.service {
            "slow" => {
                // Relaxed: a count for the log.
                self.in_handler.fetch_add(1, Ordering::Relaxed);
                let later = Instant::now() + Duration::from_millis(40 + number % 4 * 10);
                // Where the thread that answers is gone the call fails, which its caller sees.
                let _ = self.put_off.send((later, answer.defer(), bytes));
            }
            _ if number.is_multiple_of(2) => answer.reply_owned(bytes),
            _ => answer.reply_with(bytes.len(), move |offset, part| {
                part.copy_from_slice(&bytes[offset..offset + part.len()]);
            }),
        }
    }
}

/// The services of domain `work`.
pub fn services() -> AgentBuilder {
    Agent::builder()
        .table("values", 100, 32 * 1024)
        .queue("records", RING, RECORD)
        .call("decide", RING, 4096)
        .idempotent_call("again", RING, 4096)
        .call("slow", 4096, 400)
        .call("bulk", RING, BULK)
}

fn layouts() -> anyhow::Result<Layouts> {
    match std::env::var(LAYOUTS).as_deref() {
        Err(_) => Ok(Layouts::ALL),
        Ok("1") => Ok(Layouts::only(Layout::V1)),
        Ok(other) => anyhow::bail!("{LAYOUTS} is {other:?}, expected 1 or nothing"),
    }
}

/// When the first ring was closed.
static CLOSING: AtomicU64 = AtomicU64::new(0);

/// What this process does at named steps: it notes when it closes, and waits where a planted bug is to be seen.
fn note_closing(step: Step) {
    match step {
        // Relaxed: read by the thread that has passed the step.
        Step::HandoverClosing => drop(CLOSING.compare_exchange(0, now(), Ordering::Relaxed, Ordering::Relaxed)),
        Step::TableSwung if steps::is_planted(steps::Bug::EntryFirst) => std::thread::sleep(Duration::from_micros(200)),
        _ => {}
    }
}

/// Serves until it is asked to close, by a successor or by SIGTERM. SIGUSR1 makes it leak, SIGUSR2 says that a successor is on
/// its way: one call stays in its handler until then. Says whether it has closed in order.
pub fn run(log: PathBuf, generation: u32) -> anyhow::Result<bool> {
    let (term, leaks, holds) = (Flag::on(15)?, Flag::on(10)?, Flag::on(12)?);
    let in_handler = Arc::new(AtomicU64::new(0));
    let bug = Bug::from_env()?;
    let closes = Arc::new(AtomicBool::new(false));
    let put_off = answers_later(Arc::clone(&in_handler), holds, Arc::clone(&closes))?;
    let log = Log::open(&log)?;
    let mut work =
        Working { log, records: 0, put_off, in_handler: Arc::clone(&in_handler), bug, unhandled: Vec::new() };
    if podshm::steps::arm_from_env()?.is_none() {
        set_hook(note_closing);
    }
    match bug {
        Some(Bug::EntryFirst) => plant(steps::Bug::EntryFirst),
        Some(Bug::SkipsAcknowledgements) => plant(steps::Bug::SkippedAcknowledgement),
        _ => {}
    }
    let mut agent = services().layouts(layouts()?).connect(socket_dir("work")?, PATIENCE)?;
    let mut publisher = Publisher::new(generation);
    publisher.everything(&mut agent)?;
    agent.ready()?;
    match serve(&mut agent, &mut work, &mut publisher, (&term, &leaks)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::Superseded => {
            work.write(Entry::new(What::Superseded, 0, generation.into()));
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    // By now they are acknowledged, at the latest.
    std::mem::take(&mut work.unhandled).into_iter().for_each(|entry| work.write(entry));
    let in_handler = in_handler.load(Ordering::Relaxed);
    closes.store(true, Ordering::Relaxed);
    match agent.close(generation.to_le_bytes().to_vec()) {
        Err(error) if error.kind() == ErrorKind::Superseded => return Ok(false),
        other => other?,
    }
    let closing = CLOSING.load(Ordering::Relaxed);
    if closing > 0 {
        work.write(Entry { time: closing, ..Entry::new(What::Cut, 0, in_handler) });
    }
    work.write(Entry::new(What::Closed, 0, generation.into()));
    Ok(true)
}

fn serve(
    agent: &mut Agent,
    work: &mut Working,
    publisher: &mut Publisher,
    (term, leaks): (&Flag, &Flag),
) -> Result<(), Error> {
    let (mut published, mut serves, mut asked) = (Instant::now(), false, None);
    loop {
        match agent.poll(work)? {
            Progress::Handled(_) => {}
            Progress::Idle => agent.wait(Duration::from_millis(2))?,
            Progress::CloseAsked => return Ok(()),
        }
        if !serves && agent.inherited_state().is_some() {
            serves = true;
            work.write(Entry::new(What::Serves, 0, agent.epoch()));
        }
        if term.is_set() {
            let asked = *asked.get_or_insert_with(Instant::now);
            // With a call in its handler, where there is one soon: a hand-over of nothing would prove little.
            if work.in_handler.load(Ordering::Relaxed) > 0 || asked.elapsed() > Duration::from_millis(500) {
                return Ok(());
            }
        }
        if leaks.is_set() {
            podshm_testkit::cgroup::leak();
        }
        if published.elapsed() > Duration::from_millis(1) {
            published = Instant::now();
            publisher.something(agent)?;
        }
    }
}

/// A thread that answers calls when their time comes. The last one that is out may stay out until the agent closes, and a little longer.
fn answers_later(
    in_handler: Arc<AtomicU64>,
    holds: Flag,
    closes: Arc<AtomicBool>,
) -> anyhow::Result<Sender<(Instant, Deferred, Vec<u8>)>> {
    let (sender, receiver) = channel::<(Instant, Deferred, Vec<u8>)>();
    std::thread::Builder::new().name("later".into()).spawn(move || {
        let mut all: Vec<(Instant, Deferred, Vec<u8>)> = Vec::new();
        loop {
            match receiver.recv_timeout(Duration::from_millis(5)) {
                Ok(one) => all.push(one),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
            }
            if closes.load(Ordering::Relaxed) {
                std::thread::sleep(LAST);
            } else if holds.is_set() && all.len() <= 1 {
                continue;
            }
            let now = Instant::now();
            let mut left = all.len();
            let due = all.extract_if(.., |(due, ..)| {
                let is_held = left == 1 && holds.is_set() && !closes.load(Ordering::Relaxed);
                let is_due = *due <= now && !is_held;
                left -= usize::from(is_due);
                is_due
            });
            for (_, deferred, bytes) in due {
                in_handler.fetch_sub(1, Ordering::Relaxed);
                deferred.reply(bytes);
            }
        }
    })?;
    Ok(sender)
}
