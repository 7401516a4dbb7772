//! Threads that wait for another agent to come.

use super::Shared;
use crate::stop;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Where they sleep. No futex of an agent's memory: there is none to wake them.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    looking: Mutex<()>,
    came: Condvar,
}

impl Arrivals {
    /// For the library's thread, once handles can see the change.
    pub(super) fn announce(&self) {
        // Whoever has looked before it was seen sleeps by now.
        drop(self.look());
        self.came.notify_all();
    }

    fn look(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Sleeps unless the link has changed since its version was `seen`: until it does, `until` is reached, or somebody may want the wait to
    /// stop. May return earlier.
    pub(super) fn await_agent(&self, seen: u64, until: Instant) {
        let looking = self.arrivals.look();
        // Acquire: pairs with the release in the library thread's swap.
        if self.version.load(Ordering::Acquire) == seen {
            let left = stop::slice(until.saturating_duration_since(Instant::now()));
            drop(self.arrivals.came.wait_timeout(looking, left));
        }
    }
}
