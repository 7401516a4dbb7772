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
/// `timeout` is long enough for that not to matter. The caller keeps its own, exact one.
#[inline(always)]
pub(crate) fn wire_deadline(timeout: Duration) -> u64 {
    let nanos = timeout.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
    if nanos >= 5 * TICK { now_coarse() + TICK + nanos } else { now() + nanos }
}
