//! What participants write down, line by line, in files that outlive them.
//!
//! ```text
//! 0      1       2     4        8        16      24      32
//! │ what │ flags │ aux │ sender │ number │ time │ extra │     one line, little-endian
//! ```
//! Each line is one `write(2)` with `O_APPEND`: it survives `kill -9` of its writer, and since 32 divides a page it is there whole or
//! not at all. Time is the monotonic clock, which all pods share.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of a line.
pub const LINE: usize = 32;
/// In [`Entry::flags`]: a predecessor may have seen it.
pub const MARKED: u8 = 1;

macro_rules! whats {
    ($($what:ident $code:literal $doc:literal)*) => {
        /// What a line says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum What { $(#[doc = $doc] $what = $code,)* }

        impl What {
            fn of(code: u8) -> Option<What> {
                match code { $($code => Some(What::$what),)* _ => None }
            }
        }
    };
}

whats! {
    Joined 1 "A client has joined domain `aux`; `number` is its number there."
    Intends 2 "It is about to push records of domain `aux` with numbers below `number`."
    Accepted 3 "Its records of domain `aux` with numbers below `number` are accepted."
    CallBegins 4 "Call `number` to service `aux` is about to be made."
    CallHalf 5 "A part of it is published, and the next is being written."
    CallFull 6 "Its last part is being written."
    CallEnded 7 "It has ended; `flags` is its outcome."
    Waited 8 "Something of kind `aux` was there after `number` nanoseconds of trying."
    Looked 9 "So many lookups of domain `aux` have found their key so far."
    Torn 10 "A value had a wrong checksum."
    Missing 11 "A key that is always there was not."
    Back 12 "A value was older than one that was read before."
    Odd 13 "An operation failed as it must not; `number` is the error's kind."
    Left 14 "It leaves in order; nothing follows."
    Serves 20 "An agent serves; `number` is its epoch."
    Delivered 21 "It got record `number` of `sender`, at position `extra`."
    Handled 22 "It got a call to service `aux`."
    Corrupt 23 "It got bytes that nobody wrote."
    Cut 24 "It closed its first ring at `time`; when it was asked to, `number` calls were in its handlers."
    Closed 25 "It has closed in order."
    Superseded 26 "It found out that another one serves."
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub what: What,
    /// See [`MARKED`] and [`Outcome`].
    pub flags: u8,
    /// A service or a domain.
    pub aux: u16,
    /// Who numbers.
    pub sender: u32,
    /// The number.
    pub number: u64,
    /// When, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// See [`What`].
    pub extra: u64,
}

/// How a call ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The right answer came.
    Answered,
    /// Not sent.
    Away,
    /// Sent; handled or not.
    Unknown,
    /// Nobody answered in time.
    Deadline,
    /// An answer came that is not the right one.
    Wrong,
    /// The agent said that it can't.
    Failed,
}

impl Outcome {
    /// All of them, in the order of their codes.
    pub const ALL: [Outcome; 6] =
        [Outcome::Answered, Outcome::Away, Outcome::Unknown, Outcome::Deadline, Outcome::Wrong, Outcome::Failed];
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

impl Entry {
    /// A line of now.
    pub fn new(what: What, sender: u32, number: u64) -> Entry {
        Entry { what, flags: 0, aux: 0, sender, number, time: now(), extra: 0 }
    }

    fn encode(&self) -> [u8; LINE] {
        let mut line = [0; LINE];
        (line[0], line[1]) = (self.what as u8, self.flags);
        line[2..4].copy_from_slice(&self.aux.to_le_bytes());
        line[4..8].copy_from_slice(&self.sender.to_le_bytes());
        for (at, word) in [(8, self.number), (16, self.time), (24, self.extra)] {
            line[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        line
    }

    fn decode(line: &[u8; LINE]) -> Option<Entry> {
        let word = |at: usize| line[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Some(Entry {
            what: What::of(line[0])?,
            flags: line[1],
            aux: u16::from_le_bytes([line[2], line[3]]),
            sender: (word(0) >> 32) as u32,
            number: word(8),
            time: word(16),
            extra: word(24),
        })
    }
}

/// A file of lines, open for appending. Threads clone it.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens or makes it.
    pub fn open(path: &Path) -> io::Result<Log> {
        Ok(Log(OpenOptions::new().append(true).create(true).open(path)?))
    }

    /// For another thread.
    pub fn another(&self) -> io::Result<Log> {
        Ok(Log(self.0.try_clone()?))
    }

    /// Appends one line.
    pub fn write(&mut self, entry: Entry) -> io::Result<()> {
        self.0.write_all(&entry.encode())
    }
}

/// The lines of a file, in order; one of no known kind is an error. Nobody there counts as nothing written.
pub fn read(path: &Path) -> impl Iterator<Item = io::Result<Entry>> {
    let mut input = File::open(path).map(|file| io::BufReader::with_capacity(1 << 16, file));
    let mut is_over = false;
    std::iter::from_fn(move || {
        let mut line = [0; LINE];
        let input = input.as_mut().ok().filter(|_| !is_over)?;
        match input.read_exact(&mut line) {
            Ok(()) => Some(Entry::decode(&line).ok_or_else(|| io::Error::other(format!("no line of a log: {line:?}")))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
        .inspect(|result| is_over = result.is_err())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        let path = std::env::temp_dir().join(format!("podshm-chaos-entry-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let entry = Entry { flags: MARKED, aux: 7, extra: u64::MAX, ..Entry::new(What::Delivered, 0x8000_0001, 5) };
        let other = Entry::new(What::Superseded, 0, u64::MAX - 1);
        let mut log = Log::open(&path).unwrap();
        log.write(entry).unwrap();
        log.another().unwrap().write(other).unwrap();
        assert_eq!(read(&path).collect::<io::Result<Vec<_>>>().unwrap(), [entry, other]);
        std::fs::write(&path, [0; LINE]).unwrap();
        assert!(read(&path).next().unwrap().is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).next().is_none());
    }
}
