//! Identifiers as the kernel gives them out: an index, taken round in a circle, and above it a count of the rounds, so that one
//! that is gone is not soon another's.

use std::collections::BTreeSet;

/// Bits of the index.
pub const INDEX_BITS: u32 = 15;
/// Most identifiers at once.
pub const MOST: u32 = 1 << INDEX_BITS;
/// The circle is at least this long (RADIX_TREE_MAP_SIZE).
const SHORTEST_CYCLE: u32 = 64;

/// State of the allocation; kept over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Where the search goes on.
    pub next: u32,
    /// The last index given, -1 at first.
    pub last: i64,
    /// Rounds, 16 bits.
    pub rounds: u32,
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor { next: 0, last: -1, rounds: 0 }
    }
}

/// The index of an id.
pub fn index_of(id: i32) -> u32 {
    id as u32 & (MOST - 1)
}

impl Cursor {
    /// The next identifier. There are fewer than [`MOST`] in use.
    pub fn take(&mut self, used: &BTreeSet<u32>) -> i32 {
        let cycle = (used.len() as u32 * 3 / 2).clamp(SHORTEST_CYCLE, MOST);
        let free = |from: u32| (from..cycle).find(|index| !used.contains(index));
        let index = free(self.next).or_else(|| free(0)).expect("a cycle is longer than what is in use");
        if i64::from(index) <= self.last {
            self.rounds = (self.rounds + 1) & 0xffff;
        }
        self.last = i64::from(index);
        self.next = index + 1;
        (self.rounds << INDEX_BITS | index) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_only_after_65536_rounds() {
        let (mut cursor, mut used) = (Cursor::default(), BTreeSet::new());
        assert_eq!((0..3).map(|_| cursor.take(&used)).collect::<Vec<_>>(), [0, 1, 2]);
        let mut seen = BTreeSet::new();
        for _ in 0..10_000 {
            assert!(seen.insert(cursor.take(&used)));
        }
        used.extend(0..64);
        let id = cursor.take(&used);
        assert!((64..96).contains(&index_of(id)), "{id}");
    }

    #[test]
    fn all_but_one_can_be_in_use() {
        let mut cursor = Cursor { next: 7, ..Cursor::default() };
        let used: BTreeSet<u32> = (0..MOST).filter(|index| *index != 5).collect();
        assert_eq!(index_of(cursor.take(&used)), 5);
    }
}
