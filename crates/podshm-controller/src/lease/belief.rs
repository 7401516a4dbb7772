//! What one process knows of a lease, and what it writes to it. No I/O, and no clock of its own.

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a lease holds without being renewed.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// How long its holder goes by it: it stops before others may begin.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, or looked at.
pub(super) const RETRY: Duration = Duration::from_secs(3);

/// One process's.
#[derive(Debug)]
pub(super) struct Belief {
    me: Arc<str>,
    is_known: bool,
    /// Ours from then on for a [`DEADLINE`].
    renewed: Option<Instant>,
    /// Somebody else's renewal, and since when we have seen it.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
}

impl Belief {
    pub fn of(me: Arc<str>) -> Self {
        Belief { me, is_known: false, renewed: None, seen: None }
    }

    /// Whether it was ever heard whose it is.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Whether this process leads.
    pub fn is_held(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when it leads, if nothing more is heard.
    pub fn until(&self) -> Option<Instant> {
        self.renewed.map(|at| at + DEADLINE)
    }

    /// What is to be written in place of what was found; none while it is somebody else's.
    pub fn bid(&mut self, found: Option<LeaseSpec>, now: Instant, wall: MicroTime) -> Option<LeaseSpec> {
        let Some(found) = found else { return Some(self.spec(None, wall)) };
        if found.holder_identity.is_some() && found.holder_identity.as_deref() != Some(&*self.me) {
            let renewal = (found.holder_identity.clone(), found.renew_time.clone());
            let since = match &self.seen {
                Some((holder, renewed, since)) if (holder, renewed) == (&renewal.0, &renewal.1) => *since,
                _ => now,
            };
            self.seen = Some((renewal.0, renewal.1, since));
            let lasts = found.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            if now.saturating_duration_since(since) < lasts.map_or(DURATION, Duration::from_secs) {
                return None;
            }
        }
        Some(self.spec(Some(&found), wall))
    }

    /// What came of it: ours counts from when it was asked for, since others may have seen it from then on.
    pub fn ended(&mut self, asked: Instant, is_ours: bool) {
        self.is_known = true;
        self.renewed = is_ours.then_some(asked);
    }

    fn spec(&self, before: Option<&LeaseSpec>, now: MicroTime) -> LeaseSpec {
        let kept = before.filter(|spec| spec.holder_identity.as_deref() == Some(&*self.me));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.to_string()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: kept.map_or_else(|| Some(now.clone()), |spec| spec.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(if kept.is_some() { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    //! Several processes and an API server whose answers take their time, get lost, or come after whoever asked has given up: at no moment
    //! do two lead, and once all is well one does.

    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;

    const TICK: Duration = Duration::from_millis(100);

    #[derive(Clone, Copy, Debug)]
    enum Doing {
        Sleeps(Instant),
        /// Its question is with the server at, and its answer back at.
        Asks(Instant, Instant, Instant),
        /// As above.
        Writes(Instant, Instant, Instant),
    }

    struct Process {
        belief: Belief,
        doing: Doing,
        found: Option<LeaseSpec>,
        version: u64,
        won: bool,
    }

    struct Server {
        lease: Option<LeaseSpec>,
        version: u64,
    }

    fn wall(start: Instant, now: Instant) -> MicroTime {
        MicroTime(Timestamp::from_millisecond((now - start).as_millis() as i64).unwrap())
    }

    /// One tick of one process. `delays`: of the way there and back, in ticks.
    fn go_on(process: &mut Process, server: &mut Server, start: Instant, now: Instant, mut delay: impl FnMut() -> u32) {
        let mut way = || (now + TICK * (1 + delay()), TICK * delay());
        match process.doing {
            Doing::Sleeps(until) if now >= until => {
                let (there, back) = way();
                process.doing = Doing::Asks(now, there, there + back);
            }
            Doing::Asks(asked, there, back) => {
                if now == there {
                    (process.found, process.version) = (server.lease.clone(), server.version);
                }
                if now >= asked + DEADLINE {
                    process.doing = Doing::Sleeps(now + RETRY);
                } else if now >= back && now >= there {
                    match process.belief.bid(process.found.take(), now, wall(start, now)) {
                        Some(spec) => {
                            process.found = Some(spec);
                            let (there, back) = way();
                            process.doing = Doing::Writes(asked, there, there + back);
                        }
                        None => {
                            process.belief.ended(asked, false);
                            process.doing = Doing::Sleeps(now + RETRY);
                        }
                    }
                }
            }
            Doing::Writes(asked, there, back) => {
                // What is under way arrives, whether or not somebody still waits for the answer.
                if now >= there && process.found.is_some() {
                    process.won = server.version == process.version;
                    let spec = process.found.take();
                    if process.won {
                        (server.lease, server.version) = (spec, server.version + 1);
                    }
                }
                if now >= asked + DEADLINE && process.found.is_none() {
                    process.doing = Doing::Sleeps(now + RETRY);
                } else if now >= back && process.found.is_none() {
                    process.belief.ended(asked, process.won);
                    process.doing = Doing::Sleeps(now + RETRY);
                }
            }
            Doing::Sleeps(_) => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn of_several_never_two_lead_and_in_the_end_one_does(
            delays in prop::collection::vec(prop_oneof![8 => 0_u32..3, 2 => 0_u32..60, 1 => 60_u32..300], 50..400),
        ) {
            let start = Instant::now();
            let mut server = Server { lease: None, version: 0 };
            let mut all: Vec<Process> = ["a", "b", "c"]
                .map(|me| Process {
                    belief: Belief::of(me.into()),
                    doing: Doing::Sleeps(start),
                    found: None,
                    version: 0,
                    won: false,
                })
                .into();
            let mut queue = delays.into_iter();
            let (mut now, mut calm) = (start, 0_u32);
            // A minute more once all answers come at once.
            while calm < 900 {
                calm = if queue.len() == 0 { calm + 1 } else { 0 };
                for process in &mut all {
                    go_on(process, &mut server, start, now, || queue.next().unwrap_or(0));
                }
                let lead = all.iter().filter(|process| process.belief.is_held(now)).count();
                prop_assert!(lead <= 1, "{lead} lead after {:?}", now - start);
                now += TICK;
            }
            let lead = all.iter().filter(|process| process.belief.is_held(now)).count();
            prop_assert_eq!(lead, 1, "nobody leads though all is well");
        }
    }
}
