//! A handler's functions, and the answers that they are lent.

use super::handle::Handle;
use super::pointers;
use crate::answer::podshm_answer;
use crate::handler::{podshm_handler, podshm_record, podshm_request};
use crate::last::Fault;
use podshm::Answer;
use podshm::this_number;
use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;

/// A pointer to a table of functions.
#[repr(transparent)]
pub struct Table(*const podshm_handler);

impl Table {
    /// A copy of it: of what its author knew, by its `size`; what came later is null.
    pub(crate) fn copy(&self) -> Result<podshm_handler, Fault> {
        const LEAST: usize = offset_of!(podshm_handler, part);
        pointers::check(self.0, LEAST, "the handler")?;
        // SAFETY: **bytes**: `size` is the first member of every release's table; just checked: not null, aligned.
        let size = unsafe { (&raw const (*self.0).size).read() };
        if !(LEAST..=size_of::<podshm_handler>() * 16).contains(&size) || !size.is_multiple_of(align_of::<usize>()) {
            let why = "its size is not that of any release: set it to sizeof(podshm_handler)";
            return Err(Fault::Argument { what: "the handler", address: self.0.addr(), bytes: size, why });
        }
        let mut copy = podshm_handler { size, user: ptr::null_mut(), record: None, call: None, part: None };
        let known = size.min(size_of::<podshm_handler>());
        // SAFETY: **bytes**: `size` of them can be read, and no more than the copy has are written. Its functions are nullable, and
        // any word is a user pointer.
        unsafe { ptr::copy_nonoverlapping(self.0.cast::<u8>(), (&raw mut copy).cast::<u8>(), known) };
        Ok(copy)
    }
}

impl podshm_handler {
    #[inline(always)]
    pub(crate) fn give_record(&self, record: &podshm_record) {
        if let Some(function) = self.record {
            // SAFETY: **callback**; what the record points to lives as long as it runs.
            unsafe { function(self.user, record) };
        }
    }

    #[inline(always)]
    pub(crate) fn give_request(&self, request: &podshm_request, answer: &mut Answer<'_>) {
        if let Some(function) = self.call {
            // SAFETY: **callback**; what the request points to, and the answer, live as long as it runs.
            offer(answer, |answer| unsafe { function(self.user, request, answer) });
        }
    }

    pub(crate) fn give_part(&self, request: &podshm_request, offset: usize) -> bool {
        // SAFETY: **callback**; what the request points to lives as long as it runs.
        self.part.is_some_and(|function| unsafe { function(self.user, request, offset) })
    }
}

/// An answer that a callback is lent.
pub(crate) struct Offered {
    thread: u64,
    /// Null while it is in use. Touched by `thread` only.
    answer: Cell<*mut Answer<'static>>,
}

// SAFETY: other threads read `thread`, which never changes, and go no further.
unsafe impl Sync for Offered {}

impl Offered {
    /// Uses it. For every lifetime, so that no other answer can take its place.
    #[inline(always)]
    pub(crate) fn with<R>(&self, work: impl for<'a> FnOnce(&mut Answer<'a>) -> R) -> Result<R, Fault> {
        if self.thread != this_number() {
            return Err(Fault::Thread { what: "answer" });
        }
        let answer = self.answer.replace(ptr::null_mut());
        if answer.is_null() {
            return Err(Fault::Busy { what: "answer" });
        }
        // SAFETY: `offer` has lent it for as long as this handle is alive, and nobody else has it: it was taken out of the cell.
        let result = work(unsafe { &mut *answer });
        self.answer.set(answer);
        Ok(result)
    }
}

/// Lends `answer` to C while `show` runs.
#[inline(always)]
fn offer(answer: &mut Answer<'_>, show: impl FnOnce(*mut podshm_answer)) {
    /// Also where `show` panics.
    struct Ends(Handle<podshm_answer>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.end_here();
        }
    }
    let offered = Offered { thread: this_number(), answer: Cell::new((&raw mut *answer).cast()) };
    let mut handle = Ends(Handle::new(podshm_answer(offered)));
    show(handle.0.pointer());
}
