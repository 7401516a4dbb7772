//! What the algorithms need of shared memory: words by atomic access, bytes by copy.

use crate::sync::{Ordering, fence};

/// Memory that somebody else may be writing.
///
/// Offsets are bytes from the window's start; words are naturally aligned. Callers check offsets against a trusted
/// geometry first: an offset outside the window is a bug of ours and panics, it is never reached from a peer's bytes.
pub trait Load {
    /// Bytes in the window.
    fn size(&self) -> usize;
    /// Loads the word at `offset` once.
    fn load(&self, offset: usize, order: Ordering) -> u64;
    /// Copies `dst.len()` bytes out. The bytes may be torn if their writer is at work: check afterwards, with an
    /// acquire fence between, whatever says that they held still.
    fn copy_out(&self, offset: usize, dst: &mut [u8]);
    /// Copies `dst.len()` bytes out while the word at `word_at` is `expected`: says whether it was that before and after. False, too, for
    /// offsets outside the window: this does not panic.
    #[inline(always)]
    fn copy_while(&self, word_at: usize, expected: u64, offset: usize, dst: &mut [u8]) -> bool {
        let inside = |at: usize, len: usize| len <= self.size() && at <= self.size() - len;
        if !(word_at.is_multiple_of(8) && inside(word_at, 8) && inside(offset, dst.len())) {
            return false;
        }
        if self.load(word_at, Ordering::Acquire) != expected {
            return false;
        }
        self.copy_out(offset, dst);
        fence(Ordering::Acquire);
        self.load(word_at, Ordering::Relaxed) == expected
    }
    /// Asks for the cache line at `offset` ahead of its use.
    #[inline(always)]
    fn prefetch(&self, _offset: usize) {}
}

/// Memory of which this process is the only writer.
pub trait Store: Load {
    /// Stores a word.
    fn store(&self, offset: usize, value: u64, order: Ordering);
    /// Copies `src` in.
    fn copy_in(&mut self, offset: usize, src: &[u8]);
    /// Asks for the cache line at `offset` ahead of writing to it. An offset outside the window is ignored.
    #[inline(always)]
    fn prefetch_write(&self, _offset: usize) {}
    /// Lets `fill` write `len` bytes in place. The bytes are this process's own until it publishes them.
    fn fill<R>(&mut self, offset: usize, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}
