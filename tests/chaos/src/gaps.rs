//! The longest waits by kind of service, and which fault they are due to.

use crate::schedule::{Domain, Kind, Target};
use crate::verdict::Fault;
use std::collections::BTreeMap;

/// What is waited for, in the order of the logs' numbers.
pub const WAITS: [&str; 6] =
    ["lookup work", "lookup routes", "report work", "report routes", "call work", "call routes"];

/// Something that was there only after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Whose.
    pub pod: u32,
    /// Index in [`WAITS`].
    pub kind: u16,
    /// When it was first tried.
    pub from: u64,
    /// When it was there.
    pub to: u64,
}

impl Wait {
    fn domain(&self) -> Domain {
        Domain::ALL[usize::from(self.kind % 2)]
    }

    fn overlaps(&self, fault: &Fault) -> bool {
        fault.at <= self.to && fault.until >= self.from
    }

    /// Whose fault it is: the own process's before the agent's before the broker's, the earlier one's before the later one's.
    fn due_to(&self, faults: &[&Fault]) -> Option<Kind> {
        let hits = |target: Target| faults.iter().find(|f| f.target == target && self.overlaps(f)).map(|f| f.kind);
        hits(Target::Client(self.pod)).or_else(|| hits(Target::Agent(self.domain()))).or_else(|| hits(Target::Broker))
    }
}

/// The longest wait in nanoseconds for each of [`WAITS`].
pub type Longest = [u64; WAITS.len()];

/// Longest waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Before the first fault.
    pub control: Longest,
    /// By the kind of fault that they overlap with.
    pub by_kind: BTreeMap<Kind, Longest>,
    /// After the first fault, with none near.
    pub without: Longest,
}

impl Gaps {
    /// Of these waits, where these faults were; faults in order.
    pub fn of(waits: &[Wait], faults: &[Fault]) -> Gaps {
        let mut gaps = Gaps::default();
        let begun = faults.first().map_or(u64::MAX, |fault| fault.at);
        // No fault's effect lasts longer than that of the one which lasted longest.
        let reach = faults.iter().map(|fault| fault.until - fault.at).max().unwrap_or(0);
        for wait in waits {
            let first = faults.partition_point(|fault| fault.at < wait.from.saturating_sub(reach));
            let near: Vec<&Fault> = faults[first..].iter().take_while(|fault| fault.at <= wait.to).collect();
            let longest = match wait.due_to(&near) {
                Some(kind) => gaps.by_kind.entry(kind).or_default(),
                None if wait.to < begun => &mut gaps.control,
                None => &mut gaps.without,
            };
            let longest = &mut longest[usize::from(wait.kind)];
            *longest = (*longest).max(wait.to - wait.from);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_due_to_the_fault_that_it_overlaps_with() {
        let fault = |kind, target, at, until| Fault { kind, target, at, until };
        let faults = [
            fault(Kind::AgentKill, Target::Agent(Domain::Work), 100, 150),
            fault(Kind::Surge, Target::Agent(Domain::Routes), 120, 160),
            fault(Kind::ClientStop, Target::Client(3), 140, 200),
            fault(Kind::BrokerStop, Target::Broker, 190, 300),
        ];
        let wait = |pod, kind, from, to| Wait { pod, kind, from, to };
        let waits = [
            wait(0, 0, 10, 30),
            wait(0, 4, 90, 140),
            wait(3, 4, 90, 150),
            wait(0, 5, 125, 130),
            wait(1, 1, 170, 180),
            wait(1, 3, 180, 260),
        ];
        let gaps = Gaps::of(&waits, &faults);
        assert_eq!(gaps.control, [20, 0, 0, 0, 0, 0]);
        assert_eq!(gaps.by_kind[&Kind::AgentKill], [0, 0, 0, 0, 50, 0]);
        assert_eq!(gaps.by_kind[&Kind::ClientStop], [0, 0, 0, 0, 60, 0]);
        assert_eq!(gaps.by_kind[&Kind::Surge], [0, 0, 0, 0, 0, 5]);
        assert_eq!(gaps.by_kind[&Kind::BrokerStop], [0, 0, 0, 80, 0, 0]);
        assert_eq!(gaps.without, [0, 10, 0, 0, 0, 0]);
    }
}
