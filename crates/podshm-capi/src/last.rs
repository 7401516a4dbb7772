//! Where every exported function comes in: panics end here, and the last error stays with its thread.

use crate::result::podshm_result;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, TryLockError};

/// Why a function did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Library(#[from] podshm::Error),
    #[error("there is no such key")]
    NotFound,
    #[error("the response has not come yet")]
    NotYet,
    #[error("{what} at {address:#x} of {bytes} bytes: {why}")]
    Argument { what: &'static str, address: usize, bytes: usize, why: &'static str },
    #[error("at {address:#x} there is no {expected}: expected one that this library gave out and that was not freed")]
    NoHandle { expected: &'static str, address: usize },
    #[error("this {found} has been freed (it was at {address:#x})")]
    Freed { found: &'static str, address: usize },
    #[error("this is a {found}, expected a {expected}")]
    Role { expected: &'static str, found: &'static str },
    #[error("this {what} belongs to another thread; make one for each thread")]
    Thread { what: &'static str },
    #[error(
        "this {what} is in use by another thread, or by a callback further up in this one; wait until that is done"
    )]
    Busy { what: &'static str },
    #[error("this {what} has ended: {why}")]
    Ended { what: &'static str, why: &'static str },
    #[error("the library has a defect: {0}; please report it, and don't rely on what this call touched")]
    Panic(String),
}

#[derive(Default)]
struct Last {
    fault: Option<Fault>,
    /// The fault in words, once somebody has asked.
    message: Option<CString>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Does what a function is for.
#[inline(always)]
pub(crate) fn entry(work: impl FnOnce() -> Result<(), Fault>) -> podshm_result {
    // Unwind safe: whatever a panic leaves half done is behind locks that are poisoned by it, or is the caller's no more.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => podshm_result::PODSHM_OK,
        Ok(Err(fault)) => keep(fault),
        Err(panic) => panicked(panic),
    }
}

#[cold]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> podshm_result {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    std::mem::forget(panic); // its destructor may panic as well
    keep(Fault::Panic(text.unwrap_or_else(|| "a panic without words".into())))
}

/// Out of line, but not cold: that a ring is full, or a key not there, is part of many a program's day.
#[inline(never)]
fn keep(fault: Fault) -> podshm_result {
    let result = fault.result();
    // A thread that is ending has no place for it any more.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Last { fault: Some(fault), message: None };
        }
    });
    result
}

/// Says so where somebody holds the lock right now.
pub(crate) fn in_use<T>(lock: &Mutex<T>, what: &'static str) -> Result<(), Fault> {
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Fault::Busy { what }),
        _ => Ok(()),
    }
}

fn with_last<R>(look: impl FnOnce(&mut Last) -> R, otherwise: R) -> R {
    let looked = LAST.try_with(|last| last.try_borrow_mut().ok().map(|mut last| look(&mut last)));
    looked.ok().flatten().unwrap_or(otherwise)
}

/// What went wrong in this thread's last call that did not return PODSHM_OK, in words, and what to do about it. Never null. Valid until
/// the thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_last_message() -> *const c_char {
    let words = |last: &mut Last| {
        let Last { fault, message } = last;
        let text = || fault.as_ref().map_or_else(String::new, |fault| fault.to_string().replace('\0', "?"));
        message.get_or_insert_with(|| CString::new(text()).unwrap_or_default()).as_ptr()
    };
    with_last(words, c"".as_ptr())
}

/// The errno of this thread's last PODSHM_SYSTEM; 0 where its last error was another one, or the kernel gave none.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_last_errno() -> i32 {
    let errno = |last: &mut Last| match &last.fault {
        Some(Fault::Library(podshm::Error::System { source, .. })) => source.raw_os_error().unwrap_or(0),
        _ => 0,
    };
    with_last(errno, 0)
}

/// What the agent said in this thread's last PODSHM_FAILED: a status of its own from 16 on, 1 for no more than that; 0 where the last
/// error was another one.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_last_status() -> u32 {
    let status = |last: &mut Last| match &last.fault {
        Some(Fault::Library(podshm::Error::Failed { status })) => *status,
        _ => 0,
    };
    with_last(status, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::border::text_that_is_given;
    use podshm_result::*;

    fn message() -> String {
        text_that_is_given(podshm_last_message())
    }

    #[test]
    fn a_panic_ends_at_the_border_and_is_told() {
        assert_eq!(entry(|| panic!("a planted one")), PODSHM_PANIC);
        assert!(message().contains("a planted one"), "{}", message());
        struct Nasty;
        impl Drop for Nasty {
            fn drop(&mut self) {
                panic!("once more");
            }
        }
        assert_eq!(entry(|| std::panic::panic_any(Nasty)), PODSHM_PANIC);
        assert!(message().contains("without words"));
    }

    #[test]
    fn the_last_error_is_the_threads_own_and_outlives_success() {
        let failed = || Err(podshm::Error::Failed { status: 77 }.into());
        assert_eq!(entry(failed), PODSHM_FAILED);
        assert_eq!(entry(|| Ok(())), PODSHM_OK);
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!((message().as_str(), podshm_last_status()), ("", 0))).join().unwrap()
        });
        assert_eq!((podshm_last_status(), podshm_last_errno()), (77, 0));
        assert!(message().contains("status 77"));
        let source = std::io::Error::from_raw_os_error(13);
        assert_eq!(entry(|| Err(podshm::Error::System { what: "x".into(), source }.into())), PODSHM_SYSTEM);
        assert_eq!((podshm_last_status(), podshm_last_errno()), (0, 13));
    }
}
