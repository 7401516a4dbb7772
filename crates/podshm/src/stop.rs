//! Waits that end when somebody asks for it: for languages that hear a signal between two waits only.
//!
//! ```text
//!   unless(asked, || caller.call(…))      what waits in there asks every 50 ms; a yes ends it with Error::Cancelled
//! ```

use crate::error::Error;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Between two questions of one wait.
const EACH: Duration = Duration::from_millis(50);

#[derive(Clone, Copy)]
struct Asking {
    asked: fn() -> bool,
    /// When to ask next; none before the first wait.
    next: Option<Instant>,
}

thread_local! {
    static ASKING: Cell<Option<Asking>> = const { Cell::new(None) };
}

/// Works, and ends any wait of this thread in it by [`Error::Cancelled`] once `asked` says so. It is asked without a lock of this library,
/// so it may do anything, use the library among it.
pub fn unless<R>(asked: fn() -> bool, work: impl FnOnce() -> R) -> R {
    struct Before(Option<Asking>);
    impl Drop for Before {
        fn drop(&mut self) {
            ASKING.set(self.0);
        }
    }
    let _before = Before(ASKING.replace(Some(Asking { asked, next: None })));
    work()
}

/// Whether it is time to ask: for one that holds a lock, to let go of it first.
pub(crate) fn is_due() -> bool {
    let Some(asking) = ASKING.get() else { return false };
    let now = Instant::now();
    match asking.next {
        Some(next) => next <= now,
        None => {
            ASKING.set(Some(Asking { next: Some(now + EACH), ..asking }));
            false
        }
    }
}

/// Asks if it is time to. Never with a lock held.
pub(crate) fn check() -> Result<(), Error> {
    if !is_due() {
        return Ok(());
    }
    let Some(asking) = ASKING.get() else { return Ok(()) };
    let stops = (asking.asked)();
    ASKING.set(Some(Asking { next: Some(Instant::now() + EACH), ..asking }));
    if stops { Err(Error::Cancelled) } else { Ok(()) }
}

/// The part of a wait after which to [`check`].
pub(crate) fn slice(left: Duration) -> Duration {
    if ASKING.get().is_some() { left.min(EACH) } else { left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_asks_now_and_then_and_only_where_it_is_told_to() {
        assert!(!is_due() && check().is_ok());
        assert_eq!(slice(Duration::MAX), Duration::MAX);
        unless(
            || true,
            || {
                assert!(slice(Duration::MAX) < Duration::from_secs(1));
                assert!(check().is_ok(), "at once");
                // Another one within is another wait's.
                unless(
                    || false,
                    || {
                        std::thread::sleep(EACH);
                        assert!(check().is_ok());
                        std::thread::sleep(EACH);
                        assert!(check().is_ok());
                    },
                );
                assert!(is_due());
                assert!(matches!(check(), Err(Error::Cancelled)));
                assert!(check().is_ok(), "not again at once");
            },
        );
        assert!(!is_due());
    }
}
