//! A consumer's published cursors for one ring: one cache line in the consumer's own region.
//!
//! ```text
//!  +0 acked   every record before this position was handled; the space is the producer's again
//!  +8 claim   records in [acked, claim) may have been handled already: a batch is in hand
//!  +16 closed position + 1 once the consumer has closed here for good (hand-over); 0 before
//!  +24 start  where this consumer started: every record before it is a predecessor's affair; 0 before it has started
//!  +32 of     which incarnation of the ring the cursors are of: responses come from another ring after a take-over
//! ```

use crate::mem::{Load, Store};
use crate::sync::Ordering;

/// No ring lives long enough to pass this: 29 years at 10 GB/s.
const MOST_POSITION: u64 = u64::MAX / 2;

/// What a consumer (or its successor, or the producer) reads of a cursor line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursors {
    /// Every record before this position has been handled.
    pub acked: u64,
    /// Records in `[acked, claim)` may have been handled.
    pub claim: u64,
    /// Where the consumer closed for good.
    pub closed: Option<u64>,
}

impl Cursors {
    /// The first words of a line of a consumer that has started and stands here, for a page that nobody writes any more.
    pub fn words(self) -> [u64; 4] {
        let closed = self.closed.map_or(0, |at| at.saturating_add(1));
        [self.acked, self.claim, closed, self.acked.max(1)]
    }
}

/// The place of a cursor line in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorLine {
    offset: usize,
}

impl CursorLine {
    /// The line at `offset`, which is a multiple of the cache line.
    pub const fn at(offset: usize) -> Self {
        CursorLine { offset }
    }

    /// Sets the line up for a consumer that starts at `position`.
    pub fn reset(self, mem: &impl Store, position: u64) {
        self.inherit(mem, position, position);
    }

    /// [`CursorLine::reset`] for the successor of a consumer that died: records up to `claim` may have been handled already, and if this
    /// one dies too, its own successor must know.
    pub fn inherit(self, mem: &impl Store, position: u64, claim: u64) {
        mem.store(self.offset + 16, 0, Ordering::Relaxed);
        mem.store(self.offset + 8, claim.max(position), Ordering::Relaxed);
        mem.store(self.offset + 24, position, Ordering::Relaxed);
        mem.store(self.offset, position, Ordering::Release);
    }

    /// [`CursorLine::reset`] for a ring of which there are incarnations: the producer takes the cursors for another one's until
    /// it sees its own number.
    pub fn reset_for(self, mem: &impl Store, incarnation: u64, position: u64) {
        mem.store(self.offset + 32, 0, Ordering::Release);
        self.reset(mem, position);
        mem.store(self.offset + 32, incarnation, Ordering::Release);
    }

    /// Whose cursors these are.
    pub fn incarnation(self, mem: &impl Load) -> u64 {
        mem.load(self.offset + 32, Ordering::Acquire)
    }

    /// Where the consumer started; `None` before it has.
    pub fn started(self, mem: &impl Load) -> Option<u64> {
        Some(mem.load(self.offset + 24, Ordering::Acquire)).filter(|start| *start != 0)
    }

    /// Says that records up to `claim` may be handled from now on. Program order is enough: a killed process's stores are
    /// all kept up to the instruction that it died at, and the successor reads after the kernel reported the death.
    #[inline]
    pub fn claim(self, mem: &impl Store, claim: u64) {
        mem.store(self.offset + 8, claim, Ordering::Release);
    }

    /// Gives everything before `position` back to the producer. Release: pairs with the producer's acquire load in
    /// [`CursorLine::acked`], so that the bytes were read before they are overwritten.
    #[inline]
    pub fn acknowledge(self, mem: &impl Store, position: u64) {
        mem.store(self.offset, position, Ordering::Release);
    }

    /// Closes for good at `position`; records from there up to `claim` may have been handled by somebody before.
    pub fn close(self, mem: &impl Store, position: u64, claim: u64) {
        mem.store(self.offset + 8, position.max(claim), Ordering::Relaxed);
        mem.store(self.offset, position, Ordering::Release);
        mem.store(self.offset + 16, position.wrapping_add(1), Ordering::Release);
    }

    /// The producer's view: what it may overwrite.
    #[inline]
    pub fn acked(self, mem: &impl Load) -> u64 {
        mem.load(self.offset, Ordering::Acquire)
    }

    /// A successor's view: everything, each word once. A predecessor may have lied: whatever it wrote, the positions are such as
    /// can be reckoned with.
    pub fn read(self, mem: &impl Load) -> Cursors {
        let position = |word: u64| word.min(MOST_POSITION) & !7;
        let closed = mem.load(self.offset + 16, Ordering::Acquire);
        let acked = position(mem.load(self.offset, Ordering::Acquire));
        let claim = position(mem.load(self.offset + 8, Ordering::Acquire));
        Cursors { acked, claim, closed: closed.checked_sub(1).map(position) }
    }
}
