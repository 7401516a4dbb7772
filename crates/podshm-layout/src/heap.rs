//! [`Load`] and [`Store`] over memory of this process: for property tests, fuzzing and loom models.

use crate::mem::{Load, Store};
use crate::sync::Ordering;
use alloc::{sync::Arc, vec::Vec};

#[cfg(not(loom))]
use core::sync::atomic::AtomicU64;
#[cfg(loom)]
use loom::sync::atomic::AtomicU64;

/// A piece of ordinary memory that behaves as a region does; clones share it.
#[derive(Clone, Debug)]
pub struct Heap {
    words: Arc<Vec<AtomicU64>>,
}

impl Heap {
    /// Zeroed memory of `size` bytes, rounded up to whole words.
    pub fn new(size: usize) -> Self {
        Heap { words: Arc::new((0..size.div_ceil(8)).map(|_| AtomicU64::new(0)).collect()) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "word access at unaligned offset {offset}");
        &self.words[offset / 8]
    }
}

impl Load for Heap {
    fn size(&self) -> usize {
        self.words.len() * 8
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }

    fn copy_out(&self, offset: usize, dst: &mut [u8]) {
        let mut done = 0;
        while done < dst.len() {
            let at = offset + done;
            let bytes = self.words[at / 8].load(Ordering::Relaxed).to_le_bytes();
            let n = (8 - at % 8).min(dst.len() - done);
            dst[done..done + n].copy_from_slice(&bytes[at % 8..at % 8 + n]);
            done += n;
        }
    }
}

impl Store for Heap {
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }

    fn copy_in(&mut self, offset: usize, src: &[u8]) {
        let mut done = 0;
        while done < src.len() {
            let at = offset + done;
            let n = (8 - at % 8).min(src.len() - done);
            let mut bytes = [0; 8];
            if n < 8 {
                bytes = self.words[at / 8].load(Ordering::Relaxed).to_le_bytes();
            }
            bytes[at % 8..at % 8 + n].copy_from_slice(&src[done..done + n]);
            self.words[at / 8].store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            done += n;
        }
    }

    fn fill<R>(&mut self, offset: usize, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut bytes = alloc::vec![0; len];
        let result = fill(&mut bytes);
        self.copy_in(offset, &bytes);
        result
    }
}
