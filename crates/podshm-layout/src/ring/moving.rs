//! A ring that goes over into another region, with everything that is in it and at the same positions.
//!
//! ```text
//!  producer: copies the ring's bytes ── says so (its bit in MOVED, release) ─► goes on in the new region, where the next record
//!  consumer: reads on in the old one ── sees it (acquire) ───────────────────► goes on there, too        has the next position
//! ```
//! Since positions stay there is nothing to drain and nothing to repeat: a consumer, or its successor, goes on wherever it is.

use super::{Consumer, Producer};
use crate::mem::{Load, Store};

const CHUNK: usize = 4096;

impl<W: Store> Producer<W> {
    /// Copies everything to `to`, fresh memory of the same size that nobody reads yet, and goes on there. Returns the old memory.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn move_to(&mut self, mut to: W) -> W {
        assert_eq!(to.size(), self.mem.size(), "a ring moves to a window of its own size");
        let mut bytes = [0; CHUNK];
        for offset in (0..to.size()).step_by(CHUNK) {
            let chunk = &mut bytes[..CHUNK.min(self.mem.size() - offset)];
            self.mem.copy_out(offset, chunk);
            to.copy_in(offset, chunk);
        }
        core::mem::replace(&mut self.mem, to)
    }
}

impl<R: Load> Consumer<R> {
    /// Goes on in `to`, where the producer has copied everything.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn move_to(&mut self, to: R) {
        assert_eq!(to.size(), self.mem.size(), "a ring moves to a window of its own size");
        self.mem = to;
    }
}
