//! The first line of every region: what it is, for people and for the check that a reader makes when it maps.
//!
//! Nothing is *decided* from a header: geometry comes from the broker. A header that contradicts the broker is a writer that
//! lies or a mix-up of descriptors, and the region is refused.

use crate::mem::{Load, Store};
use crate::sync::Ordering;

const MAGIC: u64 = u64::from_le_bytes(*b"podshm\x01\0");
const AT_MAGIC: usize = 0;
const AT_LAYOUT_KIND: usize = 8;
const AT_GENERATION: usize = 16;
const AT_SIZE: usize = 24;
const AT_OWNER: usize = 32;

/// Bytes that it takes.
pub const HEADER_BYTES: usize = AT_OWNER + 8;

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// A client's side of a channel (C).
    Client = 1,
    /// The agent's side of one client's channel (A).
    Agent = 2,
    /// A table (T).
    Table = 3,
    /// The notice page (N).
    Notice = 4,
}

/// The identity that a region carries in its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHeader {
    /// Layout that its writer writes.
    pub layout: u32,
    /// What it is for.
    pub kind: RegionKind,
    /// Its number in its line of successors.
    pub generation: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The client's number for C and A, the service's for T, 0 for N.
    pub owner: u64,
}

/// A region's header is not what the broker said it would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "region header lies: {field} is {found:#x}, the broker said {expected:#x}; do not use this region, its writer is broken or hostile"
)]
pub struct HeaderError {
    /// Which field.
    pub field: &'static str,
    /// What the broker said.
    pub expected: u64,
    /// What the region says.
    pub found: u64,
}

impl RegionHeader {
    /// Writes the header; the broker does this before the region has its writer.
    pub fn write(&self, mem: &impl Store) {
        mem.store(AT_LAYOUT_KIND, self.layout_kind(), Ordering::Relaxed);
        mem.store(AT_GENERATION, self.generation, Ordering::Relaxed);
        mem.store(AT_SIZE, self.size, Ordering::Relaxed);
        mem.store(AT_OWNER, self.owner, Ordering::Relaxed);
        mem.store(AT_MAGIC, MAGIC, Ordering::Release);
    }

    /// The bytes that [`RegionHeader::write`] leaves at the region's start.
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let words = [
            (AT_MAGIC, MAGIC),
            (AT_LAYOUT_KIND, self.layout_kind()),
            (AT_GENERATION, self.generation),
            (AT_SIZE, self.size),
            (AT_OWNER, self.owner),
        ];
        for (at, word) in words {
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Checks that the region at `mem` carries exactly this header.
    pub fn check(&self, mem: &impl Load) -> Result<(), HeaderError> {
        let fields = [
            ("magic", AT_MAGIC, MAGIC),
            ("layout and kind", AT_LAYOUT_KIND, self.layout_kind()),
            ("generation", AT_GENERATION, self.generation),
            ("size", AT_SIZE, self.size),
            ("owner", AT_OWNER, self.owner),
        ];
        for (field, offset, expected) in fields {
            let found = mem.load(offset, Ordering::Acquire);
            if found != expected {
                return Err(HeaderError { field, expected, found });
            }
        }
        Ok(())
    }

    fn layout_kind(&self) -> u64 {
        u64::from(self.layout) << 32 | self.kind as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::heap::Heap;

    #[test]
    fn the_bytes_are_what_is_written() {
        let header = RegionHeader { layout: 3, kind: RegionKind::Table, generation: 1 << 40, size: 8192, owner: 7 };
        let heap = Heap::new(40);
        header.write(&heap);
        let mut written = [0; 40];
        heap.copy_out(0, &mut written);
        assert_eq!(header.bytes(), written);
    }
}
