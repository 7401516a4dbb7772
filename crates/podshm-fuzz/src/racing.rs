//! Memory whose writer is at work: between any two loads of the reader a word may change.

use podshm_layout::heap::Heap;
use podshm_layout::mem::{Load, Store};
use podshm_layout::sync::Ordering;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// What the writer will do: after so many more loads, where, what.
pub(crate) type Stroke = (u8, usize, u64);

/// A reader's view of `heap` that counts what it reads; clones share everything.
#[derive(Clone)]
pub(crate) struct Racing {
    pub(crate) heap: Heap,
    script: Rc<RefCell<VecDeque<Stroke>>>,
    loads: Rc<Cell<u64>>,
    copied: Rc<Cell<(usize, usize)>>,
}

impl Racing {
    pub(crate) fn new(heap: Heap) -> Self {
        Racing { heap, script: Rc::default(), loads: Rc::default(), copied: Rc::default() }
    }

    /// The writer will do this, after everything that was planned before.
    pub(crate) fn plan(&self, stroke: Stroke) {
        self.script.borrow_mut().push_back(stroke);
    }

    /// What the writer has not done yet.
    pub(crate) fn planned(&self) -> usize {
        self.script.borrow().len()
    }

    /// Words loaded since the last time that somebody asked.
    pub(crate) fn take_loads(&self) -> u64 {
        self.loads.take()
    }

    /// Offset and length of the last copy.
    pub(crate) fn last_copy(&self) -> (usize, usize) {
        self.copied.get()
    }

    fn stroke(&self) {
        let mut script = self.script.borrow_mut();
        if let Some((after, offset, word)) = script.front_mut() {
            if *after > 0 {
                *after -= 1;
                return;
            }
            self.heap.store(*offset, *word, Ordering::Relaxed);
            script.pop_front();
        }
    }
}

impl Load for Racing {
    fn size(&self) -> usize {
        self.heap.size()
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        let word = self.heap.load(offset, order);
        self.loads.set(self.loads.get() + 1);
        self.stroke();
        word
    }

    fn copy_out(&self, offset: usize, dst: &mut [u8]) {
        self.copied.set((offset, dst.len()));
        // Torn in the middle, where the writer is about to write.
        let (first, second) = dst.split_at_mut(dst.len() / 2);
        self.heap.copy_out(offset, first);
        self.stroke();
        self.heap.copy_out(offset + first.len(), second);
        self.stroke();
    }
}
