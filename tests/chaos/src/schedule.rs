//! What is done to whom, and when: the same for the same seed.

use std::time::Duration;

/// One of the node's two domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Domain {
    /// An agent that answers calls and takes a queue.
    Work,
    /// The route agent.
    Routes,
}

impl Domain {
    /// Both.
    pub const ALL: [Domain; 2] = [Domain::Work, Domain::Routes];

    /// Its name.
    pub fn name(self) -> &'static str {
        ["work", "routes"][self as usize]
    }
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The agent of a domain.
    Agent(Domain),
    /// A client, by the number of its pod.
    Client(u32),
    /// The broker.
    Broker,
}

macro_rules! kinds {
    ($($kind:ident $weight:literal $kill:literal $name:literal)*) => {
        /// What is done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $(#[doc = $name] $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// How often, relative to others.
            fn weight(self) -> u64 {
                match self { $(Kind::$kind => $weight,)* }
            }

            /// Whether it is a `kill -9`.
            pub fn is_kill(self) -> bool {
                match self { $(Kind::$kind => $kill,)* }
            }

            /// Whether an agent is to hand over in order.
            pub fn hands_over(self) -> bool {
                matches!(self, Kind::Surge | Kind::RollBack | Kind::Replace)
            }

            /// For the table.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    ClientKill 36 true "client killed"
    AgentKill 8 true "agent killed"
    SuccessorKill 3 true "successor killed while it starts"
    StepKill 2 true "agent killed at a named step"
    ClientStop 40 false "client stopped and continued"
    AgentStop 7 false "agent stopped and continued"
    BrokerStop 8 false "broker stopped and continued"
    Surge 4 false "upgrade, new next to old"
    Replace 3 false "upgrade, old first, then new"
    RollBack 2 false "roll-back to memory layout 1"
    StoppedUpgrade 2 false "upgrade past a stopped agent"
    ClientSqueeze 2 false "client out of memory"
    AgentSqueeze 1 false "agent out of memory"
    BrokerKill 2 true "broker killed and restarted"
    BrokerAbsent 1 true "broker absent while others go on"
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// How long to wait before it.
    pub gap: Duration,
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// How long what lasts.
    pub length: Duration,
    /// For whatever else is a matter of chance.
    pub dice: u64,
}

/// Gives the same faults for the same seed.
#[derive(Clone, Debug)]
pub struct Schedule {
    state: u64,
    clients: u32,
    mean_gap: Duration,
    broker_restarts: bool,
}

impl Schedule {
    /// For so many clients, with so long between two faults on average.
    pub fn new(seed: u64, clients: u32, mean_gap: Duration, broker_restarts: bool) -> Schedule {
        Schedule { state: seed, clients, mean_gap, broker_restarts }
    }

    fn random(&mut self) -> u64 {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.random() % most.max(1)
    }

    fn kind(&mut self) -> Kind {
        let is_on = |kind: &Kind| self.broker_restarts || !matches!(kind, Kind::BrokerKill | Kind::BrokerAbsent);
        let kinds: Vec<Kind> = Kind::ALL.iter().copied().filter(is_on).collect();
        let mut at = self.below(kinds.iter().map(|k| k.weight()).sum());
        for kind in &kinds {
            match at.checked_sub(kind.weight()) {
                Some(rest) => at = rest,
                None => return *kind,
            }
        }
        kinds[0]
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let kind = self.kind();
        let domain = Domain::ALL[self.below(2) as usize];
        let target = match kind {
            Kind::ClientKill | Kind::ClientStop | Kind::ClientSqueeze => {
                Target::Client(self.below(self.clients.into()) as u32)
            }
            Kind::BrokerStop | Kind::BrokerKill | Kind::BrokerAbsent => Target::Broker,
            // The route agent is a release as it is: it has no named steps, no other layout, and no leak.
            Kind::StepKill | Kind::RollBack | Kind::AgentSqueeze => Target::Agent(Domain::Work),
            _ => Target::Agent(domain),
        };
        let mean = self.mean_gap.as_micros() as u64;
        let gap = Duration::from_micros(self.below(2 * mean));
        let length = Duration::from_micros(10_000 + self.below(140_000));
        Some(Planned { gap, kind, target, length, dice: self.random() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn some(seed: u64, broker_restarts: bool) -> Vec<Planned> {
        Schedule::new(seed, 8, Duration::from_millis(50), broker_restarts).take(3_000).collect()
    }

    #[test]
    fn a_seed_replays() {
        assert_eq!(some(7, true), some(7, true));
        assert_ne!(some(7, true), some(8, true));
    }

    #[test]
    fn every_kind_comes_and_a_third_are_kills() {
        for restarts in [false, true] {
            let all = some(1, restarts);
            let kinds: BTreeSet<Kind> = all.iter().map(|p| p.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len() - if restarts { 0 } else { 2 });
            let kills = all.iter().filter(|p| p.kind.is_kill()).count();
            assert!(kills * 3 > all.len(), "{kills} of {}", all.len());
            let mean = all.iter().map(|p| p.gap).sum::<Duration>() / all.len() as u32;
            assert!((40..60).contains(&mean.as_millis()), "{mean:?}");
        }
    }
}
