//! A table: byte keys to byte values, one writer, any number of wait-free readers.
//!
//! ```text
//!  bucket (64 B): [ 7 tags + reach ][ entry ×7 ]        entry: unit << 32 | version
//!                                      │
//!  record (whole units of 64 B):  [ value len << 8 | key len ][ key, padded to 8 ][ value ]
//! ```
//! An update writes a *new* record, swings the key's entry to it and only then reuses the old one. A reader loads the entry,
//! copies, and loads the entry again: unchanged means that nothing it copied was reused meanwhile. So a writer that dies or
//! stops anywhere leaves every key readable at its last published value; readers never wait for it.
//!
//! `version` in the header counts publications: even when nothing is in hand, odd inside a [`TableWriter::batch`]. A snapshot
//! of several keys is good if the version was even and the same before and after.

mod alloc;
mod read;
mod write;

pub use read::{Contended, Found, Lane, ReadError, Snapshot, TableReader};
pub use write::{Batch, TableError, TableWriter};

use xxhash_rust::xxh3::xxh3_64;

/// Longest key.
pub const MAX_KEY: usize = 255;
/// Longest value.
pub const MAX_VALUE: usize = 64 * 1024;
/// Attempts of a read before it says [`Contended`].
pub const ATTEMPTS: u32 = 256;

const AT_VERSION: usize = 64;
const AT_PUBLISHED: usize = 72;
const AT_KEYS: usize = 80;
const LANES: usize = 7;
const REACH_SHIFT: u32 = 56;

/// Where a key's search starts, and the tag that its lane carries.
#[derive(Clone, Copy, Debug)]
struct Home {
    bucket: u64,
    tag: u64,
}

fn home(key: &[u8], buckets: u32) -> Home {
    let hash = xxh3_64(key);
    Home { bucket: ((hash >> 32) * u64::from(buckets)) >> 32, tag: (hash & 0xff).max(1) }
}

/// A bit (the top one of each byte) for each lane whose tag may be `tag`; a false one is possible above a true one.
#[inline]
fn lanes_with(tags: u64, tag: u64) -> u64 {
    const LOW: u64 = 0x0001_0101_0101_0101;
    let x = (tags & (u64::MAX >> 8)) ^ (tag * LOW);
    x.wrapping_sub(LOW) & !x & (LOW << 7)
}

/// Units that a record takes.
fn units(key: usize, value: usize) -> u32 {
    (8 + key.next_multiple_of(8) + value).div_ceil(64) as u32
}

/// Bytes that a record takes, for sizing a table.
pub fn record_bytes(key: usize, value: usize) -> u64 {
    u64::from(units(key, value)) * 64
}
