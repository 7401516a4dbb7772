//! Futexes on shared words; waiting works on read-only mappings too.

use std::time::Duration;

/// Sleeps until woken, until the word is no longer `expected`, or for `timeout`. Spurious returns are normal.
pub(crate) fn wait(word: *const u32, expected: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: FUTEX_WAIT reads one aligned word at an address that the caller keeps mapped; the timespec outlives the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, expected, &raw const timeout);
    }
}

/// Wakes every sleeper on the word.
pub(crate) fn wake(word: *const u32) {
    // SAFETY: FUTEX_WAKE does not access the word; the address names it.
    unsafe {
        libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX);
    }
}
