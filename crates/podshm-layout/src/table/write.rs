//! The writer: one per region; its knowledge of what is free is private.

use super::alloc::Units;
use super::*;
use crate::geometry::TableGeometry;
use crate::mem::Store;
use crate::step::{self, Bug, Step};
use crate::sync::{Ordering, fence};

/// Why a publication failed; the table is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Key too long.
    #[error("key of {found} bytes: expected 1 to 255; shorten it")]
    Key {
        /// Its length.
        found: usize,
    },
    /// Value too long.
    #[error("value of {found} bytes: expected at most 65536; split it")]
    Value {
        /// Its length.
        found: usize,
    },
    /// No room for the record.
    #[error("table is full: {needed} bytes are needed, {free} are free and may be scattered; grow the table")]
    Full {
        /// Bytes needed in one piece.
        needed: u64,
        /// Bytes free in all.
        free: u64,
    },
    /// No bucket in reach has a free lane.
    #[error("table has no free bucket for another key at {keys} keys; grow the table")]
    Crowded {
        /// Keys in the table.
        keys: u64,
    },
}

impl TableError {
    /// Whether a larger table would help.
    pub fn wants_growth(&self) -> bool {
        matches!(self, TableError::Full { .. } | TableError::Crowded { .. })
    }
}

/// The writer of a table; `W` is a window on the whole region.
#[derive(Debug)]
pub struct TableWriter<W> {
    mem: W,
    geometry: TableGeometry,
    units: Units,
    keys: u64,
    version: u64,
    live_bytes: u64,
    in_batch: bool,
}

impl<W: Store> TableWriter<W> {
    /// The writer of a fresh (zeroed) table.
    pub fn new(mem: W, geometry: TableGeometry) -> Self {
        assert!(geometry.size() <= mem.size() as u64, "a table's window holds its geometry");
        TableWriter {
            mem,
            geometry,
            units: Units::new(geometry.units),
            keys: 0,
            version: 0,
            live_bytes: 0,
            in_batch: false,
        }
    }

    /// Keys in the table.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Bytes that the current records take, for sizing a successor.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Bytes of record space that are free.
    pub fn free_bytes(&self) -> u64 {
        self.units.free() * TableGeometry::UNIT
    }

    /// Publications so far.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The geometry.
    pub fn geometry(&self) -> TableGeometry {
        self.geometry
    }

    /// Says that the content is still true as of `now` (monotonic nanoseconds), without changing it.
    pub fn touch(&self, now: u64) {
        self.mem.store(AT_PUBLISHED, now, Ordering::Release);
    }

    /// Publishes `value` under `key`, as of `now` (monotonic nanoseconds).
    pub fn put(&mut self, key: &[u8], value: &[u8], now: u64) -> Result<(), TableError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(TableError::Key { found: key.len() });
        }
        if value.len() > MAX_VALUE {
            return Err(TableError::Value { found: value.len() });
        }
        let place = self.place(key)?;
        let needed = units(key.len(), value.len());
        let Some(unit) = self.units.take(needed) else {
            return Err(TableError::Full { needed: u64::from(needed) * TableGeometry::UNIT, free: self.free_bytes() });
        };
        if !step::is_planted(Bug::EntryFirst) {
            self.write_record(unit, key, value);
        }
        step::at(Step::TableWritten);
        let old = self.mem.load(place.entry_at as usize, Ordering::Relaxed);
        let entry = u64::from(unit) << 32 | (old.wrapping_add(1) & 0xffff_ffff);
        if let Some(reach) = place.new_reach {
            // Readers must search as far before they can find it there.
            let tags = self.mem.load(reach.0 as usize, Ordering::Relaxed);
            let tags = tags & (u64::MAX >> 8) | reach.1 << REACH_SHIFT;
            self.mem.store(reach.0 as usize, tags, Ordering::Release);
        }
        // Release: pairs with the acquire of the entry in look(); the record is written.
        self.mem.store(place.entry_at as usize, entry, Ordering::Release);
        step::at(Step::TableSwung);
        if step::is_planted(Bug::EntryFirst) {
            self.write_record(unit, key, value);
        }
        self.live_bytes += u64::from(needed) * TableGeometry::UNIT;
        match place.tag {
            Some((bucket_at, lane, tag)) => {
                let tags = self.mem.load(bucket_at as usize, Ordering::Relaxed);
                let tags = tags & !(0xff << (lane * 8)) | tag << (lane * 8);
                self.mem.store(bucket_at as usize, tags, Ordering::Release);
                step::at(Step::TableTagged);
                self.keys += 1;
            }
            None => self.retire(old),
        }
        self.published(now);
        Ok(())
    }

    /// Removes `key`; says whether it was there.
    pub fn remove(&mut self, key: &[u8], now: u64) -> bool {
        let Some((bucket_at, lane)) = self.lane_of(key) else {
            return false;
        };
        let entry_at = bucket_at + 8 + lane * 8;
        let old = self.mem.load(entry_at as usize, Ordering::Relaxed);
        let tags = self.mem.load(bucket_at as usize, Ordering::Relaxed) & !(0xff << (lane * 8));
        self.mem.store(entry_at as usize, old.wrapping_add(1) & 0xffff_ffff, Ordering::Release);
        step::at(Step::TableCleared);
        self.mem.store(bucket_at as usize, tags, Ordering::Release);
        self.keys -= 1;
        self.retire(old);
        self.published(now);
        true
    }

    /// Publishes several changes so that a snapshot sees all of them or none.
    pub fn batch(&mut self) -> Batch<'_, W> {
        self.version += 1; // odd
        self.in_batch = true;
        self.mem.store(AT_VERSION, self.version, Ordering::Release);
        fence(Ordering::Release); // pairs with the fence in Snapshot::finish: odd before any change of the batch
        step::at(Step::TableBatchOpen);
        Batch { writer: self }
    }

    /// Copies all of this table into `into`, which is larger; in one batch.
    pub fn copy_into<V: Store>(&self, into: &mut TableWriter<V>, now: u64) -> Result<(), TableError> {
        let mut bytes = ::alloc::vec![0; 256 + MAX_VALUE];
        let mut batch = into.batch();
        for bucket in 0..u64::from(self.geometry.buckets) {
            let at = TableGeometry::BUCKETS + bucket * 64;
            for lane in 0..LANES as u64 {
                let entry = self.mem.load((at + 8 + lane * 8) as usize, Ordering::Relaxed);
                if entry >> 32 == 0 {
                    continue;
                }
                let (key_len, value_len, value_at) = self.record(entry);
                self.mem.copy_out((value_at - key_len.next_multiple_of(8) as u64) as usize, &mut bytes[..key_len]);
                self.mem.copy_out(value_at as usize, &mut bytes[256..256 + value_len]);
                let (key, value) = bytes.split_at(256);
                batch.put(&key[..key_len], &value[..value_len], now)?;
            }
        }
        Ok(())
    }

    fn published(&mut self, now: u64) {
        self.mem.store(AT_KEYS, self.keys, Ordering::Relaxed);
        self.mem.store(AT_PUBLISHED, now, Ordering::Relaxed);
        if !self.in_batch {
            self.version += 2;
            self.mem.store(AT_VERSION, self.version, Ordering::Release);
            step::at(Step::TableVersioned);
        }
    }

    fn write_record(&mut self, unit: u32, key: &[u8], value: &[u8]) {
        let at = (self.geometry.data() + u64::from(unit) * TableGeometry::UNIT) as usize;
        // Release fence: pairs with the fence in is_current(): whoever sees a byte of the new record in reused units also
        // sees that the entry which led there has changed.
        fence(Ordering::Release);
        self.mem.store(at, (value.len() as u64) << 8 | key.len() as u64, Ordering::Relaxed);
        let padded = key.len().next_multiple_of(8);
        let mut last = [0; 8];
        let whole = key.len() & !7;
        self.mem.copy_in(at + 8, &key[..whole]);
        if padded != whole {
            last[..key.len() - whole].copy_from_slice(&key[whole..]);
            self.mem.copy_in(at + 8 + whole, &last);
        }
        self.mem.copy_in(at + 8 + padded, value);
    }

    fn retire(&mut self, entry: u64) {
        let (key_len, value_len, _) = self.record(entry);
        let size = units(key_len, value_len);
        self.units.give((entry >> 32) as u32, size);
        self.live_bytes -= u64::from(size) * TableGeometry::UNIT;
    }

    /// Key length, value length and the value's offset of a record that this writer wrote.
    fn record(&self, entry: u64) -> (usize, usize, u64) {
        let at = self.geometry.data() + (entry >> 32) * TableGeometry::UNIT;
        let word = self.mem.load(at as usize, Ordering::Relaxed);
        let key_len = (word & 0xff) as usize;
        (key_len, (word >> 8) as usize, at + 8 + key_len.next_multiple_of(8) as u64)
    }

    /// Where `key` is.
    fn lane_of(&self, key: &[u8]) -> Option<(u64, u64)> {
        let home = home(key, self.geometry.buckets);
        let reach = self.mem.load((TableGeometry::BUCKETS + home.bucket * 64) as usize, Ordering::Relaxed);
        for step in 0..=reach >> REACH_SHIFT {
            let bucket_at = self.bucket_at(home, step);
            let tags = self.mem.load(bucket_at as usize, Ordering::Relaxed);
            let mut lanes = lanes_with(tags, home.tag);
            while lanes != 0 {
                let lane = u64::from(lanes.trailing_zeros() / 8);
                lanes &= lanes - 1;
                let entry = self.mem.load((bucket_at + 8 + lane * 8) as usize, Ordering::Relaxed);
                if entry >> 32 != 0 && self.key_is(entry, key) {
                    return Some((bucket_at, lane));
                }
            }
        }
        None
    }

    fn key_is(&self, entry: u64, key: &[u8]) -> bool {
        let (key_len, _, value_at) = self.record(entry);
        if key_len != key.len() {
            return false;
        }
        let mut found = [0; MAX_KEY];
        self.mem.copy_out((value_at - key_len.next_multiple_of(8) as u64) as usize, &mut found[..key_len]);
        found[..key_len] == *key
    }

    /// The entry that `key` has, or the free one that it gets.
    fn place(&self, key: &[u8]) -> Result<Place, TableError> {
        if let Some((bucket_at, lane)) = self.lane_of(key) {
            return Ok(Place { entry_at: bucket_at + 8 + lane * 8, tag: None, new_reach: None });
        }
        let home = home(key, self.geometry.buckets);
        let home_at = self.bucket_at(home, 0);
        let reach = self.mem.load(home_at as usize, Ordering::Relaxed) >> REACH_SHIFT;
        for step in 0..u64::from(self.geometry.buckets).min(255) {
            let bucket_at = self.bucket_at(home, step);
            let tags = self.mem.load(bucket_at as usize, Ordering::Relaxed);
            if let Some(lane) = (0..LANES as u64).find(|lane| tags >> (lane * 8) & 0xff == 0) {
                return Ok(Place {
                    entry_at: bucket_at + 8 + lane * 8,
                    tag: Some((bucket_at, lane, home.tag)),
                    new_reach: (step > reach).then_some((home_at, step)),
                });
            }
        }
        Err(TableError::Crowded { keys: self.keys })
    }

    fn bucket_at(&self, home: Home, step: u64) -> u64 {
        let buckets = u64::from(self.geometry.buckets);
        TableGeometry::BUCKETS + (home.bucket + step) % buckets * 64
    }
}

struct Place {
    entry_at: u64,
    /// Bucket, lane and tag, for a key that is new.
    tag: Option<(u64, u64, u64)>,
    /// Home bucket and how far its keys reach now, where that grows.
    new_reach: Option<(u64, u64)>,
}

/// Several publications that a snapshot sees together. Ends when dropped.
#[derive(Debug)]
pub struct Batch<'a, W: Store> {
    writer: &'a mut TableWriter<W>,
}

impl<W: Store> Batch<'_, W> {
    /// See [`TableWriter::put`].
    pub fn put(&mut self, key: &[u8], value: &[u8], now: u64) -> Result<(), TableError> {
        self.writer.put(key, value, now)
    }

    /// See [`TableWriter::remove`].
    pub fn remove(&mut self, key: &[u8], now: u64) -> bool {
        self.writer.remove(key, now)
    }
}

impl<W: Store> Drop for Batch<'_, W> {
    fn drop(&mut self) {
        self.writer.in_batch = false;
        self.writer.version += 1; // even
        self.writer.mem.store(AT_VERSION, self.writer.version, Ordering::Release);
    }
}
