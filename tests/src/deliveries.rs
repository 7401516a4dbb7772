//! What agents were given, line by line in a file that outlives each of them, and the check of it.
//!
//! ```text
//!   line (64 bytes): [ sender u32 | agent u32 ][ number ][ position ][ client ][ len ][ flags ][ 0 ][ 0 ]
//! ```
//! Senders number what they send and seal it with a checksum; an agent appends a line before its handler returns. So the file says
//! what was delivered, to whom, marked or not, in which order, whoever died meanwhile.

use podshm::{Record, Request};
use podshm_testkit::numbered;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Divides a page: the write of a line that crosses one may be cut in two by a SIGKILL.
const LINE: usize = 64;
const MARKED: u64 = 1;
const TORN: u64 = 2;
const KIND_SHIFT: u64 = 8;

/// What was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A record of queue `reports`.
    Record,
    /// A request of call `decide`, which must not be handled twice.
    Once,
    /// A request of call `again`, which may be handled twice.
    Again,
}

/// One delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Who made it, as it says itself.
    pub sender: u32,
    /// Which agent got it.
    pub agent: u32,
    /// The sender's number for it.
    pub number: u64,
    /// Its place in the ring; 0 for a request.
    pub position: u64,
    /// The client's number in the domain.
    pub client: u64,
    /// Its length.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
    /// A predecessor may have seen it.
    pub marked: bool,
    /// Its bytes are not what a sender wrote.
    pub torn: bool,
}

/// Appends deliveries to a file.
#[derive(Debug)]
pub struct Log {
    file: File,
    agent: u32,
}

impl Log {
    /// Appends to `file` on behalf of agent number `agent`.
    pub fn open(file: &Path, agent: u32) -> Log {
        Log { file: OpenOptions::new().append(true).create(true).open(file).expect("a file of deliveries"), agent }
    }

    /// Writes one delivery down.
    pub fn record(&mut self, record: &Record<'_>) {
        self.write(Kind::Record, record.client, record.position, record.maybe_seen, record.bytes);
    }

    /// Writes one request down; returns its sender and number.
    pub fn request(&mut self, kind: Kind, request: &Request<'_>) -> (u32, u64) {
        self.write(kind, request.client, 0, request.maybe_seen, request.bytes)
    }

    fn write(&mut self, kind: Kind, client: u64, position: u64, marked: bool, bytes: &[u8]) -> (u32, u64) {
        let (sender, number, torn) = match numbered::decode(bytes) {
            Ok(numbered) => (numbered.sender, numbered.sequence, 0),
            Err(_) => (u32::MAX, 0, TORN),
        };
        let flags = ((kind as u64) << KIND_SHIFT) | if marked { MARKED } else { 0 } | torn;
        let mut line = Vec::with_capacity(LINE);
        line.extend_from_slice(&sender.to_le_bytes());
        line.extend_from_slice(&self.agent.to_le_bytes());
        for word in [number, position, client, bytes.len() as u64, flags, 0, 0] {
            line.extend_from_slice(&word.to_le_bytes());
        }
        assert_eq!(self.file.write(&line).expect("room on the disk"), LINE);
        (sender, number)
    }
}

/// Every delivery in the file, in order. Nobody writes to it any more.
pub fn read(file: &Path) -> Vec<Line> {
    let bytes = std::fs::metadata(file).expect("the file of deliveries").len();
    assert_eq!(bytes % LINE as u64, 0, "whole lines");
    read_so_far(file)
}

/// Every delivery that the file has by now.
pub fn read_so_far(file: &Path) -> Vec<Line> {
    let bytes = std::fs::read(file).expect("the file of deliveries");
    let word = |line: &[u8], at: usize| u64::from_le_bytes(line[at..at + 8].try_into().unwrap());
    bytes
        .chunks_exact(LINE)
        .map(|line| Line {
            sender: word(line, 0) as u32,
            agent: (word(line, 0) >> 32) as u32,
            number: word(line, 8),
            position: word(line, 16),
            client: word(line, 24),
            len: word(line, 32),
            kind: [Kind::Record, Kind::Once, Kind::Again][(word(line, 40) >> KIND_SHIFT) as usize],
            marked: word(line, 40) & MARKED != 0,
            torn: word(line, 40) & TORN != 0,
        })
        .collect()
}

/// How a call ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The right answer came.
    Answered,
    /// Not sent.
    Away,
    /// Sent; handled or not.
    Unknown,
    /// Nobody answered in time.
    Deadline,
}

/// What a sender says of itself.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Its number.
    pub sender: u32,
    /// Records 0 to here were accepted for sure.
    pub accepted: u64,
    /// Records from there on that may have been accepted: those in the hand of a process that was killed.
    pub in_hand: u64,
    /// Requests of `decide`, and how they ended.
    pub once: BTreeMap<u64, Outcome>,
    /// Requests of `again`, and how they ended.
    pub again: BTreeMap<u64, Outcome>,
}

/// What came of it all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Different records delivered.
    pub records: u64,
    /// Deliveries beyond the first.
    pub repeated: u64,
    /// Deliveries that were marked.
    pub marked: u64,
    /// Calls answered.
    pub answered: u64,
    /// Calls with an unknown outcome.
    pub unknown: u64,
}

#[derive(Debug, Default)]
struct Seen {
    position: u64,
    times: u64,
    unmarked: u64,
    agents: Vec<u32>,
}

/// Fails where anything is lost, torn, made up, out of order, or given twice without a mark; where a request of `decide` was handled
/// twice, or was handled although its caller was told that it was not sent.
pub fn check(lines: &[Line], sent: &[Sent]) -> Tally {
    let mut tally = Tally::default();
    let mut seen: BTreeMap<(u32, Kind, u64), Seen> = BTreeMap::new();
    let mut order: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut clients: BTreeMap<u32, u64> = BTreeMap::new();
    let senders: BTreeSet<u32> = sent.iter().map(|s| s.sender).collect();
    for line in lines {
        assert!(!line.torn, "torn or made up: {line:?}");
        assert!(senders.contains(&line.sender), "nobody sent this: {line:?}");
        assert_eq!(*clients.entry(line.sender).or_insert(line.client), line.client, "one client each: {line:?}");
        let entry = seen.entry((line.sender, line.kind, line.number)).or_insert_with(|| {
            if line.kind == Kind::Record {
                order.entry(line.sender).or_default().push(line.number);
            }
            Seen { position: line.position, ..Seen::default() }
        });
        assert_eq!(entry.position, line.position, "a record has one position: {line:?}");
        entry.times += 1;
        entry.unmarked += u64::from(!line.marked);
        entry.agents.push(line.agent);
        tally.marked += u64::from(line.marked);
    }
    for ((sender, kind, number), seen) in &seen {
        let what = format!("sender {sender}, {kind:?} {number}: {seen:?}");
        assert!(seen.unmarked <= 1, "twice without a mark: {what}");
        assert!(*kind != Kind::Once || seen.times == 1, "handled twice: {what}");
        tally.repeated += seen.times - 1;
    }
    for sent in sent {
        check_sender(sent, order.get(&sent.sender).map_or(&[], Vec::as_slice), &seen, &mut tally);
    }
    tally
}

fn check_sender(sent: &Sent, order: &[u64], seen: &BTreeMap<(u32, Kind, u64), Seen>, tally: &mut Tally) {
    let sender = sent.sender;
    let lost: Vec<u64> =
        (0..sent.accepted).filter(|n| !seen.contains_key(&(sender, Kind::Record, *n))).take(5).collect();
    assert!(lost.is_empty(), "sender {sender}: of {} accepted {lost:?} … are lost", sent.accepted);
    let most = sent.accepted + sent.in_hand;
    assert!(order.len() as u64 <= most, "sender {sender}: {} delivered, {most} sent", order.len());
    let out = order.iter().enumerate().find(|(n, number)| *n as u64 != **number);
    assert_eq!(out, None, "sender {sender}: out of order");
    tally.records += order.len() as u64;
    for (kind, calls) in [(Kind::Once, &sent.once), (Kind::Again, &sent.again)] {
        for (number, outcome) in calls {
            let handled = seen.get(&(sender, kind, *number));
            match outcome {
                Outcome::Answered => {
                    assert!(handled.is_some(), "sender {sender}: {kind:?} {number} was answered and never handled");
                    tally.answered += 1;
                }
                Outcome::Away => {
                    assert!(handled.is_none(), "sender {sender}: {kind:?} {number} was \"not sent\": {handled:?}");
                }
                Outcome::Unknown => tally.unknown += 1,
                Outcome::Deadline => {}
            }
        }
    }
}
