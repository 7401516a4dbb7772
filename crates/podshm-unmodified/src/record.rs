//! A segment's record on the domain's file system: what a successor of the daemon has to know. 256 bytes at its index, so that
//! one write changes it whole; the first record of the file is the id cursor.

use crate::ids::Cursor;
use crate::permissions::Owned;
use crate::segments::{Process, Segment};

/// Bytes of a record.
pub const SIZE: usize = 256;
/// Bytes of a member's name that are kept.
const NAME: usize = 48;
const SEGMENT: u64 = u64::from_le_bytes(*b"PODSHMS1");
const CURSOR: u64 = u64::from_le_bytes(*b"PODSHMC1");

/// Where the record of an index is.
pub fn offset(index: u32) -> u64 {
    (u64::from(index) + 1) * SIZE as u64
}

struct Writer([u8; SIZE], usize);

impl Writer {
    fn put(&mut self, value: u64) {
        self.0[self.1..self.1 + 8].copy_from_slice(&value.to_le_bytes());
        self.1 += 8;
    }

    fn name(&mut self, name: &str) {
        let bytes = &name.as_bytes()[..name.len().min(NAME)];
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += NAME;
    }
}

struct Reader<'a>(&'a [u8; SIZE], usize);

impl Reader<'_> {
    fn take(&mut self) -> u64 {
        let bytes = self.0[self.1..self.1 + 8].try_into().expect("eight bytes");
        self.1 += 8;
        u64::from_le_bytes(bytes)
    }

    fn name(&mut self) -> String {
        let bytes = &self.0[self.1..self.1 + NAME];
        self.1 += NAME;
        String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
    }
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(pair: u64) -> (u32, u32) {
    ((pair >> 32) as u32, pair as u32)
}

/// As it is written.
pub fn of_segment(segment: &Segment) -> [u8; SIZE] {
    let Segment { id, key, size, owned, atime, dtime, ctime, creator, last } = segment;
    let mut to = Writer([0; SIZE], 0);
    to.put(SEGMENT);
    to.put(pair(*id as u32, *key as u32));
    to.put(*size);
    to.put(pair(owned.uid, owned.gid));
    to.put(pair(owned.cuid, owned.cgid));
    to.put(u64::from(owned.mode));
    [atime, dtime, ctime].into_iter().for_each(|time| to.put(*time as u64));
    for process in [creator, last] {
        to.put(pair(process.pid as u32, process.node_pid as u32));
        to.put(process.started);
        to.name(&process.member);
    }
    to.0
}

/// As it was written; None for an empty place.
pub fn to_segment(bytes: &[u8; SIZE]) -> Option<Segment> {
    let mut from = Reader(bytes, 0);
    if from.take() != SEGMENT {
        return None;
    }
    let (id, key) = halves(from.take());
    let size = from.take();
    let ((uid, gid), (cuid, cgid)) = (halves(from.take()), halves(from.take()));
    let mode = from.take() as u16;
    let [atime, dtime, ctime] = [from.take() as i64, from.take() as i64, from.take() as i64];
    let mut process = || {
        let (pid, node_pid) = halves(from.take());
        let started = from.take();
        Process { member: from.name(), pid: pid as i32, node_pid: node_pid as i32, started }
    };
    let (creator, last) = (process(), process());
    let owned = Owned { uid, gid, cuid, cgid, mode };
    Some(Segment { id: id as i32, key: key as i32, size, owned, atime, dtime, ctime, creator, last })
}

/// As it is written.
pub fn of_cursor(cursor: Cursor) -> [u8; SIZE] {
    let mut to = Writer([0; SIZE], 0);
    [CURSOR, u64::from(cursor.next), cursor.last as u64, u64::from(cursor.rounds)].into_iter().for_each(|v| to.put(v));
    to.0
}

/// As it was written.
pub fn to_cursor(bytes: &[u8; SIZE]) -> Option<Cursor> {
    let mut from = Reader(bytes, 0);
    (from.take() == CURSOR).then(|| Cursor {
        next: from.take() as u32,
        last: from.take() as i64,
        rounds: from.take() as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let process = |member: &str, pid| Process { member: member.into(), pid, node_pid: pid + 1, started: 1 << 40 };
        let segment = Segment {
            id: i32::MAX - 7,
            key: -3,
            size: u64::MAX >> 1,
            owned: Owned { uid: 1, gid: u32::MAX - 1, cuid: 3, cgid: 4, mode: 0o3777 },
            atime: 5,
            dtime: -6,
            ctime: i64::MAX,
            creator: process("shop/cart-1", 17),
            last: process(&"x".repeat(NAME), 18),
        };
        assert_eq!(to_segment(&of_segment(&segment)), Some(segment));
        let cursor = Cursor { next: 9, last: -1, rounds: 65_535 };
        assert_eq!(to_cursor(&of_cursor(cursor)), Some(cursor));
        assert_eq!((to_segment(&[0; SIZE]), to_cursor(&[0; SIZE])), (None, None));
    }
}
