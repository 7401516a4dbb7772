//! What each member (a business pod) says of an endpoint, kept apart, so that no member alone decides.
//!
//! A client may lie, and what it is called is the broker's word, not its own: so weight is given to members, not to reports.
//! Whatever one of them sends, it counts as one.

use route_client::report::MAX_LATENCY_NS;

/// Members that are remembered of an endpoint; whoever has been silent for longest makes room.
const MOST: usize = 32;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reporters(Vec<Reporter>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Reporter {
    member: u64,
    /// Errors without a success of anybody in between.
    row: u32,
    /// Reports since the endpoint was last put back.
    fresh: u64,
    error_rate: f64,
    last_ns: u64,
}

impl Reporters {
    pub(super) fn take(&mut self, member: u64, error: bool, alpha: f64, now_ns: u64) {
        if !error {
            self.0.iter_mut().for_each(|reporter| reporter.row = 0);
        }
        let reporter = self.of(member, now_ns);
        reporter.last_ns = now_ns;
        reporter.fresh = reporter.fresh.saturating_add(1);
        reporter.error_rate += (f64::from(u8::from(error)) - reporter.error_rate) * share(alpha, reporter.fresh);
        if error {
            reporter.row = reporter.row.saturating_add(1);
        }
    }

    /// Whether there are `limit` errors in a row, of at least so many members. Of several one gives at most half.
    pub(super) fn agree_on_row(&self, limit: u32, members: usize) -> bool {
        let each = if members > 1 { limit.div_ceil(2) } else { limit };
        let rows = self.0.iter().filter(|reporter| reporter.row > 0).map(|reporter| reporter.row.min(each));
        rows.clone().count() >= members && rows.fold(0, u32::saturating_add) >= limit
    }

    /// The error rate that at least so many members have found, each in at least so many reports. `None`: so many there aren't.
    pub(super) fn error_rate(&self, members: usize, reports: u64) -> Option<f64> {
        let mut rates: Vec<f64> =
            self.0.iter().filter(|reporter| reporter.fresh >= reports).map(|reporter| reporter.error_rate).collect();
        rates.sort_unstable_by(|a, b| b.total_cmp(a));
        rates.get(members.max(1) - 1).copied()
    }

    /// Everybody looks at it anew.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    fn of(&mut self, member: u64, now_ns: u64) -> &mut Reporter {
        let known = self.0.iter().position(|reporter| reporter.member == member);
        let at = known.unwrap_or_else(|| {
            let new = Reporter { member, row: 0, fresh: 0, error_rate: 0.0, last_ns: now_ns };
            if self.0.len() < MOST {
                self.0.push(new);
                return self.0.len() - 1;
            }
            let oldest = (0..MOST).min_by_key(|&at| self.0[at].last_ns).unwrap_or(0);
            self.0[oldest] = new;
            oldest
        });
        &mut self.0[at]
    }
}

/// The weight of the `n`th value in an average: plain means until the average has something to stand on.
pub(super) fn share(alpha: f64, n: u64) -> f64 {
    alpha.max(1.0 / (n.max(1) as f64)).min(1.0)
}

/// A report's latency as it counts.
pub(super) fn bounded_latency(latency_ns: u64) -> f64 {
    latency_ns.min(MAX_LATENCY_NS) as f64
}

/// Members that have reported lately, of whatever endpoint, as far as it matters how many they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Lately(Vec<(u64, u64)>);

/// So long a member counts after its last report; and so long an agent that has just begun takes it that there are others.
pub(super) const LATELY_NS: u64 = 60_000_000_000;
/// More than that are never asked for.
const MOST_LATELY: usize = 16;

impl Lately {
    pub(super) fn saw(&mut self, member: u64, now_ns: u64) {
        if let Some((_, last_ns)) = self.0.iter_mut().find(|(known, _)| *known == member) {
            *last_ns = now_ns;
        } else if self.0.len() < MOST_LATELY {
            self.0.push((member, now_ns));
        } else if let Some(oldest) = self.0.iter_mut().min_by_key(|(_, last_ns)| *last_ns) {
            *oldest = (member, now_ns);
        }
    }

    pub(super) fn count(&self, now_ns: u64) -> usize {
        self.0.iter().filter(|(_, last_ns)| now_ns.saturating_sub(*last_ns) < LATELY_NS).count()
    }
}
