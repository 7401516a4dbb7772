//! What a business program says of one use of an endpoint: a record of 48 bytes in the agent's queue.
//!
//! ```text
//! 0     4  5        8      16        24          32   40
//! magic │  reserved │ route │ endpoint │ latency_ns │ seq │ xxh3 of bytes 0..40
//!       outcome
//! ```
//! All little-endian. The checksum finds bytes that were torn or damaged; it is no protection against a client that lies.

use xxhash_rust::xxh3::xxh3_64;

/// The length of a report in bytes.
pub const REPORT_LEN: usize = 48;
/// `RPT` and the version of the format.
const MAGIC: u32 = u32::from_le_bytes(*b"RPT\x01");
/// Longer calls than an hour are taken for an hour's: a bound on what one report can do to an average.
pub const MAX_LATENCY_NS: u64 = 3_600_000_000_000;

/// How a call to an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The endpoint answered, and not with a fault of its own.
    Success = 0,
    /// The endpoint answered with a fault of its own (an HTTP 5xx, say).
    Error = 1,
    /// No answer by the caller's deadline.
    Timeout = 2,
    /// No connection: refused, reset or unreachable.
    Refused = 3,
}

impl Outcome {
    /// All outcomes, in the order of their codes.
    pub const ALL: [Outcome; 4] = [Outcome::Success, Outcome::Error, Outcome::Timeout, Outcome::Refused];

    /// Whether this counts as an error of the endpoint.
    pub fn is_error(self) -> bool {
        self != Outcome::Success
    }
}

/// One use of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The route's id, [`RouteKey::id`](crate::RouteKey::id).
    pub route: u64,
    /// The endpoint's id, [`Address::endpoint_id`](crate::Address::endpoint_id).
    pub endpoint: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in nanoseconds.
    pub latency_ns: u64,
    /// The reporter's own count, so that losses and duplicates can be found.
    pub seq: u64,
}

/// Why bytes are no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Too short or too long.
    #[error("expected a report of {REPORT_LEN} bytes, found {found}; is this another service's queue?")]
    Length {
        /// How many bytes there are.
        found: usize,
    },
    /// Another format or version.
    #[error(
        "expected a report that starts with {MAGIC:#010x}, found {found:#010x}; use a route-client of the agent's release"
    )]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// An unknown outcome, or bytes that should be zero.
    #[error(
        "expected an outcome from 0 to 3 and zeros after it, found {found:#010x}; use a route-client of the agent's release"
    )]
    Outcome {
        /// The four bytes.
        found: u32,
    },
    /// The bytes were damaged on the way.
    #[error(
        "expected the report's checksum to be {expected:#018x}, found {found:#018x}; the record is dropped, look for who wrote it"
    )]
    Checksum {
        /// What the bytes give.
        expected: u64,
        /// What the record says.
        found: u64,
    },
}

impl Report {
    /// The report's bytes.
    pub fn encode(&self) -> [u8; REPORT_LEN] {
        let mut bytes = [0; REPORT_LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = self.outcome as u8;
        for (at, word) in [(8, self.route), (16, self.endpoint), (24, self.latency_ns), (32, self.seq)] {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let sum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a report that somebody else wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReportError> {
        let bytes: &[u8; REPORT_LEN] = bytes.try_into().map_err(|_| ReportError::Length { found: bytes.len() })?;
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        if half(0) != MAGIC {
            return Err(ReportError::Magic { found: half(0) });
        }
        let outcome = match half(4) {
            0 => Outcome::Success,
            1 => Outcome::Error,
            2 => Outcome::Timeout,
            3 => Outcome::Refused,
            found => return Err(ReportError::Outcome { found }),
        };
        let expected = xxh3_64(&bytes[..40]);
        if word(40) != expected {
            return Err(ReportError::Checksum { expected, found: word(40) });
        }
        Ok(Self { route: word(8), endpoint: word(16), outcome, latency_ns: word(24), seq: word(32) })
    }
}

/// What may follow a report in a longer record: a number that a test or demo can check deliveries by. The agent's work
/// doesn't depend on it. It is a numbered record of podshm-testkit:
///
/// ```text
/// 48        56       60       64        72               the record's end
/// │ xxh3 of │ sender │ length │ seq     │ filler, if any │
/// │ the rest│        │ from 48│         │                │
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trailer {
    /// Who numbers.
    pub sender: u32,
    /// The number.
    pub seq: u64,
}

/// The shortest record with a [`Trailer`].
pub const NUMBERED_LEN: usize = REPORT_LEN + TRAILER_LEN;
const TRAILER_LEN: usize = 24;

impl Trailer {
    /// Writes a report and this trailer to a record of [`NUMBERED_LEN`] bytes.
    pub fn encode(&self, report: &Report) -> [u8; NUMBERED_LEN] {
        let mut bytes = [0; NUMBERED_LEN];
        let (head, tail) = bytes.split_at_mut(REPORT_LEN);
        head.copy_from_slice(&report.encode());
        tail[8..12].copy_from_slice(&self.sender.to_le_bytes());
        tail[12..16].copy_from_slice(&(TRAILER_LEN as u32).to_le_bytes());
        tail[16..].copy_from_slice(&self.seq.to_le_bytes());
        let sum = xxh3_64(&tail[8..]);
        tail[..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The trailer of a whole record, if it has one that is sound.
    pub fn of(record: &[u8]) -> Option<Self> {
        let tail = record.get(REPORT_LEN..)?;
        let word = |at: usize| Some(u64::from_le_bytes(*tail.get(at..)?.first_chunk()?));
        let (sum, head, seq) = (word(0)?, word(8)?, word(16)?);
        let sound = head >> 32 == tail.len() as u64 && sum == xxh3_64(&tail[8..]);
        sound.then_some(Self { sender: head as u32, seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(route: u64, endpoint: u64, o in 0usize..4, latency_ns: u64, seq: u64) {
            let report = Report { route, endpoint, outcome: Outcome::ALL[o], latency_ns, seq };
            prop_assert_eq!(Report::decode(&report.encode()), Ok(report));
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(Report::decode(&bytes).is_err());
        }

        #[test]
        fn any_flipped_bit_is_found(seq: u64, bit in 0usize..REPORT_LEN * 8) {
            let report = Report { route: 1, endpoint: 2, outcome: Outcome::Timeout, latency_ns: 3, seq };
            let mut bytes = report.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Report::decode(&bytes).is_err());
        }
    }
}
