//! One endpoint's health: averages, and where it is between healthy and ejected.

use route_client::{FULL_WEIGHT, Report};

use super::reporters::{Reporters, bounded_latency, share};

/// In how many steps a returning endpoint gets its weight back.
const RAMP_STEPS: u64 = 10;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) ready: bool,
    pub(super) error_rate: f64,
    pub(super) latency_ns: f64,
    pub(super) reports: u64,
    pub(super) errors: u64,
    pub(super) reporters: Reporters,
    /// Reports since it was last put back.
    pub(super) fresh: u64,
    pub(super) ejections: u32,
    pub(super) weight: u16,
    pub(super) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    // Signed: after a hand-over it may lie before the zero of this process's clock.
    Healthy { since_ns: i128 },
    Ejected { until_ns: u64 },
    Ramping { since_ns: i128 },
}

impl State {
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            ready: true,
            error_rate: 0.0,
            latency_ns: 0.0,
            reports: 0,
            errors: 0,
            reporters: Reporters::default(),
            fresh: 0,
            ejections: 0,
            weight: FULL_WEIGHT,
            phase: Phase::Healthy { since_ns: now_ns.into() },
        }
    }

    pub(super) fn ejected(&self) -> bool {
        matches!(self.phase, Phase::Ejected { .. })
    }

    pub(super) fn put_back(&mut self, now_ns: u64) {
        self.phase = Phase::Ramping { since_ns: now_ns.into() };
        (self.error_rate, self.fresh) = (0.0, 0);
        self.reporters.forget();
    }

    pub(super) fn take(&mut self, member: u64, report: &Report, alpha: f64, now_ns: u64) {
        let error = report.outcome.is_error();
        self.reports = self.reports.saturating_add(1);
        self.fresh = self.fresh.saturating_add(1);
        self.error_rate += (f64::from(u8::from(error)) - self.error_rate) * share(alpha, self.fresh);
        self.reporters.take(member, error, alpha, now_ns);
        if error {
            self.errors = self.errors.saturating_add(1);
        } else {
            let successes = self.reports - self.errors.min(self.reports);
            self.latency_ns += (bounded_latency(report.latency_ns) - self.latency_ns) * share(alpha, successes);
        }
    }
}

/// Nanoseconds from `since_ns` to now, none if that is still to come.
pub(super) fn elapsed(now_ns: u64, since_ns: i128) -> u64 {
    u64::try_from((i128::from(now_ns) - since_ns).max(0)).unwrap_or(u64::MAX)
}

/// A tenth at first, all after `ramp_ns`.
pub(super) fn ramp_weight(elapsed_ns: u64, ramp_ns: u64) -> u16 {
    let step = if elapsed_ns >= ramp_ns { RAMP_STEPS } else { elapsed_ns / (ramp_ns / RAMP_STEPS).max(1) + 1 };
    (u64::from(FULL_WEIGHT) * step.min(RAMP_STEPS) / RAMP_STEPS) as u16
}
