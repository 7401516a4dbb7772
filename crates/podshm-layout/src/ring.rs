//! A ring of records: one producer, one consumer, each in a region of its own.
//!
//! ```text
//!        consumer's acked (published in its region)          producer's head (private)
//!              ▼                                                    ▼
//!  ──────┬─────┬──────────────┬──────────────┬─────┬────────────────┬───┬──────────
//!  free  │ hdr │ record …     │ hdr │ rec …  │ hdr │ record …       │ 0 │  free
//!  ──────┴─────┴──────────────┴──────────────┴─────┴────────────────┴───┴──────────
//! ```
//! The consumer polls the *record's header*, not a cursor: one cache line moves for a small record instead of two. A header is
//! one word: tag (the position), kind, length. The producer zeroes the *next* header before it publishes this one, so the
//! consumer never takes old bytes for a header. Records are contiguous; a pad fills the end of the ring where one doesn't fit.
//!
//! Positions are bytes since the ring was made and never wrap; a record's position is its sequence number.

mod moving;

use crate::CACHE_LINE;
use crate::cursor::CursorLine;
use crate::geometry::RingGeometry;
use crate::mem::{Load, Store};
use crate::step::{self, Step};
use crate::sync::Ordering;

const HEADER: u64 = 8;
/// How far ahead of its head a producer asks for lines: half a dozen small records.
const AHEAD: u64 = 512;
const PRESENT: u64 = 1 << 31;
const KIND_SHIFT: u32 = 26;
const LEN_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// What part of a message a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// A whole message.
    Whole = 0,
    /// The first fragment of several.
    First = 1,
    /// A fragment in between.
    Middle = 2,
    /// The last fragment.
    Last = 3,
}

const PARTS: [Part; 4] = [Part::Whole, Part::First, Part::Middle, Part::Last];
const PAD: u64 = 4;

fn tag(position: u64) -> u64 {
    (position >> 3) << 32
}

fn header(position: u64, kind: u64, len: u64) -> u64 {
    tag(position) | PRESENT | kind << KIND_SHIFT | len
}

fn footprint(len: u64) -> u64 {
    (HEADER + len).next_multiple_of(8)
}

/// Why a record could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// No room until the consumer acknowledges more.
    #[error("ring is full: {needed} bytes are needed, {free} are free; wait for the consumer or drop the record")]
    Full {
        /// Bytes that the record takes with header and pad.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Longer than the ring was declared for.
    #[error("record of {found} bytes: at most {most} were declared for this ring")]
    TooLong {
        /// The record.
        found: u64,
        /// The limit.
        most: u64,
    },
    /// The consumer's cursor is not where a cursor can be.
    #[error("consumer's cursor is {found}, expected {lowest} to {highest}: the peer is broken or hostile")]
    BadCursor {
        /// What its region says.
        found: u64,
        /// Last good value.
        lowest: u64,
        /// Head of what is published.
        highest: u64,
    },
}

/// The producer of a ring; `W` is a window on exactly the ring's bytes.
#[derive(Debug)]
pub struct Producer<W> {
    mem: W,
    bytes: u64,
    max_record: u64,
    cursor: CursorLine,
    incarnation: u64,
    head: u64,
    acked: u64,
    /// Place and header of the first record that is written but not published, and the head before it.
    held: Option<(u64, u64, u64)>,
}

/// Room for one record, not yet published. Dropping it publishes nothing.
#[derive(Debug)]
pub struct Reservation {
    position: u64,
    at: u64,
    len: u64,
    pad: u64,
}

impl Reservation {
    /// The position that the record will have.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl<W: Store> Producer<W> {
    /// The producer of a fresh (zeroed) ring.
    pub fn new(mem: W, ring: &RingGeometry) -> Self {
        assert_eq!(mem.size() as u64, u64::from(ring.bytes), "a producer's window is exactly its ring");
        Producer {
            mem,
            bytes: ring.bytes.into(),
            max_record: ring.max_record.into(),
            cursor: ring.cursor_line(),
            incarnation: 0,
            head: ring.start,
            acked: ring.start,
            held: None,
        }
    }

    /// Believes the consumer's cursors only once they carry this incarnation of the ring.
    pub fn of_incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = incarnation;
        self
    }

    /// Another consumer has its cursors elsewhere: looks for them there from now on.
    pub fn read_cursors_at(&mut self, cursor: CursorLine) {
        self.cursor = cursor;
    }

    /// Position of the next record.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The consumer's last cursor that this producer has looked at.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes in the ring.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Longest record.
    pub fn max_record(&self) -> u64 {
        self.max_record
    }

    /// Looks at the consumer's cursor and returns the bytes that are free now.
    pub fn refresh(&mut self, peer: &impl Load) -> Result<u64, PushError> {
        let started = self.incarnation == 0 || self.cursor.incarnation(peer) == self.incarnation;
        let mut found = self.cursor.acked(peer);
        if found == 0 || !started {
            found = self.acked; // the consumer has not started on this ring yet
        }
        // What is not published can't have been read; its header is still to be written.
        let highest = self.held.map_or(self.head, |held| held.2);
        if found < self.acked || found > highest || !found.is_multiple_of(8) {
            return Err(PushError::BadCursor { found, lowest: self.acked, highest });
        }
        self.acked = found;
        Ok(self.bytes - (self.head - self.acked))
    }

    #[cold]
    fn look_for(&mut self, needed: u64, peer: &impl Load) -> Result<(), PushError> {
        let free = self.refresh(peer)?;
        if needed > free { Err(PushError::Full { needed, free }) } else { Ok(()) }
    }

    /// Makes room for a record of `len` bytes; looks at the peer's cursor only when the last known one doesn't do.
    #[inline(always)]
    pub fn reserve(&mut self, len: usize, peer: &impl Load) -> Result<Reservation, PushError> {
        let len = len as u64;
        if len > self.max_record {
            return Err(PushError::TooLong { found: len, most: self.max_record });
        }
        let need = footprint(len);
        let mut at = self.head & (self.bytes - 1);
        let mut pad = 0;
        if at + need > self.bytes {
            pad = self.bytes - at;
            at = 0;
        }
        // The next record's header is zeroed too, so its word must be free.
        let needed = pad + need + HEADER;
        if self.head + needed > self.acked + self.bytes {
            self.look_for(needed, peer)?;
        }
        step::at(Step::PushReserved);
        Ok(Reservation { position: self.head + pad, at, len, pad })
    }

    /// Writes into the reserved room, in place.
    #[inline(always)]
    pub fn fill<R>(&mut self, room: &Reservation, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let result = self.mem.fill((room.at + HEADER) as usize, room.len as usize, fill);
        step::at(Step::PushWritten);
        result
    }

    /// Copies `bytes` into the reserved room at `offset`.
    #[inline(always)]
    pub fn write(&mut self, room: &Reservation, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= room.len as usize, "write past the reserved record");
        self.mem.copy_in((room.at + HEADER) as usize + offset, bytes);
        step::at(Step::PushWritten);
    }

    /// Ends the record; it is published by the next [`Producer::publish`], together with all before it.
    #[inline(always)]
    pub fn commit(&mut self, room: Reservation, part: Part) -> u64 {
        let word = header(room.position, part as u64, room.len);
        let next = room.position + footprint(room.len);
        // The consumer must find nothing behind this record; ordered before its header by the release in publish().
        self.mem.store((next & (self.bytes - 1)) as usize, 0, Ordering::Relaxed);
        if room.pad > 0 {
            self.put_header(room.at, word, true);
            self.put_header(self.head & (self.bytes - 1), header(self.head, PAD, room.pad - HEADER), false);
        } else {
            self.put_header(room.at, word, false);
        }
        self.head = next;
        // Lines that the consumer has read a lap ago: asked for while there is time.
        self.mem.prefetch_write(((next + CACHE_LINE as u64) & (self.bytes - 1)) as usize);
        self.mem.prefetch_write(((next + AHEAD) & (self.bytes - 1)) as usize);
        step::at(Step::PushCommitted);
        room.position
    }

    /// Publishes everything committed. Release: pairs with the acquire load of the header in [`Consumer::peek`].
    #[inline(always)]
    pub fn publish(&mut self) -> bool {
        match self.held.take() {
            Some((at, word, _)) => {
                self.mem.store(at as usize, word, Ordering::Release);
                step::at(Step::PushPublished);
                true
            }
            None => false,
        }
    }

    /// Writes and publishes one record.
    #[inline]
    pub fn push(&mut self, bytes: &[u8], peer: &impl Load) -> Result<u64, PushError> {
        let room = self.reserve(bytes.len(), peer)?;
        self.write(&room, 0, bytes);
        let position = self.commit(room, Part::Whole);
        self.publish();
        Ok(position)
    }

    /// The consumer can't get past the first unpublished header, so only that one is held back.
    #[inline(always)]
    fn put_header(&mut self, at: u64, word: u64, behind_pad: bool) {
        if self.held.is_none() && !behind_pad {
            self.held = Some((at, word, self.head));
        } else {
            self.mem.store(at as usize, word, Ordering::Release);
        }
    }

    /// Publishes the index before the record: the planted fault that tests must catch.
    #[cfg(any(loom, feature = "planted-faults"))]
    pub fn push_index_first(&mut self, bytes: &[u8], peer: &impl Load) -> Result<u64, PushError> {
        let room = self.reserve(bytes.len(), peer)?;
        let word = header(room.position, Part::Whole as u64, room.len);
        self.mem.store(room.at as usize, word, Ordering::Release);
        self.write(&room, 0, bytes);
        let position = room.position;
        self.commit(room, Part::Whole);
        self.publish();
        Ok(position)
    }
}

/// A record's header is not one that a correct producer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring is corrupt at position {position}: header {found:#018x}, {reason}; the producer is broken or hostile")]
pub struct RingError {
    /// Where.
    pub position: u64,
    /// The word found there.
    pub found: u64,
    /// What was expected.
    pub reason: &'static str,
}

/// A record that is ready to be copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position: its sequence number.
    pub position: u64,
    /// Position of the record behind it.
    pub next: u64,
    /// Its length in bytes.
    pub len: usize,
    /// Which part of a message it is.
    pub part: Part,
    at: u64,
}

/// The consumer of a ring; `R` is a window on exactly the ring's bytes.
#[derive(Debug)]
pub struct Consumer<R> {
    mem: R,
    bytes: u64,
    max_record: u64,
    position: u64,
}

impl<R: Load> Consumer<R> {
    /// A consumer that starts at `position`: the ring's start, or where a predecessor ended.
    pub fn new(mem: R, ring: &RingGeometry, position: u64) -> Self {
        assert_eq!(mem.size() as u64, u64::from(ring.bytes), "a consumer's window is exactly its ring");
        Consumer { mem, bytes: ring.bytes.into(), max_record: ring.max_record.into(), position: position & !7 }
    }

    /// Position of the next record.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Looks for the next record. Work is bounded: at most one pad is passed.
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Option<Record>, RingError> {
        let at = self.position & (self.bytes - 1);
        // Acquire: pairs with the release in Producer::publish; the record's bytes are read after it.
        let word = self.mem.load(at as usize, Ordering::Acquire);
        if word == 0 {
            return Ok(None);
        }
        if let Some(record) = self.record(word, at) {
            return Ok(Some(record));
        }
        let word = self.pass_pad(word, at)?;
        Ok(if word == 0 { None } else { self.record(word, 0) })
    }

    /// The record whose header `word` is; `None` for a pad and for what no correct producer writes.
    #[inline(always)]
    fn record(&self, word: u64, at: u64) -> Option<Record> {
        let (len, kind) = (word & LEN_MASK, (word >> KIND_SHIFT) & 0x1f);
        let is_sound = word & (0xffff_ffff << 32 | PRESENT) == tag(self.position) | PRESENT
            && kind < PAD
            && len <= self.max_record
            && at + HEADER + len <= self.bytes;
        is_sound.then(|| Record {
            position: self.position,
            next: self.position + footprint(len),
            len: len as usize,
            part: PARTS[(kind & 3) as usize],
            at: at + HEADER,
        })
    }

    /// Goes on to the ring's start if `word` is a pad; returns the header there, 0 or a sound one.
    #[cold]
    fn pass_pad(&mut self, word: u64, at: u64) -> Result<u64, RingError> {
        let len = word & LEN_MASK;
        let is_tagged = word & (0xffff_ffff << 32 | PRESENT) == tag(self.position) | PRESENT;
        if !is_tagged || (word >> KIND_SHIFT) & 0x1f != PAD || at + HEADER + len != self.bytes {
            return Err(self.fault(word));
        }
        self.position += HEADER + len;
        let word = self.mem.load(0, Ordering::Acquire); // as in peek()
        if word == 0 || self.record(word, 0).is_some() { Ok(word) } else { Err(self.fault(word)) }
    }

    fn fault(&self, word: u64) -> RingError {
        let kind = (word >> KIND_SHIFT) & 0x1f;
        let reason = if word & (0xffff_ffff << 32 | PRESENT) != tag(self.position) | PRESENT {
            "expected the position's own tag"
        } else if kind == PAD {
            "expected a pad that ends with the ring"
        } else if kind > PAD {
            "expected a kind from 0 to 4"
        } else {
            "expected a length within the ring's limit"
        };
        RingError { position: self.position, found: word, reason }
    }

    /// Copies `dst.len()` bytes of a record out, from `offset` on.
    #[inline(always)]
    pub fn copy_out(&self, record: &Record, offset: usize, dst: &mut [u8]) {
        assert!(offset + dst.len() <= record.len, "copy past the record");
        self.mem.copy_out(record.at as usize + offset, dst);
    }

    /// Word number `index` of a record's bytes, loaded once.
    #[inline(always)]
    pub fn word(&self, record: &Record, index: usize) -> u64 {
        assert!(index * 8 + 8 <= record.len, "word past the record");
        self.mem.load(record.at as usize + index * 8, Ordering::Relaxed)
    }

    /// Goes on to the record behind `record`. Says nothing to the producer: see [`CursorLine::acknowledge`].
    #[inline(always)]
    pub fn advance(&mut self, record: &Record) {
        self.position = record.next;
    }
}
