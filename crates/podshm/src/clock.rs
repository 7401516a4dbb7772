//! The clock of deadlines and ages: monotonic, the same for every process of the node, untouched by changes of the wall clock.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds since boot.
pub(crate) fn now() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// [`now`] to within a tick of the kernel (1 to 10 ms behind), for a quarter of its cost.
pub(crate) fn now_coarse() -> u64 {
    let t = clock_gettime(ClockId::MonotonicCoarse);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Coarse time lags by up to this much: a tick of the slowest kernel configuration.
const TICK: u64 = 10_000_000;

/// The deadline that a request carries, for an agent that comes to it late: what `timeout` makes of now, up to 10 ms later where
/// `timeout` is long enough for that not to matter. The caller keeps its own, exact one. 0, for none, where it is longer than any process
/// lives: 292 years, as what other languages take for no end is.
#[inline(always)]
pub(crate) fn wire_deadline(timeout: Duration) -> u64 {
    const LONGEST: u128 = u64::MAX as u128 / 2;
    match timeout.as_nanos() {
        LONGEST.. => 0,
        nanos if nanos >= u128::from(5 * TICK) => now_coarse() + TICK + nanos as u64,
        nanos => now() + nanos as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_without_end_is_no_deadline() {
        for without_end in [Duration::MAX, Duration::from_nanos(u64::MAX), Duration::from_nanos(i64::MAX as u64)] {
            assert_eq!(wire_deadline(without_end), 0, "{without_end:?}");
        }
        for timeout in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(1), Duration::from_nanos(1 << 62)]
        {
            let (before, deadline) = (now(), wire_deadline(timeout));
            let off = deadline.abs_diff(before + timeout.as_nanos() as u64);
            assert!(off < 1_000_000_000, "{timeout:?} is off by {off} ns");
        }
    }
}
