//! Where everything lies in a region. Computed by the broker, sent to both sides, checked by both; never read from a peer.

use crate::{CACHE_LINE, Layout, PAGE, cursor::CursorLine};
use alloc::vec::Vec;

/// Offset of the armed word in C and in A.
pub const ARMED: usize = 64;
/// Offset of the futex word in A that an agent increments to wake its client.
pub const WAKE: usize = 128;
/// Word in A that is 1 where the agent makes its clients' processes go through a fence before it sleeps.
pub const SLEEPER_FENCES: usize = 192;
/// Word in C of a client that goes over to C's next generation: bit `i` once ring `i` goes on there, [`MOVED_ALL`] once everything does.
pub const MOVED: usize = 200;
/// Bit of [`MOVED`]: all rings, armed word and cursors are the next generation's.
pub const MOVED_ALL: u64 = 1 << 63;
/// First cursor line in C and in A.
pub const CURSORS: usize = 256;
/// Most rings in one direction of a channel at any layout; [`Layout::max_rings`] says what one layout holds.
pub const MAX_RINGS: usize = Layout::V1.max_rings();
/// Smallest and largest ring, in bytes.
pub const RING_BYTES: core::ops::RangeInclusive<u32> = 4096..=(64 << 20);
/// Notice page: the agent's epoch, bumped when a successor takes over.
pub const NOTICE_AGENT_EPOCH: usize = 64;
/// Notice page: the current generation of table `i` is at `NOTICE_TABLES + 8 * i`.
pub const NOTICE_TABLES: usize = 128;
/// Most services a domain can have.
pub const MAX_SERVICES: usize = MAX_RINGS;

const _: () = assert!(MAX_RINGS < 63, "each ring has a bit of its own in the word of those that have moved");

/// A geometry that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Ring size out of range or not a power of two.
    #[error("ring of {found} bytes: expected a power of two from 4096 to 67108864")]
    RingBytes {
        /// Size asked for.
        found: u64,
    },
    /// A record that could get stuck at the ring's end.
    #[error("records up to {found} bytes in a ring of {ring}: expected at most {most}; use a larger ring")]
    MaxRecord {
        /// Record limit asked for.
        found: u64,
        /// Ring size.
        ring: u64,
        /// Largest limit for this ring.
        most: u64,
    },
    /// Too many rings in one channel.
    #[error("{found} rings in one direction: expected at most {most} at memory layout {layout}; split the domain")]
    TooManyRings {
        /// Rings asked for.
        found: usize,
        /// The layout.
        layout: Layout,
        /// The limit.
        most: usize,
    },
    /// A ring, cursor or table that reaches outside its region or over another part.
    #[error("{part} at {offset} of {len} bytes does not fit its place in a region of {size} bytes")]
    Outside {
        /// What.
        part: &'static str,
        /// Where.
        offset: u64,
        /// How long.
        len: u64,
        /// The region.
        size: u64,
    },
    /// A table too small or too large to be one.
    #[error("table for {keys} keys and {bytes} bytes: expected 1 to 2^24 keys and at most 16 GiB")]
    Table {
        /// Keys asked for.
        keys: u64,
        /// Bytes asked for.
        bytes: u64,
    },
}

/// One ring: its bytes in the producer's region, its cursor line in the consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingGeometry {
    /// First byte in the producer's region.
    pub offset: u32,
    /// Bytes, a power of two.
    pub bytes: u32,
    /// Longest record.
    pub max_record: u32,
    /// Position of the first record: not 0, so that the hot lines of many rings differ in their cache sets.
    pub start: u64,
    /// Offset of the cursor line in the consumer's region.
    pub cursor: u32,
}

impl RingGeometry {
    /// Longest record that a ring of `bytes` can always pass: half of it, less its header.
    pub const fn most_record(bytes: u32) -> u32 {
        bytes / 2 - 16
    }

    /// The consumer's cursor line.
    pub const fn cursor_line(&self) -> CursorLine {
        CursorLine::at(self.cursor as usize)
    }

    /// Checks that the ring fits a producer's region of `producer` bytes.
    pub fn check(&self, producer: u64) -> Result<(), GeometryError> {
        if !self.bytes.is_power_of_two() || !RING_BYTES.contains(&self.bytes) {
            return Err(GeometryError::RingBytes { found: self.bytes.into() });
        }
        let most = Self::most_record(self.bytes);
        if self.max_record > most {
            return Err(GeometryError::MaxRecord {
                found: self.max_record.into(),
                ring: self.bytes.into(),
                most: most.into(),
            });
        }
        let end = u64::from(self.offset) + u64::from(self.bytes);
        if !(self.offset as usize).is_multiple_of(CACHE_LINE) || (self.offset as usize) < PAGE || end > producer {
            return Err(outside("ring", self.offset.into(), self.bytes.into(), producer));
        }
        let cursor = self.cursor as usize;
        if cursor < CURSORS || cursor + CACHE_LINE > PAGE || !cursor.is_multiple_of(CACHE_LINE) {
            return Err(outside("cursor line", self.cursor.into(), CACHE_LINE as u64, PAGE as u64));
        }
        if !self.start.is_multiple_of(8) {
            return Err(outside("first record", self.start, 8, self.bytes.into()));
        }
        Ok(())
    }
}

/// Size and record limit of a ring, before it has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    /// Bytes, a power of two.
    pub bytes: u32,
    /// Longest record.
    pub max_record: u32,
}

/// Both regions of one client's channel.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ChannelGeometry {
    /// Bytes of C.
    pub client_bytes: u64,
    /// Bytes of A.
    pub agent_bytes: u64,
    /// Rings in C: a queue's records, a call's requests.
    pub to_agent: Vec<RingGeometry>,
    /// Rings in A: a call's responses.
    pub to_client: Vec<RingGeometry>,
}

impl ChannelGeometry {
    /// Lays rings out one behind another in their producer's region, and says how many bytes that takes; `spread` is any number that
    /// differs from client to client. `cursors` is the layout of the *consumer's* region, where their cursor lines are.
    pub fn lay_out(
        sizes: &[RingSize],
        spread: u64,
        cursors: Layout,
    ) -> Result<(u64, Vec<RingGeometry>), GeometryError> {
        if sizes.len() > cursors.max_rings() {
            let (found, most) = (sizes.len(), cursors.max_rings());
            return Err(GeometryError::TooManyRings { found, layout: cursors, most });
        }
        let mut at = PAGE as u64;
        let mut rings = Vec::with_capacity(sizes.len());
        for (i, size) in sizes.iter().enumerate() {
            let ring = RingGeometry {
                offset: u32::try_from(at).unwrap_or(u32::MAX),
                bytes: size.bytes,
                max_record: size.max_record,
                // A multiple of the line, within the first quarter so that a first lap looks like any other.
                // Never 0: a zeroed cursor line means "not started yet".
                start: CACHE_LINE as u64
                    + (spread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % u64::from(size.bytes.max(256) / 4)
                        / CACHE_LINE as u64
                        * CACHE_LINE as u64,
                cursor: cursors.cursor(i) as u32,
            };
            at += u64::from(size.bytes);
            ring.check(at)?;
            rings.push(ring);
        }
        Ok((at, rings))
    }

    /// Checks what came in a message: every ring inside its region, none over another.
    pub fn check(&self) -> Result<(), GeometryError> {
        for (rings, size) in [(&self.to_agent, self.client_bytes), (&self.to_client, self.agent_bytes)] {
            let (mut end, mut line) = (PAGE as u64, 0);
            for ring in rings {
                ring.check(size)?;
                if u64::from(ring.offset) < end || ring.cursor <= line {
                    return Err(outside("ring over another", ring.offset.into(), ring.bytes.into(), size));
                }
                end = u64::from(ring.offset) + u64::from(ring.bytes);
                line = ring.cursor;
            }
        }
        Ok(())
    }
}

/// A table's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableGeometry {
    /// Buckets of one cache line and seven entries.
    pub buckets: u32,
    /// Units of 64 bytes for keys and values.
    pub units: u32,
}

impl TableGeometry {
    /// Entries in a bucket.
    pub const LANES: u32 = 7;
    /// Bytes of a unit.
    pub const UNIT: u64 = 64;
    /// Offset of the buckets.
    pub const BUCKETS: u64 = PAGE as u64;

    /// A table for `keys` keys whose records (8 bytes, key and value, rounded up to units) take `bytes` in all, with buckets
    /// six tenths full and an eighth of spare room for copies on write.
    pub fn sized_for(keys: u64, bytes: u64) -> Result<Self, GeometryError> {
        if keys == 0 || keys > 1 << 24 || bytes > 16 << 30 {
            return Err(GeometryError::Table { keys, bytes });
        }
        let buckets = (keys * 10).div_ceil(u64::from(Self::LANES) * 6) + 2;
        let spare = (bytes / 8).max(2 * 66_000);
        let units = (bytes + spare).div_ceil(Self::UNIT) + 1;
        Ok(TableGeometry { buckets: buckets as u32, units: units as u32 })
    }

    /// Offset of unit 0.
    pub const fn data(&self) -> u64 {
        (Self::BUCKETS + self.buckets as u64 * CACHE_LINE as u64).next_multiple_of(PAGE as u64)
    }

    /// Bytes of the region.
    pub const fn size(&self) -> u64 {
        (self.data() + self.units as u64 * Self::UNIT).next_multiple_of(PAGE as u64)
    }

    /// Checks what came in a message against the region's size.
    pub fn check(&self, size: u64) -> Result<(), GeometryError> {
        if self.buckets == 0 || self.units == 0 || self.size() > size {
            return Err(outside("table", 0, self.size(), size));
        }
        Ok(())
    }
}

fn outside(part: &'static str, offset: u64, len: u64, size: u64) -> GeometryError {
    GeometryError::Outside { part, offset, len, size }
}
