//! Numbered, checksummed records, and a checker that finds what was lost, repeated, reordered or torn.
//!
//! ```text
//! 0         8        12       16        24                len
//! │ xxh3 of │ sender │ length │ sequence │ filler … │      little-endian
//! │ the rest│  u32   │  u32   │   u64    │          │
//! ```

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

/// The shortest record, in bytes.
pub const MIN_RECORD: usize = 24;

/// Holes kept per sender before the oldest is given up as lost.
const MAX_HOLES: usize = 65_536;

/// Senders kept before further ones are only counted.
const MAX_SENDERS: usize = 65_536;

/// What a record said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// Who made it.
    pub sender: u32,
    /// Its number, from 0 in each sender.
    pub sequence: u64,
    /// Whole length in bytes.
    pub len: usize,
}

/// A record that is not what its sender wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptRecord {
    /// Shorter than [`MIN_RECORD`].
    #[error("record of {0} bytes: expected at least {MIN_RECORD}")]
    Short(usize),
    /// Cut, or run into the next one.
    #[error("record of {found} bytes says that it has {expected}")]
    Length {
        /// Bytes that the record says it has.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// Torn or overwritten.
    #[error("checksum {found:#018x} of the bytes, {expected:#018x} in the record")]
    Checksum {
        /// In the record.
        expected: u64,
        /// Of the bytes.
        found: u64,
    },
}

/// Fills the whole of `record` in place.
///
/// # Panics
/// If `record` is shorter than [`MIN_RECORD`] or longer than `u32::MAX`.
pub fn encode_into(record: &mut [u8], sender: u32, sequence: u64) {
    assert!(record.len() >= MIN_RECORD, "a numbered record has at least {MIN_RECORD} bytes, not {}", record.len());
    let len = u32::try_from(record.len()).expect("a numbered record's length fits u32");
    record[8..12].copy_from_slice(&sender.to_le_bytes());
    record[12..16].copy_from_slice(&len.to_le_bytes());
    record[16..24].copy_from_slice(&sequence.to_le_bytes());
    // Filler that differs from record to record, so that bytes of a neighbour don't pass for ours.
    let mut word = (u64::from(sender) << 40) ^ sequence ^ 0x9e37_79b9_7f4a_7c15;
    for chunk in record[24..].chunks_mut(8) {
        word = word.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    let sum = xxh3_64(&record[8..]);
    record[..8].copy_from_slice(&sum.to_le_bytes());
}

/// A record of `len` bytes (at least [`MIN_RECORD`], see [`encode_into`]).
pub fn encode(sender: u32, sequence: u64, len: usize) -> Vec<u8> {
    let mut record = vec![0; len];
    encode_into(&mut record, sender, sequence);
    record
}

/// Checks a record and says who made it.
pub fn decode(record: &[u8]) -> Result<Numbered, CorruptRecord> {
    let word = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (Some(expected), Some(head), Some(sequence)) = (word(0), word(8), word(16)) else {
        return Err(CorruptRecord::Short(record.len()));
    };
    let (sender, len) = (head as u32, (head >> 32) as usize);
    if len != record.len() {
        return Err(CorruptRecord::Length { expected: len, found: record.len() });
    }
    let found = xxh3_64(&record[8..]);
    if found != expected {
        return Err(CorruptRecord::Checksum { expected, found });
    }
    Ok(Numbered { sender, sequence, len })
}

/// Was it new?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The first time.
    New,
    /// Delivered before.
    Duplicate,
}

/// What one sender's records came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SenderReport {
    /// Different records that arrived.
    pub delivered: u64,
    /// Repeats that were marked as possibly seen: allowed after a crash.
    pub duplicates_marked: u64,
    /// Repeats without the mark: a broken promise.
    pub duplicates_unmarked: u64,
    /// Accepted and never delivered: a broken promise.
    pub lost: u64,
    /// New records that arrived after a later one: a broken promise.
    pub out_of_order: u64,
    /// Delivered, but with a number that the sender says it never got accepted.
    pub beyond: u64,
}

impl SenderReport {
    /// Nothing lost, unmarked, reordered or made up.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicates_unmarked == 0 && self.out_of_order == 0 && self.beyond == 0
    }

    fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.duplicates_marked += other.duplicates_marked;
        self.duplicates_unmarked += other.duplicates_unmarked;
        self.lost += other.lost;
        self.out_of_order += other.out_of_order;
        self.beyond += other.beyond;
    }
}

/// Collects what was delivered. Memory grows with the holes in the numbers, not with the records.
#[derive(Debug, Default, Clone)]
pub struct Checker {
    senders: BTreeMap<u32, Sender>,
    corrupt: u64,
    untracked: u64,
}

#[derive(Debug, Default, Clone)]
struct Sender {
    /// Delivered numbers as ranges, first to last, never touching.
    ranges: BTreeMap<u64, u64>,
    report: SenderReport,
    given_up: u64,
}

impl Checker {
    /// An empty checker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a record as delivered: checks it, then counts it.
    pub fn record(&mut self, record: &[u8], maybe_seen: bool) -> Result<(Numbered, Seen), CorruptRecord> {
        match decode(record) {
            Ok(numbered) => Ok((numbered, self.observe(numbered.sender, numbered.sequence, maybe_seen))),
            Err(error) => {
                self.corrupt += 1;
                Err(error)
            }
        }
    }

    /// Takes a delivery that was checked elsewhere.
    pub fn observe(&mut self, sender: u32, sequence: u64, maybe_seen: bool) -> Seen {
        if self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&sender) {
            self.untracked += 1;
            return Seen::New;
        }
        self.senders.entry(sender).or_default().observe(sequence, maybe_seen)
    }

    /// Counts a record whose bytes were found corrupt elsewhere.
    pub fn count_corrupt(&mut self) {
        self.corrupt += 1;
    }

    /// Records that failed their checksum.
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// Records of senders past the 65,536th: not checked for anything.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Senders that were heard of.
    pub fn senders(&self) -> impl Iterator<Item = u32> + '_ {
        self.senders.keys().copied()
    }

    /// The next number after the highest delivered one; 0 before the first.
    pub fn next_sequence(&self, sender: u32) -> u64 {
        self.senders.get(&sender).map_or(0, Sender::next)
    }

    /// One sender's account, if `accepted` numbers (0 to `accepted - 1`) were accepted from it.
    pub fn report(&self, sender: u32, accepted: u64) -> SenderReport {
        let Some(sender) = self.senders.get(&sender) else {
            return SenderReport { lost: accepted, ..SenderReport::default() };
        };
        let mut report = sender.report;
        let mut within = 0;
        for (first, last) in &sender.ranges {
            within += last.saturating_add(1).min(accepted).saturating_sub(*first);
            if *last >= accepted {
                report.beyond += (last - accepted.max(*first)).saturating_add(1);
            }
        }
        // Holes that were given up are inside a range by now, and lost all the same.
        report.lost = accepted - within.min(accepted) + sender.given_up;
        report
    }

    /// All senders together; `accepted` gives each sender's count. Senders heard of but absent from `accepted` count as
    /// having accepted nothing.
    pub fn total(&self, accepted: impl IntoIterator<Item = (u32, u64)>) -> SenderReport {
        let accepted: BTreeMap<u32, u64> = accepted.into_iter().collect();
        let mut total = SenderReport::default();
        for (sender, accepted) in &accepted {
            total.add(&self.report(*sender, *accepted));
        }
        for sender in self.senders().filter(|sender| !accepted.contains_key(sender)) {
            total.add(&self.report(sender, 0));
        }
        total
    }
}

impl Sender {
    fn next(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(_, last)| last.saturating_add(1))
    }

    fn observe(&mut self, sequence: u64, maybe_seen: bool) -> Seen {
        // The usual case: the next in line extends the last range.
        if let Some(mut entry) = self.ranges.last_entry()
            && entry.get().checked_add(1) == Some(sequence)
        {
            *entry.get_mut() = sequence;
            self.report.delivered += 1;
            return Seen::New;
        }
        let before = self.ranges.range(..=sequence).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= sequence) {
            match maybe_seen {
                true => self.report.duplicates_marked += 1,
                false => self.report.duplicates_unmarked += 1,
            }
            return Seen::Duplicate;
        }
        if sequence < self.next() {
            self.report.out_of_order += 1;
        }
        self.report.delivered += 1;
        let mut range = (sequence, sequence);
        if let Some((first, last)) = before.filter(|(_, last)| last + 1 == sequence) {
            debug_assert!(last < sequence);
            range.0 = first;
        }
        if let Some(last) = sequence.checked_add(1).and_then(|next| self.ranges.remove(&next)) {
            range.1 = last;
        }
        self.ranges.insert(range.0, range.1);
        if self.ranges.len() > MAX_HOLES {
            self.give_up_oldest_hole();
        }
        Seen::New
    }

    fn give_up_oldest_hole(&mut self) {
        if let (Some((first, last)), Some((next, end))) = (self.ranges.pop_first(), self.ranges.pop_first()) {
            self.given_up += next - last - 1;
            self.ranges.insert(first, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn records_round_trip() {
        for len in [24, 25, 31, 32, 64, 1000, 1 << 20] {
            let record = encode(7, 1 << 40, len);
            assert_eq!(decode(&record), Ok(Numbered { sender: 7, sequence: 1 << 40, len }));
        }
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let record = encode(1, 2, 64);
        for at in 0..64 {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {at}");
        }
        assert!(matches!(decode(&record[..63]), Err(CorruptRecord::Length { expected: 64, found: 63 })));
        assert_eq!(decode(&record[..23]), Err(CorruptRecord::Short(23)));
        let torn = [&record[..40], &encode(1, 3, 64)[40..]].concat();
        assert!(matches!(decode(&torn), Err(CorruptRecord::Checksum { .. })));
    }

    #[test]
    fn every_kind_of_trouble_is_counted() {
        let mut checker = Checker::new();
        for (sequence, maybe) in [(0, false), (1, false), (1, true), (0, false), (4, false), (3, false), (9, true)] {
            checker.observe(5, sequence, maybe);
        }
        assert!(checker.record(&[0; 30], false).is_err());
        let report = checker.report(5, 8);
        let expected = SenderReport {
            delivered: 5,
            duplicates_marked: 1,
            duplicates_unmarked: 1,
            lost: 4, // 2, 5, 6 and 7
            out_of_order: 1,
            beyond: 1,
        };
        assert_eq!(report, expected);
        assert!(!report.is_clean());
        assert_eq!(checker.corrupt(), 1);
        assert_eq!(checker.report(6, 3).lost, 3);
        assert_eq!(checker.total([(5, 8), (6, 3)]).lost, 7);
        assert_eq!(checker.total([]).beyond, 5);
    }

    #[test]
    fn memory_is_bounded_and_the_loss_still_counted() {
        let mut checker = Checker::new();
        let records = 2 * MAX_HOLES as u64;
        for sequence in 0..records {
            checker.observe(1, 2 * sequence, false);
        }
        assert!(checker.senders[&1].ranges.len() <= MAX_HOLES);
        assert_eq!(checker.report(1, 2 * records - 1).lost, records - 1);
    }

    #[test]
    fn the_highest_number_is_no_trouble() {
        let mut checker = Checker::new();
        checker.observe(1, u64::MAX, false);
        checker.observe(1, u64::MAX - 1, false);
        assert_eq!(checker.observe(1, u64::MAX, true), Seen::Duplicate);
        assert_eq!(checker.report(1, 0).beyond, 2);
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(deliveries in proptest::collection::vec((0u64..40, any::<bool>()), 0..120), accepted in 0u64..50) {
            let (mut checker, mut model) = (Checker::new(), BTreeSet::new());
            let (mut marked, mut unmarked, mut late, mut top) = (0, 0, 0, None);
            for (sequence, maybe) in deliveries {
                let new = model.insert(sequence);
                prop_assert_eq!(checker.observe(1, sequence, maybe) == Seen::New, new);
                match (new, maybe) {
                    (false, true) => marked += 1,
                    (false, false) => unmarked += 1,
                    (true, _) => late += u64::from(top > Some(sequence)),
                }
                top = top.max(Some(sequence));
            }
            let beyond = model.iter().filter(|sequence| **sequence >= accepted).count() as u64;
            let expected = SenderReport {
                delivered: model.len() as u64,
                duplicates_marked: marked,
                duplicates_unmarked: unmarked,
                lost: (0..accepted).filter(|sequence| !model.contains(sequence)).count() as u64,
                out_of_order: late,
                beyond,
            };
            prop_assert_eq!(checker.report(1, accepted), expected);
        }
    }
}
