//! Readers: wait-free, bounded, trusting nothing that the writer wrote.

use super::*;
use crate::geometry::TableGeometry;
use crate::mem::Load;
use crate::sync::{Ordering, fence};

/// The value changed under every attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read was overtaken by the writer {ATTEMPTS} times; try again, or update this key less often")]
pub struct Contended;

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The value changed under every attempt.
    #[error(transparent)]
    Contended(#[from] Contended),
    /// The caller's buffer is too small.
    #[error("value of {needed} bytes: the buffer has {found}; pass a larger one")]
    BufferTooSmall {
        /// The value's length.
        needed: usize,
        /// The buffer's.
        found: usize,
    },
    /// The table holds something that no correct writer writes.
    #[error("table is corrupt: {what} is {found:#x} at offset {offset}; its writer is broken or hostile")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// The word found.
        found: u64,
        /// Where.
        offset: u64,
    },
    /// A read outside the value.
    #[error("read of {len} bytes at {offset} of a value of {value} bytes")]
    OutOfValue {
        /// First byte asked for.
        offset: usize,
        /// Bytes asked for.
        len: usize,
        /// The value's length.
        value: usize,
    },
    /// The value changed since it was found (only for a guard, which promises one value).
    #[error("the value changed since it was looked up; look it up again")]
    Changed,
}

/// A reader of a table; `R` is a window on the whole region.
#[derive(Clone, Debug)]
pub struct TableReader<R> {
    mem: R,
    geometry: TableGeometry,
}

/// Where a key was found: a cheap ticket for reading its value and for asking whether it is still current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    entry_at: u64,
    entry: u64,
    value_at: u64,
    value_len: usize,
}

impl Found {
    /// The value's length in bytes.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// The lane that the key lives in: what a handle keeps.
    pub fn lane(&self) -> Lane {
        Lane { entry_at: self.entry_at, last: *self }
    }
}

/// A resolved key: the next read goes to its lane at once and compares the key only when the entry changed.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    entry_at: u64,
    last: Found,
}

impl<R: Load> TableReader<R> {
    /// A reader over a region that has been checked to be of `geometry`.
    pub fn new(mem: R, geometry: TableGeometry) -> Self {
        assert!(geometry.size() <= mem.size() as u64, "a table's window holds its geometry");
        TableReader { mem, geometry }
    }

    /// Publications so far; odd while a batch is being published.
    pub fn version(&self) -> u64 {
        self.mem.load(AT_VERSION, Ordering::Acquire)
    }

    /// The writer's monotonic clock, in nanoseconds, at its last publication or sign of life.
    pub fn published_at(&self) -> u64 {
        self.mem.load(AT_PUBLISHED, Ordering::Acquire)
    }

    /// Keys in the table, as its writer says.
    pub fn len(&self) -> u64 {
        self.mem.load(AT_KEYS, Ordering::Relaxed)
    }

    /// Whether the table has no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The geometry.
    pub fn geometry(&self) -> TableGeometry {
        self.geometry
    }

    /// Finds `key`. The result is a moment's truth: see [`TableReader::is_current`].
    #[inline]
    pub fn find(&self, key: &[u8]) -> Result<Option<Found>, ReadError> {
        if key.len() > MAX_KEY {
            return Ok(None);
        }
        let home = home(key, self.geometry.buckets);
        for _ in 0..ATTEMPTS {
            match self.find_once(key, home)? {
                Attempt::Found(found) => return Ok(Some(found)),
                Attempt::Absent => return Ok(None),
                Attempt::Overtaken => continue,
            }
        }
        Err(Contended.into())
    }

    fn find_once(&self, key: &[u8], home: Home) -> Result<Attempt, ReadError> {
        let mut overtaken = false;
        let mut bucket = home.bucket;
        let mut reach = 0;
        let mut step = 0;
        loop {
            let at = TableGeometry::BUCKETS + bucket * 64;
            // Acquire: pairs with the writer's release of the tags; the entry of a tag is there.
            let tags = self.mem.load(at as usize, Ordering::Acquire);
            if step == 0 {
                reach = tags >> REACH_SHIFT;
            }
            let mut lanes = lanes_with(tags, home.tag);
            while lanes != 0 {
                let lane = u64::from(lanes.trailing_zeros() / 8);
                lanes &= lanes - 1;
                match self.look(at + 8 + lane * 8, key)? {
                    Look::Same(found) => return Ok(Attempt::Found(found)),
                    Look::Other => {}
                    Look::Overtaken => overtaken = true,
                }
            }
            if step == reach {
                return Ok(if overtaken { Attempt::Overtaken } else { Attempt::Absent });
            }
            step += 1;
            bucket += 1;
            if bucket == u64::from(self.geometry.buckets) {
                bucket = 0;
            }
        }
    }

    /// Looks at one entry: is it `key`'s?
    #[inline]
    fn look(&self, entry_at: u64, key: &[u8]) -> Result<Look, ReadError> {
        // Acquire: pairs with the writer's release of the entry; the record was written before.
        let entry = self.mem.load(entry_at as usize, Ordering::Acquire);
        let unit = entry >> 32;
        if unit == 0 {
            return Ok(Look::Other);
        }
        if unit >= u64::from(self.geometry.units) {
            return Err(ReadError::Corrupt { what: "unit", found: unit, offset: entry_at });
        }
        let at = self.geometry.data() + unit * TableGeometry::UNIT;
        // A record of a few lines: they come in beside one another, not one after the other.
        for line in 1..4 {
            self.mem.prefetch(at as usize + line * 64);
        }
        let word = self.mem.load(at as usize, Ordering::Relaxed);
        let (key_len, value_len) = ((word & 0xff) as usize, (word >> 8) as usize);
        let value_at = at + 8 + key_len.next_multiple_of(8) as u64;
        let fits = value_len <= MAX_VALUE && value_at + value_len as u64 <= self.geometry.size();
        if !fits || key_len != key.len() || !self.same_key(at + 8, key) {
            // A record that is being reused may look like anything; only a current one can be wrong.
            let found = Found { entry_at, entry, value_at: at, value_len: 0 };
            return match (self.is_current(&found), fits) {
                (true, true) => Ok(Look::Other),
                (true, false) => Err(ReadError::Corrupt { what: "record header", found: word, offset: at }),
                (false, _) => Ok(Look::Overtaken),
            };
        }
        Ok(Look::Same(Found { entry_at, entry, value_at, value_len }))
    }

    /// Compares word by word; keys are padded with zeros. Stays inside the region because a unit and the largest key do.
    #[inline]
    fn same_key(&self, at: u64, key: &[u8]) -> bool {
        let (words, rest) = key.as_chunks::<8>();
        let mut offset = at as usize;
        if offset + key.len().next_multiple_of(8) > self.mem.size() {
            return false;
        }
        for word in words {
            if self.mem.load(offset, Ordering::Relaxed) != u64::from_le_bytes(*word) {
                return false;
            }
            offset += 8;
        }
        if rest.is_empty() {
            return true;
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mem.load(offset, Ordering::Relaxed) == u64::from_le_bytes(last)
    }

    /// Whether the value is still the one that was found. If so, every byte copied before this call was that value's.
    #[inline]
    pub fn is_current(&self, found: &Found) -> bool {
        // Acquire fence: pairs with the writer's release fence between swinging an entry and reusing its record.
        fence(Ordering::Acquire);
        self.mem.load(found.entry_at as usize, Ordering::Relaxed) == found.entry
    }

    /// Copies `dst.len()` bytes of the value from `offset` on, and says whether they are one value's bytes.
    #[inline]
    pub fn read(&self, found: &Found, offset: usize, dst: &mut [u8]) -> Result<(), ReadError> {
        if offset > found.value_len || dst.len() > found.value_len - offset {
            return Err(ReadError::OutOfValue { offset, len: dst.len(), value: found.value_len });
        }
        self.mem.copy_out(found.value_at as usize + offset, dst);
        if self.is_current(found) { Ok(()) } else { Err(ReadError::Changed) }
    }

    /// Copies the value of `key` into `dst` and returns its length, or `None` where there is no such key.
    #[inline]
    pub fn copy(&self, key: &[u8], dst: &mut [u8]) -> Result<Option<usize>, ReadError> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.find(key)? else {
                return Ok(None);
            };
            if let Some(len) = self.copy_found(&found, dst)? {
                return Ok(Some(len));
            }
        }
        Err(Contended.into())
    }

    #[inline]
    fn copy_found(&self, found: &Found, dst: &mut [u8]) -> Result<Option<usize>, ReadError> {
        let Some(dst_part) = dst.get_mut(..found.value_len) else {
            let error = ReadError::BufferTooSmall { needed: found.value_len, found: dst.len() };
            return if self.is_current(found) { Err(error) } else { Ok(None) };
        };
        match self.read(found, 0, dst_part) {
            Ok(()) => Ok(Some(found.value_len)),
            Err(ReadError::Changed) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// [`TableReader::find`] for a resolved key: no hash; the key is compared only when its entry has changed.
    #[inline]
    pub fn find_in(&self, lane: &mut Lane, key: &[u8]) -> Result<Option<Found>, ReadError> {
        if self.mem.load(lane.entry_at as usize, Ordering::Acquire) == lane.last.entry {
            return Ok(Some(lane.last));
        }
        if let Look::Same(found) = self.look(lane.entry_at, key)? {
            lane.last = found;
            return Ok(Some(found));
        }
        let found = self.find(key)?;
        if let Some(found) = found {
            *lane = found.lane();
        }
        Ok(found)
    }

    /// [`TableReader::copy`] of a lane whose value is the one that was found last: `None` where it is another by now, or where
    /// `dst` is too small; then go by [`TableReader::copy_in_lane`], which says which.
    ///
    /// Does not panic, so that whoever is called from C has a path without landing pads by it.
    #[inline(always)]
    pub fn copy_unchanged(&self, lane: &Lane, dst: &mut [u8]) -> Option<usize> {
        let Found { entry_at, entry, value_at, value_len } = lane.last;
        let dst = dst.get_mut(..value_len)?;
        // Acquire, and an acquire fence: as in `look` and `is_current`.
        self.mem.copy_while(entry_at as usize, entry, value_at as usize, dst).then_some(value_len)
    }

    /// [`TableReader::copy`] for a resolved key.
    #[inline]
    pub fn copy_in_lane(&self, lane: &mut Lane, key: &[u8], dst: &mut [u8]) -> Result<Option<usize>, ReadError> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.find_in(lane, key)? else {
                return Ok(None);
            };
            if let Some(len) = self.copy_found(&found, dst)? {
                return Ok(Some(len));
            }
        }
        Err(Contended.into())
    }

    /// Starts a read of several keys at one version.
    pub fn snapshot(&self) -> Snapshot<'_, R> {
        Snapshot { table: self, version: self.version() }
    }

    /// Calls `each` with every key and value; a key that is updated meanwhile is given once, at one of its values.
    /// `value` is lent for the call. Costs a copy of the whole table.
    pub fn scan(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), ReadError> {
        let mut bytes = ::alloc::vec![0; 256 + MAX_VALUE];
        for bucket in 0..u64::from(self.geometry.buckets) {
            for lane in 0..LANES as u64 {
                let entry_at = TableGeometry::BUCKETS + bucket * 64 + 8 + lane * 8;
                if let Some((key, value)) = self.record_at(entry_at, &mut bytes)? {
                    each(&bytes[..key], &bytes[256..256 + value]);
                }
            }
        }
        Ok(())
    }

    fn record_at(&self, entry_at: u64, bytes: &mut [u8]) -> Result<Option<(usize, usize)>, ReadError> {
        for _ in 0..ATTEMPTS {
            let entry = self.mem.load(entry_at as usize, Ordering::Acquire);
            let unit = entry >> 32;
            if unit == 0 {
                return Ok(None);
            }
            if unit >= u64::from(self.geometry.units) {
                return Err(ReadError::Corrupt { what: "unit", found: unit, offset: entry_at });
            }
            let at = self.geometry.data() + unit * TableGeometry::UNIT;
            let word = self.mem.load(at as usize, Ordering::Relaxed);
            let (key_len, value_len) = ((word & 0xff) as usize, (word >> 8) as usize);
            let value_at = at + 8 + key_len.next_multiple_of(8) as u64;
            let found = Found { entry_at, entry, value_at, value_len };
            if value_len > MAX_VALUE || value_at + value_len as u64 > self.geometry.size() {
                if self.is_current(&found) {
                    return Err(ReadError::Corrupt { what: "record header", found: word, offset: at });
                }
                continue;
            }
            self.mem.copy_out(at as usize + 8, &mut bytes[..key_len]);
            self.mem.copy_out(value_at as usize, &mut bytes[256..256 + value_len]);
            if self.is_current(&found) {
                return Ok(Some((key_len, value_len)));
            }
        }
        Err(Contended.into())
    }
}

enum Attempt {
    Found(Found),
    Absent,
    Overtaken,
}

enum Look {
    Same(Found),
    Other,
    Overtaken,
}

/// A read of several keys that are to be of one version.
#[derive(Debug)]
pub struct Snapshot<'a, R> {
    table: &'a TableReader<R>,
    version: u64,
}

impl<R: Load> Snapshot<'_, R> {
    /// Copies the value of `key` into `dst`.
    pub fn copy(&self, key: &[u8], dst: &mut [u8]) -> Result<Option<usize>, ReadError> {
        self.table.copy(key, dst)
    }

    /// Ends the read: the version that everything was read at, or `None` because the table changed meanwhile (or a batch was
    /// being published, or its writer died inside one).
    pub fn finish(self) -> Option<u64> {
        fence(Ordering::Acquire); // pairs with the release in the writer's version stores
        let now = self.table.mem.load(AT_VERSION, Ordering::Relaxed);
        (now == self.version && now.is_multiple_of(2)).then_some(now)
    }
}
