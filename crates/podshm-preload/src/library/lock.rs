//! A futex lock whose holder takes no signals: a handler that calls `shmat` would wait for itself.

use super::sys::{nr, raw};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// A value behind a lock.
#[derive(Debug)]
pub struct Lock<T> {
    /// 0 free, 1 held, 2 held and waited for.
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard alone, and there is one at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The signals that were blocked before.
#[derive(Clone, Copy, Debug)]
pub struct Mask(u64);

/// Blocks every signal of this thread.
pub fn block_signals() -> Mask {
    let (all, mut before) = (u64::MAX, 0u64);
    let (new, old) = (&raw const all as usize, &raw mut before as usize);
    const SETMASK: usize = 2;
    // SAFETY: the kernel reads and writes one 8-byte signal set each.
    let _ = unsafe { raw(nr::RT_SIGPROCMASK, [SETMASK, new, old, 8, 0, 0]) };
    Mask(before)
}

/// Puts the mask back.
pub fn restore_signals(mask: Mask) {
    const SETMASK: usize = 2;
    // SAFETY: the kernel reads one 8-byte signal set.
    let _ = unsafe { raw(nr::RT_SIGPROCMASK, [SETMASK, &raw const mask.0 as usize, 0, 8, 0, 0]) };
}

impl<T> Lock<T> {
    /// A free one.
    pub const fn new(value: T) -> Self {
        Lock { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for it, with signals blocked until the guard goes.
    pub fn lock(&self) -> Guard<'_, T> {
        let mask = block_signals();
        self.acquire();
        Guard { lock: self, mask }
    }

    /// Waits for it; [`release`](Lock::release) ends it. Signals are the caller's business.
    pub fn acquire(&self) {
        // Acquire pairs with the Release in `release`: what the last holder wrote is seen.
        if self.state.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return;
        }
        while self.state.swap(2, Ordering::Acquire) != 0 {
            self.futex(0, 2); // FUTEX_WAIT
        }
    }

    /// Lets go.
    ///
    /// # Safety
    /// The caller has acquired it, and no reference to the value is left.
    pub unsafe fn release(&self) {
        if self.state.swap(0, Ordering::Release) == 2 {
            self.futex(1, 1); // FUTEX_WAKE
        }
    }

    /// The value of a lock that the caller has acquired.
    ///
    /// # Safety
    /// The lock is held by the caller, and this is the only reference.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn held(&self) -> &mut T {
        // SAFETY: passed on to the caller.
        unsafe { &mut *self.value.get() }
    }

    fn futex(&self, operation: usize, value: usize) {
        const PRIVATE: usize = 128;
        // SAFETY: the word outlives the call; FUTEX_WAIT has no timeout and FUTEX_WAKE no pointer.
        let _ = unsafe { raw(nr::FUTEX, [self.state.as_ptr() as usize, operation | PRIVATE, value, 0, 0, 0]) };
    }
}

/// The lock, held.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
    mask: Mask,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the holder.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the holder, and borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this guard acquired it, and its references end with it.
        unsafe { self.lock.release() };
        restore_signals(self.mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let lock = Lock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 80_000);
    }
}
