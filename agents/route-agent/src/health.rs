//! Reports to weights: who errs more than its peers gets no work for a while, and then slowly more.
//!
//! ```text
//!            errors in a row, or an error rate far over the peers'
//!  Healthy ───────────────────────────────────────────────────────▶ Ejected  weight 0
//!  weight full ◀── all of the ramp ── Ramping  a tenth, two tenths … ◀──┘ after base · 2^(times before)
//! ```
//! - **Bound**: of a route's `n` ready endpoints at most `max_ejection_percent` (rounded down, but at least one) are
//!   ejected, and at least one stays. When the route shrinks, whoever would come back first comes back at once.
//! - **Time** is a parameter, monotonic nanoseconds; the same calls give the same answers. Time that goes backwards
//!   counts as standing still.
//! - **Memory** is bounded by the routes, with at most 32 members remembered of an endpoint: reports on unknown routes or
//!   endpoints are counted and dropped, so a client that lies can't make it grow.
//! - **Nobody ejects alone**: reports weigh by the member that sent them, whom the broker names. An ejection needs
//!   `min_members` of them: of errors in a row each has found one at least and counts for at most half, and an error rate is
//!   what that many have found, each by itself. Only where fewer have reported within the last minute (a node with one pod
//!   that uses routes) do fewer suffice. So members that lie together can eject, within the bound above (a pod and the one
//!   that replaces it are two), and so can the only one that reports at all; a member that reports successes holds up errors
//!   in a row, but not the rate.
//! - **What survives**: a graceful upgrade hands over [`Health::snapshot`] — ejections with the time they still have,
//!   how often each endpoint was ejected, both EWMAs, counts. A crash loses all of it: everybody is healthy again, and a
//!   bad endpoint must err anew (`consecutive_errors` reports) before it is ejected; routes themselves come back from
//!   the source. Reports that were accepted but not handled are the queue's to keep, not this module's.

mod reporters;
mod snapshot;
mod state;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use route_client::{FULL_WEIGHT, Outcome, Report};

pub use snapshot::{MAX_SNAPSHOT_LEN, SnapshotError};

use crate::store::{Member, Weights};
use reporters::{LATELY_NS, Lately};
use state::{Phase, State, elapsed, ramp_weight};

/// When to eject, and for how long. The defaults are near those that Envoy's outlier detection has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthConfig {
    /// Errors in a row that eject; 0 turns this off.
    pub consecutive_errors: u32,
    /// How far an error rate must be over the mean of its peers' to eject, from 0 to 1.
    pub error_rate_margin: f64,
    /// Reports since its last ejection before an endpoint's error rate is judged.
    pub min_reports: u64,
    /// Members that must have found the errors, or as many as reported within the last minute if those are fewer; from 1, which
    /// lets each member decide for all, to 16.
    pub min_members: usize,
    /// The most of a route's ready endpoints that may be ejected; 0 turns ejection off.
    pub max_ejection_percent: u32,
    /// The first ejection's length; each further one is twice as long.
    pub base_ejection_ns: u64,
    /// The longest ejection. So long without an ejection also forgives one.
    pub max_ejection_ns: u64,
    /// How long a returning endpoint takes to its full weight.
    pub ramp_ns: u64,
    /// The weight of a new report in the averages, from 0 to 1.
    pub alpha: f64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            error_rate_margin: 0.3,
            min_reports: 50,
            min_members: 2,
            max_ejection_percent: 30,
            base_ejection_ns: 30_000_000_000,
            max_ejection_ns: 300_000_000_000,
            ramp_ns: 10_000_000_000,
            alpha: 0.05,
        }
    }
}

/// What is known of an endpoint in a route.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndpointHealth {
    /// The average error rate, from 0 to 1, newer reports weighing more.
    pub error_rate: f64,
    /// The average latency of successes in nanoseconds, newer ones weighing more; 0 before the first.
    pub latency_ns: f64,
    /// Reports in all.
    pub reports: u64,
    /// Errors in all.
    pub errors: u64,
    /// Its weight now.
    pub weight: u16,
    /// Until when it is ejected, if it is.
    pub ejected_until_ns: Option<u64>,
    /// How often it was ejected, less what was forgiven.
    pub ejections: u32,
}

/// What was done with reports, in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthCounts {
    /// Reports that counted.
    pub reports: u64,
    /// Reports on a route or endpoint that isn't known (any more).
    pub unknown: u64,
    /// Ejections.
    pub ejections: u64,
    /// Ejections that the bound forbade.
    pub refused: u64,
}

/// The health of all endpoints of all routes.
#[derive(Debug)]
pub struct Health {
    config: HealthConfig,
    routes: HashMap<u64, Members>,
    /// Out of a snapshot, for routes that the source hasn't named yet.
    pending: BTreeMap<(u64, u64), State>,
    /// Routes with reports since the last tick.
    reported: BTreeSet<u64>,
    /// Routes with somebody ejected or ramping.
    unsettled: BTreeSet<u64>,
    /// Routes whose weights changed since the last tick.
    changed: BTreeSet<u64>,
    counts: HealthCounts,
    lately: Lately,
    /// When this began.
    begun_ns: Option<u64>,
    now_ns: u64,
}

type Members = BTreeMap<u64, State>;

impl Health {
    /// Knows nobody yet.
    pub fn new(config: HealthConfig) -> Self {
        Self {
            config,
            routes: HashMap::new(),
            pending: BTreeMap::new(),
            reported: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            changed: BTreeSet::new(),
            counts: HealthCounts::default(),
            lately: Lately::default(),
            begun_ns: None,
            now_ns: 0,
        }
    }

    /// Says who is in a route: after every change of the route, with nobody when it is gone. What is known of those who
    /// stay is kept; what a snapshot knew of new ones is taken up. Ask [`Health::tick`] what that changed.
    pub fn set_members(&mut self, route: u64, members: &[Member], now_ns: u64) {
        let now_ns = self.advance(now_ns);
        let mut old = self.routes.remove(&route).unwrap_or_default();
        if members.is_empty() {
            self.reported.remove(&route);
            self.unsettled.remove(&route);
            return;
        }
        let mut new = Members::new();
        for member in members {
            let held = old.remove(&member.endpoint).or_else(|| self.pending.remove(&(route, member.endpoint)));
            let state = held.unwrap_or_else(|| State::new(now_ns));
            new.insert(member.endpoint, State { ready: member.ready, ..state });
        }
        if new.values().any(|state| !matches!(state.phase, Phase::Healthy { .. })) {
            self.unsettled.insert(route);
        }
        // The route may have shrunk under its ejections.
        while count_ejected(&new) > self.allowed(&new) {
            let first = new.iter_mut().filter(|(_, s)| s.ready).filter_map(|(id, s)| match s.phase {
                Phase::Ejected { until_ns } => Some((until_ns, *id, s)),
                _ => None,
            });
            let Some((_, _, state)) = first.min_by_key(|(until, id, _)| (*until, *id)) else {
                break;
            };
            state.put_back(now_ns);
            state.weight = ramp_weight(0, self.config.ramp_ns);
            self.changed.insert(route);
        }
        self.routes.insert(route, new);
    }

    /// Takes a report of a member, which is any number that is its own. May eject at once, for errors in a row.
    pub fn record(&mut self, member: u64, report: &Report, now_ns: u64) {
        let now_ns = self.advance(now_ns);
        self.lately.saw(member, now_ns);
        let needed = self.members_needed();
        let state = self.routes.get_mut(&report.route).and_then(|members| members.get_mut(&report.endpoint));
        let Some(state) = state else {
            self.counts.unknown = self.counts.unknown.saturating_add(1);
            return;
        };
        state.take(member, report, self.config.alpha, now_ns);
        self.counts.reports = self.counts.reports.saturating_add(1);
        self.reported.insert(report.route);
        let limit = self.config.consecutive_errors;
        let may_be = limit > 0 && state.ready && !state.ejected() && report.outcome != Outcome::Success;
        if may_be && state.reporters.agree_on_row(limit, needed) {
            self.eject(report.route, report.endpoint);
        }
    }

    /// Judges error rates, puts back whose time has come, and says which routes' weights changed since the last call:
    /// those are to be [reweighed](crate::Store::reweigh). Costs what routes with reports or ejections cost; to be
    /// called some times a second.
    pub fn tick(&mut self, now_ns: u64) -> Vec<u64> {
        let now_ns = self.advance(now_ns);
        for route in self.unsettled.clone() {
            self.turn(route, now_ns);
        }
        for route in std::mem::take(&mut self.reported) {
            while let Some(worst) = self.outlier(route) {
                if !self.eject(route, worst) {
                    break;
                }
            }
        }
        std::mem::take(&mut self.changed).into_iter().collect()
    }

    /// What is known of an endpoint.
    pub fn endpoint(&self, route: u64, endpoint: u64) -> Option<EndpointHealth> {
        let s = self.routes.get(&route)?.get(&endpoint)?;
        let ejected_until_ns = match s.phase {
            Phase::Ejected { until_ns } => Some(until_ns),
            _ => None,
        };
        Some(EndpointHealth {
            error_rate: s.error_rate,
            latency_ns: s.latency_ns,
            reports: s.reports,
            errors: s.errors,
            weight: s.weight,
            ejected_until_ns,
            ejections: s.ejections,
        })
    }

    /// How many of a route's ready endpoints are ejected.
    pub fn ejected(&self, route: u64) -> usize {
        self.routes.get(&route).map_or(0, count_ejected)
    }

    /// What was done so far.
    pub fn counts(&self) -> HealthCounts {
        self.counts
    }

    /// Forgets what a snapshot said of routes and endpoints that no list has named. To be called after the first list.
    pub fn forget_pending(&mut self) {
        self.pending.clear();
    }

    fn advance(&mut self, now_ns: u64) -> u64 {
        self.now_ns = self.now_ns.max(now_ns);
        self.begun_ns.get_or_insert(self.now_ns);
        self.now_ns
    }

    /// How many members must agree now.
    fn members_needed(&self) -> usize {
        let begun_ns = self.begun_ns.unwrap_or(self.now_ns);
        if self.now_ns - begun_ns < LATELY_NS {
            // Who else is there will still be heard.
            return self.config.min_members.max(1);
        }
        self.config.min_members.min(self.lately.count(self.now_ns)).max(1)
    }

    /// How many of these may be ejected.
    fn allowed(&self, members: &Members) -> usize {
        let ready = members.values().filter(|s| s.ready).count();
        let percent = self.config.max_ejection_percent.min(100) as usize;
        if percent == 0 { 0 } else { (ready * percent / 100).max(1).min(ready.saturating_sub(1)) }
    }

    /// Ejects an endpoint if the bound allows it.
    fn eject(&mut self, route: u64, endpoint: u64) -> bool {
        let Some(members) = self.routes.get(&route) else {
            return false;
        };
        if count_ejected(members) >= self.allowed(members) {
            self.counts.refused = self.counts.refused.saturating_add(1);
            return false;
        }
        let (config, now_ns) = (self.config, self.now_ns);
        let Some(state) = self.routes.get_mut(&route).and_then(|members| members.get_mut(&endpoint)) else {
            return false;
        };
        if let Phase::Healthy { since_ns } = state.phase {
            let forgiven = elapsed(now_ns, since_ns) / config.max_ejection_ns.max(1);
            state.ejections = state.ejections.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        }
        let doubled = config.base_ejection_ns.saturating_mul(1 << state.ejections.min(40));
        let until_ns = now_ns.saturating_add(doubled.min(config.max_ejection_ns));
        state.ejections = state.ejections.saturating_add(1);
        state.phase = Phase::Ejected { until_ns };
        state.weight = 0;
        self.counts.ejections = self.counts.ejections.saturating_add(1);
        self.unsettled.insert(route);
        self.changed.insert(route);
        true
    }

    /// The endpoint whose error rate is furthest over its peers', if it is far enough.
    fn outlier(&self, route: u64) -> Option<u64> {
        let members = self.routes.get(&route)?;
        let (least, needed) = (self.config.min_reports.max(1), self.members_needed());
        // A member that has hardly used an endpoint has no say of its own.
        let rate = |s: &State| s.reporters.error_rate(needed, least.div_ceil(10));
        let judged: Vec<(u64, f64)> = members
            .iter()
            .filter(|(_, s)| s.ready && !s.ejected() && s.fresh >= least)
            .filter_map(|(&id, s)| Some((id, rate(s)?)))
            .collect();
        let sum: f64 = judged.iter().map(|(_, rate)| rate).sum();
        let &(id, worst) = judged.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
        // Without peers that were used enough there is nothing to be far from.
        if judged.len() < 2 {
            return None;
        }
        let peers = (sum - worst) / (judged.len() - 1) as f64;
        (worst > peers + self.config.error_rate_margin).then_some(id)
    }

    /// Moves a route's ejected and ramping endpoints on.
    fn turn(&mut self, route: u64, now_ns: u64) {
        let Some(members) = self.routes.get_mut(&route) else {
            self.unsettled.remove(&route);
            return;
        };
        let mut settled = true;
        for state in members.values_mut() {
            if let Phase::Ejected { until_ns } = state.phase
                && until_ns <= now_ns
            {
                state.put_back(now_ns);
            }
            let weight = match state.phase {
                Phase::Healthy { .. } => FULL_WEIGHT,
                Phase::Ejected { .. } => 0,
                Phase::Ramping { since_ns } => ramp_weight(elapsed(now_ns, since_ns), self.config.ramp_ns),
            };
            if weight == FULL_WEIGHT && matches!(state.phase, Phase::Ramping { .. }) {
                state.phase = Phase::Healthy { since_ns: now_ns.into() };
            }
            settled &= matches!(state.phase, Phase::Healthy { .. });
            if weight != state.weight {
                state.weight = weight;
                self.changed.insert(route);
            }
        }
        if settled {
            self.unsettled.remove(&route);
        }
    }
}

impl Weights for Health {
    fn weight(&self, route: u64, endpoint: u64) -> u16 {
        let state = self.routes.get(&route).and_then(|members| members.get(&endpoint));
        state.or_else(|| self.pending.get(&(route, endpoint))).map_or(FULL_WEIGHT, |s| s.weight)
    }
}

fn count_ejected(members: &Members) -> usize {
    members.values().filter(|s| s.ready && s.ejected()).count()
}
