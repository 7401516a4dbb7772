//! Holding threads of the test's own process at a step: clients, agents and the broker that are embedded in it.

use crate::PATIENCE;
use podshm::steps::{Step, set_hook};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    closed: BTreeMap<Step, u64>,
    passed: BTreeMap<Step, u64>,
    waiting: BTreeMap<Step, u64>,
}

#[derive(Debug, Default)]
struct Gates {
    state: Mutex<State>,
    changed: Condvar,
}

static GATES: Gates = Gates {
    state: Mutex::new(State { closed: BTreeMap::new(), passed: BTreeMap::new(), waiting: BTreeMap::new() }),
    changed: Condvar::new(),
};

fn lock() -> MutexGuard<'static, State> {
    GATES.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pass(step: Step) {
    let mut state = lock();
    *state.passed.entry(step).or_default() += 1;
    if state.closed.contains_key(&step) {
        *state.waiting.entry(step).or_default() += 1;
        GATES.changed.notify_all();
        while state.closed.contains_key(&step) {
            state = GATES.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.waiting.entry(step).or_default() -= 1;
    }
}

/// How often every step was passed in this process since the first call.
pub fn passed() -> BTreeMap<Step, u64> {
    set_hook(pass);
    lock().passed.clone()
}

/// Every thread of this process that comes to the step waits there. Dropping the gate opens it.
#[derive(Debug)]
pub struct Gate {
    step: Step,
}

impl Gate {
    /// Closes a step.
    pub fn close(step: Step) -> Gate {
        set_hook(pass);
        *lock().closed.entry(step).or_default() += 1;
        Gate { step }
    }

    /// Waits until somebody waits there.
    pub fn await_arrival(&self) {
        let arrived = |state: &mut State| state.waiting.get(&self.step).is_none_or(|n| *n == 0);
        let (state, timeout) =
            GATES.changed.wait_timeout_while(lock(), PATIENCE, arrived).unwrap_or_else(PoisonError::into_inner);
        drop(state);
        assert!(!timeout.timed_out(), "nobody comes to {}", self.step.name());
    }

    /// Waits a moment for somebody to come; says whether there is.
    pub fn arrives_within(&self, time: Duration) -> bool {
        let arrived = |state: &mut State| state.waiting.get(&self.step).is_none_or(|n| *n == 0);
        let waited = GATES.changed.wait_timeout_while(lock(), time, arrived);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let mut state = lock();
        if let Some(n) = state.closed.get_mut(&self.step) {
            *n -= 1;
            if *n == 0 {
                state.closed.remove(&self.step);
            }
        }
        GATES.changed.notify_all();
    }
}
