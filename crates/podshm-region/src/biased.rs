//! A lock that costs the one thread which uses it two loads and two stores, and no atomic read-modify-write.
//!
//! ```text
//!  open:  UNCLAIMED ──the first thread enters──► its place ──another one enters──►  SHARED
//!                                                     ▲                               │
//!                                                     └── it leaves, seldom so far ───┘
//! ```
//! The owner says `inside = 1`, looks whether the lock still is open to it, and is in. Whoever else wants in takes the mutex,
//! closes the lock to its owner, makes every running thread go through a fence ([`barrier::private`]), and waits until `inside` is 0:
//! the owner has either seen the word or is waited for. Only ever one thread owns a lock, because a former owner that comes late
//! would write `inside` under a new one. After a few visits by others the lock stays a plain mutex; where membarrier(2) is
//! missing it is one from the start.
//!
//! A thread is known by its place, which one that begins may have of one that has ended. It then owns what that one owned, and comes after it.
//!
//! The owner should not stay inside for long; while it waits inside it looks at [`Guard::is_wanted`].

use crate::barrier;
use crate::place::this_place;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const SHARED: u64 = 0;
const UNCLAIMED: u64 = 1;
/// Times that one thread takes the lock from another before it is a plain mutex for good.
const VISITS: u32 = 8;

/// The lock is held further up in this very thread: it was entered from a callback that runs under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this handle is in use further up in this thread; don't use it from within its own callback")]
pub struct Reentered;

/// See the module.
#[derive(Debug)]
pub struct Biased<T> {
    /// Who gets in without the mutex: UNCLAIMED, the owner's place, or SHARED for nobody. Changed under the mutex.
    open: AtomicU64,
    /// 1 while the owner is in by `open`. Written by the owner alone.
    inside: AtomicU32,
    /// Threads that hold the mutex or wait for it.
    wanting: AtomicU32,
    /// Times that others took it from its owner; [`VISITS`] from the start where there are no barriers.
    visits: AtomicU32,
    /// The thread that is in by the mutex.
    holder: AtomicU64,
    /// The owner, once there is one, for good; 0 before. Changed under the mutex.
    owner: AtomicU64,
    mutex: RawMutex,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached through guards only, and there is one at a time: the owner's, with `inside` at 1 and `open` its
// place after that, or one with the mutex, made after `open` was SHARED, a barrier, and `inside` seen at 0.
unsafe impl<T: Send> Sync for Biased<T> {}

impl<T> Biased<T> {
    /// A lock that nobody owns yet. In a process of several threads this may take some ten milliseconds once: see
    /// [`barrier::register_private`].
    pub fn new(value: T) -> Self {
        let lock = Self::plain(value);
        lock.allow_owner();
        lock
    }

    /// A plain mutex until [`Biased::allow_owner`].
    pub fn plain(value: T) -> Self {
        Biased {
            open: AtomicU64::new(SHARED),
            inside: AtomicU32::new(0),
            wanting: AtomicU32::new(0),
            visits: AtomicU32::new(VISITS),
            holder: AtomicU64::new(0),
            owner: AtomicU64::new(0),
            mutex: RawMutex::default(),
            value: UnsafeCell::new(value),
        }
    }

    /// Lets the thread that enters next own a lock that was [`plain`](Biased::plain), if barriers work here. Waits for nobody:
    /// says whether that is settled, which it isn't while somebody is in.
    pub fn allow_owner(&self) -> bool {
        if self.owner.load(Ordering::Relaxed) != 0 || !barrier::register_private() {
            return true;
        }
        if !self.mutex.try_lock() {
            return false;
        }
        self.visits.store(0, Ordering::Relaxed);
        // Release: as in `leave_mutex`. Nobody is in: there is no owner, and the mutex is ours.
        self.open.store(UNCLAIMED, Ordering::Release);
        self.mutex.unlock();
        true
    }

    /// Waits until nobody else is in. A thread that panicked inside has left.
    #[inline(always)]
    pub fn enter(&self) -> Result<Guard<'_, T>, Reentered> {
        let me = this_place();
        if self.open.load(Ordering::Relaxed) == me {
            if self.inside.load(Ordering::Relaxed) != 0 {
                return Err(Reentered);
            }
            self.inside.store(1, Ordering::Relaxed);
            barrier::light(); // pairs with barrier::private in `enter_by_mutex`
            // Acquire: pairs with the release in `leave_mutex`; what the visitor wrote is seen.
            if self.open.load(Ordering::Acquire) == me {
                return Ok(self.guard(false));
            }
            self.inside.store(0, Ordering::Release);
        }
        // What comes back fits a register: a guard that is built in memory on one of two ways costs both of them.
        match self.enter_by_mutex(me, true) {
            Entered::Again => Err(Reentered),
            how => Ok(self.guard(how == Entered::ByMutex)),
        }
    }

    /// [`Biased::enter`] for a thread that comes by rarely: it never owns the lock, and an owner stays one.
    pub fn visit(&self) -> Result<Guard<'_, T>, Reentered> {
        let me = this_place();
        if self.open.load(Ordering::Relaxed) == me {
            return self.enter();
        }
        match self.enter_by_mutex(me, false) {
            Entered::Again => Err(Reentered),
            how => Ok(self.guard(how == Entered::ByMutex)),
        }
    }

    #[inline(always)]
    fn guard(&self, by_mutex: bool) -> Guard<'_, T> {
        Guard { lock: self, by_mutex, this_thread_only: PhantomData }
    }

    #[cold]
    fn enter_by_mutex(&self, me: u64, may_own: bool) -> Entered {
        if self.holder.load(Ordering::Relaxed) == me {
            return Entered::Again;
        }
        self.wanting.fetch_add(1, Ordering::Relaxed);
        self.mutex.lock();
        let open = self.open.load(Ordering::Relaxed);
        if open == UNCLAIMED && may_own {
            self.owner.store(me, Ordering::Relaxed);
            self.inside.store(1, Ordering::Relaxed);
            self.open.store(me, Ordering::Relaxed);
            self.wanting.fetch_sub(1, Ordering::Relaxed);
            self.mutex.unlock();
            return Entered::AsOwner;
        }
        if open != SHARED {
            self.open.store(SHARED, Ordering::Relaxed);
            barrier::private(); // pairs with barrier::light in `enter`
            let mut looks = 0u32;
            // Acquire: pairs with the release with which the owner leaves.
            while self.inside.load(Ordering::Acquire) != 0 {
                looks += 1;
                if looks < 200 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
            if may_own {
                self.visits.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.holder.store(me, Ordering::Relaxed);
        Entered::ByMutex
    }

    #[cold]
    fn leave_mutex(&self) {
        self.holder.store(0, Ordering::Relaxed);
        if self.visits.load(Ordering::Relaxed) < VISITS {
            let owner = self.owner.load(Ordering::Relaxed);
            self.open.store(if owner == 0 { UNCLAIMED } else { owner }, Ordering::Release);
        }
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        self.mutex.unlock();
    }
}

/// How a thread got in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entered {
    AsOwner,
    ByMutex,
    /// It did not: it is in already.
    Again,
}

/// A mutex without a guard of its own: 0 free, 1 held, 2 held and waited for.
#[derive(Debug, Default)]
struct RawMutex(AtomicU32);

impl RawMutex {
    fn try_lock(&self) -> bool {
        // Acquire: pairs with the release in `unlock`.
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn lock(&self) {
        if self.try_lock() {
            return;
        }
        for _ in 0..100 {
            std::hint::spin_loop();
            if self.0.load(Ordering::Relaxed) == 0 && self.try_lock() {
                return;
            }
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            crate::futex::wait(self.0.as_ptr(), 2, Duration::from_secs(1));
        }
    }

    fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            crate::futex::wake(self.0.as_ptr());
        }
    }
}

/// The way to the value. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Biased<T>,
    by_mutex: bool,
    /// It is left by the thread that entered.
    this_thread_only: PhantomData<*const ()>,
}

impl<T> Guard<'_, T> {
    /// Whether somebody else waits to come in.
    #[inline(always)]
    pub fn is_wanted(&self) -> bool {
        if self.by_mutex {
            self.lock.wanting.load(Ordering::Relaxed) > 1
        } else {
            self.lock.open.load(Ordering::Relaxed) == SHARED
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one; see the impl of Sync.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one, and it is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.by_mutex {
            self.lock.leave_mutex();
        } else {
            // Release: pairs with the acquire of whoever waits in `enter_by_mutex`.
            self.lock.inside.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Two words that are equal whenever nobody is in between; plain memory, so that a second guard would be seen.
    fn hammer(visitors: usize, rounds: u64, visit: bool) {
        let lock = Arc::new(Biased::new((0u64, 0u64)));
        let threads: Vec<_> = (0..=visitors)
            .map(|n| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    // The first thread is in and out all the time, the others come by.
                    let rounds = if n == 0 { rounds } else { rounds / 30 };
                    for _ in 0..rounds {
                        let mut both = if n > 0 && visit { lock.visit() } else { lock.enter() }.unwrap();
                        assert_eq!(both.0, both.1);
                        both.0 += 1;
                        std::hint::black_box(&mut *both);
                        both.1 += 1;
                    }
                    rounds
                })
            })
            .collect();
        let total: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
        let both = lock.enter().unwrap();
        assert_eq!(*both, (total, total));
    }

    #[test]
    fn a_plain_lock_gets_its_owner_while_others_are_at_it() {
        let lock = Biased::plain((0u64, 0u64));
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..50_000 {
                        let mut both = lock.enter().unwrap();
                        assert_eq!(both.0, both.1);
                        both.0 += 1;
                        std::hint::black_box(&mut *both);
                        both.1 += 1;
                    }
                });
            }
            s.spawn(|| while !lock.allow_owner() {});
        });
        assert_eq!(*lock.enter().unwrap(), (150_000, 150_000));
        let alone = Biased::plain(());
        let guard = alone.enter().unwrap();
        assert_eq!((alone.owner.load(Ordering::Relaxed), alone.allow_owner()), (0, !barrier::register_private()));
        drop(guard);
        assert!(alone.allow_owner());
        drop(alone.enter().unwrap());
        assert_eq!(alone.owner.load(Ordering::Relaxed) != 0, barrier::register_private());
    }

    #[test]
    fn nobody_is_in_with_another() {
        hammer(0, 100_000, false);
        hammer(3, 100_000, false);
        // Visits leave the owner its place, so every round takes the lock from it anew.
        hammer(2, 300_000, true);
        for _ in 0..300 {
            hammer(1, 300, false);
        }
    }

    #[test]
    fn entering_again_from_within_is_refused() {
        let lock = Biased::new(0);
        let owner = lock.enter().unwrap();
        assert_eq!(lock.enter().err(), Some(Reentered));
        drop(owner);
        std::thread::scope(|s| s.spawn(|| *lock.visit().unwrap() += 1).join().unwrap());
        let visitor = lock.visit().unwrap();
        assert_eq!(lock.enter().err(), Some(Reentered));
        drop(visitor);
        assert!(lock.enter().is_ok());
    }

    #[test]
    fn an_owner_sees_that_somebody_waits() {
        let lock = Arc::new(Biased::new(()));
        let guard = lock.enter().unwrap();
        assert!(!guard.is_wanted());
        let other = Arc::clone(&lock);
        let thread = std::thread::spawn(move || drop(other.enter().unwrap()));
        while !guard.is_wanted() {
            std::thread::yield_now();
        }
        drop(guard);
        thread.join().unwrap();
    }

    #[test]
    fn a_panic_inside_lets_the_next_one_in() {
        let lock = Arc::new(Biased::new(1));
        for _ in 0..2 * VISITS {
            let other = Arc::clone(&lock);
            let panicked = std::thread::spawn(move || {
                let _guard = other.enter().unwrap();
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(panicked.join().is_err());
            assert_eq!(*lock.enter().unwrap(), 1);
        }
    }

    /// Threads that come one after another have the same place, as a rule.
    #[test]
    fn who_has_a_former_threads_place_comes_after_it() {
        let lock = Biased::new((0u64, 0u64));
        let one_after_another = |work: &(dyn Fn() + Sync)| {
            std::thread::scope(|s| {
                s.spawn(|| {
                    work();
                    this_place()
                })
                .join()
                .unwrap()
            })
        };
        let count = || {
            let mut both = lock.enter().unwrap();
            assert_eq!(both.0, both.1);
            both.0 += 1;
            std::hint::black_box(&mut *both);
            both.1 += 1;
        };
        for _ in 0..2000 {
            one_after_another(&count);
        }
        assert_eq!(*lock.enter().unwrap(), (2000, 2000));
        // What is never left is in use for the next one, too, rather than open to it.
        let lock = Biased::new(());
        let left_open = one_after_another(&|| std::mem::forget(lock.enter().unwrap()));
        let after = || {
            if this_place() == left_open {
                assert_eq!(lock.enter().err(), Some(Reentered));
            }
        };
        one_after_another(&after);
    }
}
