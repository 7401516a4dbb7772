//! What a participant in a process of its own does: see `src/bin/podshm-test-participant.rs`.

use crate::PATIENCE;
use crate::deliveries::{Kind, Log, Outcome, Sent};
use crate::work::{ANSWER, BATCH, Calls, KEYS, Lookups, PAIR, PASSING, Pushes, is_no_room, key, value};
use podshm::{Agent, AgentBuilder, Answer, Client, Error, ErrorKind, Handler, Progress, Record, Request};
use podshm_layout::{Layout, Layouts};
use podshm_testkit::numbered;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where this is 1, a participant speaks memory layout 1 only, as if it were of a release that knows no other.
pub const LAYOUTS: &str = "PODSHM_TEST_LAYOUTS";

fn layouts() -> Layouts {
    match std::env::var(LAYOUTS).as_deref() {
        Err(_) => Layouts::ALL,
        Ok("1") => Layouts::only(Layout::V1),
        Ok(other) => panic!("{LAYOUTS} is {other:?}, expected 1 or nothing"),
    }
}

/// The services of every agent here.
pub fn services() -> AgentBuilder {
    Agent::builder()
        .table("routes", 100, 32 * 1024)
        .queue("reports", 16 * 1024, 256)
        .call("decide", 16 * 1024, 16 * 1024)
        .idempotent_call("again", 16 * 1024, 16 * 1024)
}

/// What an agent has beyond the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variant {
    /// Its table grows once.
    pub grows: bool,
    /// So many queues more, `more-0` and so on.
    pub more: u32,
}

impl Variant {
    fn builder(self) -> AgentBuilder {
        (0..self.more).fold(services(), |builder, n| builder.queue(&format!("more-{n}"), 4096, 256))
    }
}

struct Answering(Log);

impl Handler for Answering {
    fn record(&mut self, record: Record<'_>) {
        self.0.record(&record);
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let kind = if request.service == "decide" { Kind::Once } else { Kind::Again };
        let (sender, number) = self.0.request(kind, &request);
        let bytes = numbered::encode(sender | ANSWER, number, request.len);
        match number % 4 {
            0 => answer.reply(&bytes),
            1 => answer.reply_owned(bytes),
            2 => answer.reply_with(bytes.len(), move |offset, part| {
                part.copy_from_slice(&bytes[offset..offset + part.len()]);
            }),
            _ => answer.defer().reply(bytes),
        }
    }
}

/// An agent that answers, writes down what it is given, and publishes all the while. Its versions are above those of every agent
/// with a lower number. Ends in order when it is asked to close or finds that it is superseded.
pub fn agent(directory: &Path, file: &Path, index: u32, variant: Variant) -> Result<(), Error> {
    match serve(directory, file, index, variant) {
        // Wherever it finds out: a look at the broker, too, may tell.
        Err(e) if e.kind() == ErrorKind::Superseded => Ok(()),
        other => other,
    }
}

fn serve(directory: &Path, file: &Path, index: u32, variant: Variant) -> Result<(), Error> {
    let mut handler = Answering(Log::open(file, index));
    let mut agent = variant.builder().layouts(layouts()).connect(directory, PATIENCE)?;
    let mut writer = Publisher { version: u64::from(index) << 32, turn: 0, fillers: 0 };
    writer.everything(&mut agent)?;
    agent.ready()?;
    let mut published = Instant::now();
    let mut inherited = false;
    loop {
        if let (false, Some(state)) = (inherited, agent.inherited_state()) {
            std::fs::write(inherited_by(file, index), state).expect("it can be written down");
            inherited = true;
        }
        match agent.poll(&mut handler)? {
            Progress::Handled(_) => {}
            Progress::Idle => agent.wait(Duration::from_millis(1))?,
            Progress::CloseAsked => return agent.close(index.to_le_bytes().to_vec()),
        }
        if published.elapsed() > Duration::from_micros(500) {
            published = Instant::now();
            writer.something(&mut agent)?;
            if variant.grows && agent.epoch() > 0 {
                writer.filler(&mut agent)?;
            }
        }
    }
}

/// Where an agent writes down what its predecessor left to it: that one's number, where it closed in order.
pub fn inherited_by(file: &Path, index: u32) -> PathBuf {
    file.with_extension(format!("inherited-{index}"))
}

struct Publisher {
    version: u64,
    turn: u32,
    fillers: u32,
}

impl Publisher {
    fn next(&mut self, key: u32) -> Vec<u8> {
        self.version += 1;
        value(key, self.version)
    }

    fn everything(&mut self, agent: &mut Agent) -> Result<(), Error> {
        for k in (0..KEYS).chain([PASSING]) {
            let value = self.next(k);
            agent.table("routes")?.put(&key(k), &value)?;
        }
        self.pair(agent)
    }

    fn something(&mut self, agent: &mut Agent) -> Result<(), Error> {
        self.turn += 1;
        match self.turn % 6 {
            0 => self.pair(agent)?,
            1 => drop(agent.table("routes")?.remove(&key(PASSING))),
            4 => {
                let value = self.next(PASSING);
                agent.table("routes")?.put(&key(PASSING), &value)?;
            }
            _ => {
                let k = self.turn % KEYS;
                let value = self.next(k);
                agent.table("routes")?.put(&key(k), &value)?;
            }
        }
        Ok(())
    }

    fn pair(&mut self, agent: &mut Agent) -> Result<(), Error> {
        self.version += 1;
        let changes: Vec<_> = PAIR.iter().map(|k| (key(*k), Some(value(*k, self.version)))).collect();
        agent.table("routes")?.publish(&changes)
    }

    /// Ten more keys, up to so many that the table grows once: at some hundred of them there is no room for a batch any more.
    fn filler(&mut self, agent: &mut Agent) -> Result<(), Error> {
        for n in self.fillers..(self.fillers + 10).min(150) {
            agent.table("routes")?.put(&n.to_le_bytes(), &[1; 300])?;
            self.fillers = n + 1;
        }
        Ok(())
    }
}

const JOINED: u64 = 0;
const ACCEPTED: u64 = 1;
const ENDED: u64 = 2;

/// Asks the client that writes to `file` to end in order.
pub fn ask_to_stop(file: &Path) {
    std::fs::write(stop_file(file), []).unwrap();
}

/// Where this is set, a participant looks for its [`leak_file`].
pub const LEAKS: &str = "PODSHM_TEST_LEAKS";

/// Where this file is, the participant that writes `file` takes memory until it is killed for it.
pub fn leak_file(file: &Path) -> PathBuf {
    file.with_extension("leak")
}

/// Waits for [`leak_file`] in a thread of its own, where [`LEAKS`] asks for it.
pub fn leak_when_told(file: &Path) {
    if std::env::var_os(LEAKS).is_none() {
        return;
    }
    let told = leak_file(file);
    std::thread::spawn(move || {
        while !told.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        podshm_testkit::cgroup::leak()
    });
}

fn stop_file(file: &Path) -> PathBuf {
    file.with_extension("stop")
}

/// A client that reports, calls and looks up, and writes down what was accepted. Ends when asked to, see [`ask_to_stop`].
pub fn client(directory: &Path, file: &Path, sender: u32) -> Result<(), Error> {
    let mut log = OpenOptions::new().append(true).create(true).open(file).unwrap();
    let mut note = |what: u64, number: u64, outcome: u64| {
        let line: Vec<u8> = [what, number, outcome, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(log.write(&line).unwrap(), line.len());
    };
    let client = Client::join_speaking(layouts(), directory, PATIENCE)?;
    note(JOINED, client.id(), 0);
    let (mut pushes, mut calls, mut lookups) =
        (Pushes::new(&client, sender), Calls::new(&client, sender), Lookups::new(&client));
    let mut last = Instant::now();
    let mut no_call_before = 0;
    for turn in 0u64.. {
        match pushes.some() {
            Ok(()) => last = Instant::now(),
            Err(e) => {
                assert!(is_no_room(&e), "{e}");
                assert!(last.elapsed() < PATIENCE * 2, "nobody takes a record: {e}");
            }
        }
        note(ACCEPTED, pushes.accepted, 0);
        if turn.is_multiple_of(4) {
            lookups.round();
            if turn >= no_call_before {
                let (number, outcome) = calls.one();
                note(ENDED, number, outcome as u64);
                // While nobody answers, reports go on.
                no_call_before = if outcome == Outcome::Answered { 0 } else { turn + 200 };
            }
            if stop_file(file).exists() {
                break;
            }
        }
    }
    Ok(())
}

/// How many of a client's pushes found no room so far.
pub fn refused_pushes(file: &Path) -> usize {
    let bytes = std::fs::read(file).unwrap_or_default();
    let accepted: Vec<&[u8]> = bytes.chunks_exact(32).filter(|l| l[0] == ACCEPTED as u8).map(|l| &l[8..16]).collect();
    accepted.windows(2).filter(|pair| pair[0] == pair[1]).count()
}

/// What a client wrote down: its number in the domain once it had joined, and what it had sent when it ended.
pub fn written_down(file: &Path, sender: u32) -> (Option<u64>, Sent) {
    let bytes = std::fs::read(file).unwrap_or_default();
    let word = |line: &[u8], at: usize| u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
    let mut sent = Sent { sender, in_hand: BATCH, ..Sent::default() };
    let mut client = None;
    for line in bytes.chunks_exact(32) {
        let (what, number) = (word(line, 0), word(line, 8));
        match what {
            JOINED => client = Some(number),
            ACCEPTED => sent.accepted = number,
            _ => {
                let outcome = [Outcome::Answered, Outcome::Away, Outcome::Unknown, Outcome::Deadline];
                let calls = if Calls::is_once(number) { &mut sent.once } else { &mut sent.again };
                calls.insert(number, outcome[word(line, 16) as usize]);
            }
        }
    }
    (client, sent)
}
