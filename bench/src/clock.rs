//! Time at the cost of a register read: the time-stamp counter where it is constant, else the
//! monotonic clock.
//!
//! A 64-byte round trip is a few hundred nanoseconds, so the clock's own cost is visible: one
//! reading is taken per round trip and serves as its end and the next one's start.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ticks per nanosecond and the way to read them.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    ns_per_tick: f64,
    origin: Option<Instant>,
}

impl Clock {
    /// The process's clock; the first call calibrates it for 20 ms.
    pub fn shared() -> Self {
        static CLOCK: OnceLock<Clock> = OnceLock::new();
        *CLOCK.get_or_init(Self::calibrated)
    }

    /// Ticks since some moment.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        match self.origin {
            None => tsc(),
            Some(origin) => origin.elapsed().as_nanos() as u64,
        }
    }

    /// `ticks` in nanoseconds.
    pub fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }

    /// What one reading costs, in nanoseconds.
    pub fn cost_ns(&self) -> f64 {
        const READS: u64 = 100_000;
        let start = self.now();
        for _ in 1..READS {
            std::hint::black_box(self.now());
        }
        self.ns(self.now() - start) / READS as f64
    }

    fn calibrated() -> Self {
        if !constant_tsc() {
            return Self { ns_per_tick: 1.0, origin: Some(Instant::now()) };
        }
        let (wall, ticks) = (Instant::now(), tsc());
        while wall.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let (elapsed, ticks) = (wall.elapsed(), tsc() - ticks);
        Self { ns_per_tick: elapsed.as_nanos() as f64 / ticks as f64, origin: None }
    }
}

#[cfg(target_arch = "x86_64")]
fn constant_tsc() -> bool {
    std::fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|info| info.contains("constant_tsc") && info.contains("nonstop_tsc"))
}

#[cfg(not(target_arch = "x86_64"))]
fn constant_tsc() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 and reads a counter; Linux leaves it enabled for
    // user space (`PR_SET_TSC` is per process and this one doesn't ask for it).
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc() -> u64 {
    0
}
