//! Handles for one thread: which costs no lock, and is an error in any other.

use crate::last::Fault;
use podshm::{Key, this_place};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

/// A value that belongs to the thread which uses it first.
pub(crate) struct Bound<T> {
    /// The place of its thread; 0 as long as nobody has used it.
    owner: AtomicU64,
    /// Whether its owner is at it. Nobody else looks.
    is_used: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` and `is_used` are reached by the one thread that has put its place into `owner`, and by the drop of all of it. A later thread
// with the same place is its successor: libc hands the block on under a lock, after the former thread's last word.
unsafe impl<T: Send> Sync for Bound<T> {}

impl<T> Bound<T> {
    pub(crate) fn new(value: T) -> Self {
        Bound { owner: AtomicU64::new(0), is_used: Cell::new(false), value: UnsafeCell::new(value) }
    }

    /// Lets this thread use it, which owns it from now on.
    #[inline(always)]
    pub(crate) fn with<R>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut T) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        let me = this_place();
        // Relaxed: a thread's own place is there once it has put it there itself; nothing else goes by it.
        if self.owner.load(Ordering::Relaxed) != me {
            self.own(what, me)?;
        }
        if self.is_used.replace(true) {
            return Err(Fault::Busy { what });
        }
        let _leaves = Leaves(&self.is_used);
        // SAFETY: this thread owns it, and is at it once: `is_used` was false.
        work(unsafe { &mut *self.value.get() })
    }

    #[cold]
    fn own(&self, what: &'static str, me: u64) -> Result<(), Fault> {
        // Acquire: pairs with C's own passing on of a handle that nobody has used yet.
        match self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Fault::Thread { what }),
        }
    }
}

impl Bound<Key> {
    /// The value of a key of this thread's, in the common case: [`Key::get_unchanged`]. Not by a closure: that would be a call, with registers to
    /// save around it.
    #[inline(always)]
    pub(crate) fn get_unchanged(&self, buffer: &mut [u8]) -> Option<usize> {
        // Relaxed: as in `with`.
        if self.owner.load(Ordering::Relaxed) != this_place() || self.is_used.replace(true) {
            return None;
        }
        // A signal's handler that comes in between and looks the same key up finds it in use, as in `with`: it must not replace what is
        // read here. The fences are for the compiler, which sees nobody else who could look.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this thread owns it, and is at it once: `is_used` was false.
        let found = unsafe { &*self.value.get() }.get_unchanged(buffer);
        compiler_fence(Ordering::SeqCst);
        // Not by a guard: nothing panics in between.
        self.is_used.set(false);
        found
    }
}

/// Also where the work panics.
pub(super) struct Leaves<'a>(pub(super) &'a Cell<bool>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::podshm_result;

    #[test]
    fn another_thread_and_a_second_use_are_refused() {
        let bound = Bound::new(1);
        let add = |n: &mut i32| {
            *n += 1;
            Ok(*n)
        };
        assert_eq!(bound.with("a key", add).unwrap(), 2);
        let other = std::thread::scope(|s| s.spawn(|| bound.with("a key", add).unwrap_err()).join().unwrap());
        assert_eq!(other.result(), podshm_result::PODSHM_WRONG_THREAD);
        let within = bound.with("a key", |_| Ok(bound.with("a key", add).unwrap_err())).unwrap();
        assert_eq!(within.result(), podshm_result::PODSHM_BUSY);
        assert_eq!(bound.with("a key", add).unwrap(), 3, "after both");
    }
}
