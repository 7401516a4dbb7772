//! What a client does all the while: it reports, calls and looks up, and checks all that it gets.

use crate::PATIENCE;
use crate::deliveries::Outcome;
use podshm::{Client, Error, ErrorKind, Key, QueueSender, Spin, Table};
use podshm_testkit::numbered;
use std::time::{Duration, Instant};

/// Keys that are always there, each with values of its own.
pub const KEYS: u32 = 12;
/// Two keys that always have the same version, for whoever takes a snapshot.
pub const PAIR: [u32; 2] = [100, 101];
/// A key that comes and goes.
pub const PASSING: u32 = 200;
/// Longest value.
pub const VALUE: usize = 300;
/// Most records that one [`Pushes::some`] sends.
pub const BATCH: u64 = 4;
/// Set in the sender's number in answers.
pub const ANSWER: u32 = 1 << 31;

/// The key of this number.
pub fn key(number: u32) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// The value of a key at a version: checksummed, and of a length of its own.
pub fn value(key: u32, version: u64) -> Vec<u8> {
    numbered::encode(key, version, 24 + (version as usize * 7) % (VALUE - 24))
}

/// Reports: numbered, of every length, one by one and in batches.
#[derive(Debug)]
pub struct Pushes {
    queue: QueueSender,
    sender: u32,
    turn: u64,
    /// Records accepted so far, and the number of the next.
    pub accepted: u64,
}

impl Pushes {
    /// From here on as number `sender`.
    pub fn new(client: &Client, sender: u32) -> Pushes {
        Pushes { queue: client.queue("reports").unwrap(), sender, turn: 0, accepted: 0 }
    }

    /// Sends one record, or a few of them in a batch. What was not accepted goes again next time, under its number.
    pub fn some(&mut self) -> Result<(), Error> {
        self.turn += 1;
        let record = |n: u64| numbered::encode(self.sender, n, 24 + (n as usize * 13) % 180);
        match self.turn % 4 {
            0 => {
                let mut batch = self.queue.batch()?;
                let mut last = Ok(0);
                let mut written = 0;
                while written < BATCH && last.is_ok() {
                    last = batch.try_push(&record(self.accepted + written));
                    written += u64::from(last.is_ok());
                }
                batch.publish();
                self.accepted += written;
                last?;
            }
            1 => {
                let bytes = record(self.accepted);
                self.queue.try_push_with(bytes.len(), |room| room.copy_from_slice(&bytes))?;
                self.accepted += 1;
            }
            _ => {
                self.queue.push(&record(self.accepted), Duration::from_millis(50))?;
                self.accepted += 1;
            }
        }
        Ok(())
    }
}

/// Whether a push may fail like this while agents come and go.
pub fn is_no_room(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Full | ErrorKind::Deadline | ErrorKind::AgentAway)
}

/// Calls: numbered, short ones and ones that go in parts, awake and asleep.
#[derive(Debug)]
pub struct Calls {
    once: podshm::Caller,
    again: podshm::Caller,
    sender: u32,
    /// Number of the next.
    pub next: u64,
}

impl Calls {
    /// From here on as number `sender`.
    pub fn new(client: &Client, sender: u32) -> Calls {
        Calls { once: client.call("decide").unwrap(), again: client.call("again").unwrap(), sender, next: 0 }
    }

    /// Whether call `number` goes to `decide` (which is not to be handled twice).
    pub fn is_once(number: u64) -> bool {
        !number.is_multiple_of(4)
    }

    /// One call; says its number and how it ended. Fails where the answer is wrong or comes long after its deadline.
    pub fn one(&mut self) -> (u64, Outcome) {
        let number = self.next;
        self.next += 1;
        let caller = if Self::is_once(number) { &self.once } else { &self.again };
        let caller = caller.clone().spin(if number.is_multiple_of(3) { Spin::Never } else { Spin::default() });
        let len = if number.is_multiple_of(5) { 9_000 + number as usize % 100 } else { 24 + number as usize % 400 };
        let request = numbered::encode(self.sender, number, len);
        let mut response = vec![0; len];
        let timeout = Duration::from_millis(if number.is_multiple_of(7) { 40 } else { 1_000 });
        let start = Instant::now();
        let result = match number % 2 {
            0 => caller.call(&request, &mut response, timeout),
            _ => caller.start(&request, timeout).and_then(|mut pending| pending.wait()).map(|bytes| {
                response.clone_from(&bytes);
                bytes.len()
            }),
        };
        let took = start.elapsed();
        assert!(took < timeout + PATIENCE, "call {number} of {timeout:?} ended after {took:?}: {result:?}");
        let outcome = match result {
            Ok(found) => {
                assert_eq!(found, len, "call {number}");
                let answer = numbered::decode(&response).unwrap_or_else(|e| panic!("call {number}: {e}"));
                assert_eq!((answer.sender, answer.sequence), (self.sender | ANSWER, number), "another call's answer");
                Outcome::Answered
            }
            Err(e) => match e.kind() {
                ErrorKind::AgentAway => Outcome::Away,
                ErrorKind::OutcomeUnknown => Outcome::Unknown,
                ErrorKind::Deadline => Outcome::Deadline,
                other => panic!("call {number} ended as {other:?}: {e}"),
            },
        };
        (number, outcome)
    }
}

/// Lookups: every key is there, whole, and never older than before through the same kind of handle. (While a new generation is
/// coming in, one kind of handle may see it an instant before another.)
#[derive(Debug)]
pub struct Lookups {
    table: Table,
    keys: Vec<Key>,
    reader: podshm::client::Reader,
    newest: [Vec<u64>; 3],
    buffer: Vec<u8>,
    turn: u64,
}

impl Lookups {
    /// Over table `routes`.
    pub fn new(client: &Client) -> Lookups {
        let table = client.table("routes").unwrap();
        Lookups {
            keys: (0..KEYS).map(|k| table.key(&key(k))).collect(),
            reader: table.reader().unwrap(),
            table,
            newest: std::array::from_fn(|_| vec![0; KEYS as usize]),
            buffer: vec![0; VALUE],
            turn: 0,
        }
    }

    /// Looks up every key, in each of the ways there are.
    pub fn round(&mut self) {
        self.turn += 1;
        for k in 0..KEYS {
            let bytes = key(k);
            let way = (self.turn + u64::from(k)) as usize % 3;
            let found = match way {
                0 => self.keys[k as usize].get(&mut self.buffer),
                1 => self.table.get(&bytes, &mut self.buffer),
                _ => self.reader.get(&bytes, &mut self.buffer),
            };
            let len = found.unwrap_or_else(|e| panic!("key {k}: {e}")).unwrap_or_else(|| panic!("key {k} is missing"));
            let version = self.version(k, len);
            let newest = &mut self.newest[way][k as usize];
            assert!(version >= *newest, "key {k} went back from version {newest} to {version} (way {way})");
            *newest = version;
        }
        if let Some(len) = self.table.get(&key(PASSING), &mut self.buffer).unwrap() {
            self.version(PASSING, len);
        }
        self.pair();
    }

    fn pair(&mut self) {
        let snapshot = self.table.snapshot().unwrap();
        let mut versions = [0; 2];
        for (k, version) in PAIR.iter().zip(&mut versions) {
            let len = snapshot.get(&key(*k), &mut self.buffer).unwrap().expect("a pair is always there");
            *version = self.version(*k, len);
        }
        if snapshot.finish().is_some() {
            assert_eq!(versions[0], versions[1], "half of a batch");
        }
    }

    fn version(&self, key: u32, len: usize) -> u64 {
        let numbered = numbered::decode(&self.buffer[..len]).unwrap_or_else(|e| panic!("key {key} is torn: {e}"));
        assert_eq!(numbered.sender, key, "another key's value");
        numbered.sequence
    }
}
