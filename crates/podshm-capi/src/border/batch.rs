//! A batch that keeps its queue, and knows its thread.

use super::bound::Leaves;
use crate::last::Fault;
use podshm::QueueSender;
use podshm::client::QueueBatch;
use podshm::this_number;
use std::cell::{Cell, UnsafeCell};

/// An open batch and the queue that it borrows. It holds the queue's lock, which the thread that took it must leave.
pub(crate) struct OwnedBatch {
    thread: u64,
    /// Whether it runs a callback of C's. Touched by `thread` only.
    is_used: Cell<bool>,
    /// Borrows from `queue`.
    batch: *mut UnsafeCell<QueueBatch<'static>>,
    queue: *mut QueueSender,
}

// SAFETY: `batch` and `queue` are touched by the thread that opened them only: `with` and `drop` compare it.
unsafe impl Send for OwnedBatch {}
// SAFETY: as for Send.
unsafe impl Sync for OwnedBatch {}

impl OwnedBatch {
    pub(crate) fn open(queue: &QueueSender) -> Result<Self, podshm::Error> {
        let queue = Box::into_raw(Box::new(queue.clone()));
        // SAFETY: just made, and freed in `drop` after the batch only; no other reference to it is ever made.
        match unsafe { &*queue }.batch() {
            Ok(batch) => {
                let batch = Box::into_raw(Box::new(UnsafeCell::new(batch)));
                Ok(OwnedBatch { thread: this_number(), is_used: Cell::new(false), batch, queue })
            }
            Err(error) => {
                // SAFETY: made above by Box::into_raw; the batch that would borrow from it is not there.
                drop(unsafe { Box::from_raw(queue) });
                Err(error)
            }
        }
    }

    /// Whether this is the thread that may use it.
    fn is_here(&self) -> Result<(), Fault> {
        if self.thread == this_number() { Ok(()) } else { Err(Fault::Thread { what: "batch" }) }
    }

    /// Whether this thread may use it now: not from within a callback of its own.
    #[inline(always)]
    pub(crate) fn is_free(&self) -> Result<(), Fault> {
        self.is_here()?;
        if self.is_used.get() { Err(Fault::Busy { what: "batch" }) } else { Ok(()) }
    }

    /// Uses it. For every lifetime, so that no other batch can take its place.
    #[inline(always)]
    pub(crate) fn with<R>(&self, work: impl for<'a> FnOnce(&mut QueueBatch<'a>) -> R) -> Result<R, Fault> {
        self.is_free()?;
        self.is_used.set(true);
        let _leaves = Leaves(&self.is_used);
        // SAFETY: alive until `drop`; this thread alone comes here, and once at a time: `is_used` was false.
        Ok(work(unsafe { &mut *(*self.batch).get() }))
    }
}

impl Drop for OwnedBatch {
    fn drop(&mut self) {
        if self.is_here().is_err() {
            return; // left open: whoever frees it has asked `is_here` before
        }
        // SAFETY: both made by Box::into_raw in `open` and dropped here once, the borrower first.
        drop(unsafe { Box::from_raw(self.batch) });
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.queue) });
    }
}
