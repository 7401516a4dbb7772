//! One status out of all nodes' reports. No I/O.

use podshm_api::report::{DomainReport, NodeCondition, NodeReport, PORT};
use podshm_api::status::{LONGEST, WORST};
use podshm_api::{Condition, ConditionStatus, DomainStatus, WorstNode, clipped};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What is wrong first. What is not here comes after these.
const SEVERITY: [&str; 3] = ["OverLimit", "NotServed", "NoAgent"];
/// Of a node that goes by an earlier generation.
const OUTDATED: &str = "Outdated";

/// What all nodes say, once round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// By node.
    reports: BTreeMap<String, NodeReport>,
    /// Nodes whose daemon does not answer.
    silent: usize,
}

impl Round {
    /// Of reports by node, and of how many nodes there is none.
    pub fn new(reports: BTreeMap<String, NodeReport>, silent: usize) -> Self {
        Round { reports, silent }
    }

    /// A domain's status. `before` is the one that it has: a condition that stays keeps its time.
    pub fn status(&self, name: &str, generation: i64, before: &DomainStatus, now: &str) -> DomainStatus {
        let mut status = DomainStatus {
            observed_generation: generation,
            silent_nodes: count(self.silent),
            ..DomainStatus::default()
        };
        let (mut worst, mut over_limit) = (Vec::new(), 0);
        for (node, report) in &self.reports {
            let Some(domain) = report.domains.iter().find(|domain| domain.name == name) else {
                status.outdated_nodes += 1;
                continue;
            };
            add(&mut status, domain, generation);
            over_limit += i64::from(domain.conditions.iter().any(|condition| condition.reason == "OverLimit"));
            worst.extend(Fault::of(node, domain, generation));
        }
        worst.sort_by(|one, other| one.rank().cmp(&other.rank()));
        let first = worst.first().map(|fault| clipped(&fault.conditions[0].reason, 64));
        status.worst_nodes = worst.iter().take(WORST).map(Fault::named).collect();
        let answered = count(self.reports.len());
        status.conditions = conditions(&status, answered, over_limit, first.as_deref());
        for condition in &mut status.conditions {
            let same =
                before.conditions.iter().find(|old| old.kind == condition.kind && old.status == condition.status);
            condition.last_transition_time = same.map_or(now, |old| &old.last_transition_time).to_owned();
        }
        status
    }
}

fn count(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

fn add(status: &mut DomainStatus, domain: &DomainReport, generation: i64) {
    let bytes = |found: u64| i64::try_from(found).unwrap_or(i64::MAX);
    status.nodes += 1;
    status.outdated_nodes += i64::from(domain.generation != generation);
    status.degraded_nodes += i64::from(!domain.conditions.is_empty());
    status.served_nodes += i64::from(domain.served);
    status.volumes += i64::from(domain.volumes);
    status.clients += i64::from(domain.clients);
    status.region_bytes = status.region_bytes.saturating_add(bytes(domain.region_bytes));
    status.shm_bytes = status.shm_bytes.saturating_add(bytes(domain.shm_bytes));
}

/// What is wrong on a node, the worst first.
struct Fault<'a> {
    node: &'a str,
    conditions: Vec<NodeCondition>,
}

impl<'a> Fault<'a> {
    fn of(node: &'a str, domain: &DomainReport, generation: i64) -> Option<Self> {
        let mut conditions = domain.conditions.clone();
        conditions.sort_by_key(|condition| severity(&condition.reason));
        if domain.generation != generation {
            let message = format!("goes by generation {} of {generation}; it will hear of it", domain.generation);
            conditions.push(NodeCondition { reason: OUTDATED.into(), message });
        }
        (!conditions.is_empty()).then_some(Fault { node, conditions })
    }

    fn rank(&self) -> (usize, Reverse<usize>, &str) {
        (severity(&self.conditions[0].reason), Reverse(self.conditions.len()), self.node)
    }

    fn named(&self) -> WorstNode {
        WorstNode {
            node: clipped(self.node, 253),
            reasons: self.conditions.iter().take(4).map(|condition| clipped(&condition.reason, 64)).collect(),
            message: clipped(&self.conditions[0].message, LONGEST),
        }
    }
}

fn severity(reason: &str) -> usize {
    match reason {
        OUTDATED => SEVERITY.len() + 1,
        _ => SEVERITY.iter().position(|known| *known == reason).unwrap_or(SEVERITY.len()),
    }
}

fn conditions(status: &DomainStatus, answered: i64, over_limit: i64, worst: Option<&str>) -> Vec<Condition> {
    let DomainStatus { outdated_nodes: outdated, silent_nodes: silent, degraded_nodes: degraded, .. } = *status;
    let condition = |kind: &str, holds: ConditionStatus, reason: &str, message: String| Condition {
        kind: kind.into(),
        status: holds,
        observed_generation: status.observed_generation,
        last_transition_time: String::new(),
        reason: reason.into(),
        message,
    };
    let ready = match (answered, outdated) {
        (0, _) => condition(
            "Ready",
            ConditionStatus::Unknown,
            "NoReports",
            format!(
                "no node's daemon answers, of {silent}; see that podshmd runs and that the controller reaches its port {PORT}"
            ),
        ),
        (_, 0) => condition("Ready", ConditionStatus::True, "Current", format!("{answered} nodes go by it")),
        _ => condition(
            "Ready",
            ConditionStatus::False,
            OUTDATED,
            format!("{outdated} of {answered} nodes have not heard of it as it is now; they watch, and will"),
        ),
    };
    let is_degraded = degraded + silent > 0;
    let degraded = condition(
        "Degraded",
        if is_degraded { ConditionStatus::True } else { ConditionStatus::False },
        match worst {
            Some(worst) if degraded > 0 => worst,
            _ if is_degraded => "NodesSilent",
            _ => "AllWell",
        },
        format!("{degraded} nodes say that something is wrong (see worstNodes), {silent} say nothing"),
    );
    let over_limit = condition(
        "OverLimit",
        if over_limit > 0 { ConditionStatus::True } else { ConditionStatus::False },
        if over_limit > 0 { "OverLimit" } else { "WithinLimit" },
        format!("{over_limit} nodes have not the memory for its budget; raise podshmd.memory, or lower budgets"),
    );
    vec![ready, degraded, over_limit]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2030-01-01T00:00:00Z";

    fn condition(reason: &str, message: &str) -> NodeCondition {
        NodeCondition { reason: reason.into(), message: message.into() }
    }

    fn domain(generation: i64, conditions: Vec<NodeCondition>) -> DomainReport {
        DomainReport {
            name: "routing".into(),
            generation,
            served: true,
            volumes: 3,
            clients: 2,
            region_bytes: 4096,
            shm_bytes: 10,
            conditions,
            ..DomainReport::default()
        }
    }

    fn round(domains: Vec<(String, Vec<DomainReport>)>, silent: usize) -> Round {
        let report = |domains| NodeReport { domains, ..NodeReport::default() };
        Round::new(domains.into_iter().map(|(node, domains)| (node, report(domains))).collect(), silent)
    }

    fn holds<'a>(status: &'a DomainStatus, kind: &str) -> (&'a ConditionStatus, &'a str) {
        let found = status.conditions.iter().find(|condition| condition.kind == kind).expect("the condition");
        (&found.status, &found.reason)
    }

    #[test]
    fn nodes_are_added_up_and_the_worst_come_first() {
        let nodes = vec![
            ("a".into(), vec![domain(5, vec![])]),
            ("b".into(), vec![domain(5, vec![condition("StaleClients", "s")])]),
            ("c".into(), vec![domain(4, vec![condition("NoAgent", "n"), condition("OverLimit", "o")])]),
            ("d".into(), vec![]),
            ("e".into(), vec![domain(4, vec![])]),
        ];
        let status = round(nodes, 1).status("routing", 5, &DomainStatus::default(), NOW);
        assert_eq!((status.nodes, status.outdated_nodes, status.silent_nodes, status.degraded_nodes), (4, 3, 1, 2));
        assert_eq!((status.served_nodes, status.volumes, status.clients), (4, 12, 8));
        assert_eq!((status.region_bytes, status.shm_bytes), (4 * 4096, 40));
        let worst: Vec<&str> = status.worst_nodes.iter().map(|node| node.node.as_str()).collect();
        assert_eq!(worst, ["c", "b", "e"]);
        assert_eq!(status.worst_nodes[0].reasons, ["OverLimit", "NoAgent", "Outdated"]);
        assert_eq!(status.worst_nodes[0].message, "o");
        assert_eq!(holds(&status, "Ready"), (&ConditionStatus::False, "Outdated"));
        assert_eq!(holds(&status, "Degraded"), (&ConditionStatus::True, "OverLimit"));
        assert_eq!(holds(&status, "OverLimit"), (&ConditionStatus::True, "OverLimit"));
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time_and_what_has_not_changed_is_the_same() {
        let well = vec![("a".to_owned(), vec![domain(5, vec![])])];
        let first = round(well.clone(), 0).status("routing", 5, &DomainStatus::default(), NOW);
        assert_eq!(holds(&first, "Ready"), (&ConditionStatus::True, "Current"));
        assert_eq!(holds(&first, "Degraded"), (&ConditionStatus::False, "AllWell"));
        let later = round(well, 0).status("routing", 5, &first, "2030-01-01T00:00:30Z");
        assert_eq!(later, first, "nothing to write");
        let silent = round(vec![], 1).status("routing", 5, &first, "2030-01-01T00:01:00Z");
        assert_eq!(holds(&silent, "Ready"), (&ConditionStatus::Unknown, "NoReports"));
        assert_eq!(holds(&silent, "Degraded"), (&ConditionStatus::True, "NodesSilent"));
        let time = |status: &DomainStatus, kind: &str| {
            let found = status.conditions.iter().find(|condition| condition.kind == kind).expect("the condition");
            found.last_transition_time.clone()
        };
        assert_eq!(time(&silent, "Ready"), "2030-01-01T00:01:00Z");
        assert_eq!(time(&silent, "OverLimit"), NOW);
    }

    #[test]
    fn a_status_is_small_at_10_000_nodes_that_say_the_worst() {
        let (long, name) = ("ü\u{1}\"".repeat(200), |node: usize| format!("{:0>253}", format!("node-{node}")));
        let faults: Vec<NodeCondition> = (0..6).map(|_| condition(&"R".repeat(200), &long)).collect();
        let worst = DomainReport {
            volumes: u32::MAX,
            clients: u32::MAX,
            region_bytes: u64::MAX,
            shm_bytes: u64::MAX,
            ..domain(i64::MAX, faults)
        };
        let nodes = (0..10_000).map(|node| (name(node), vec![worst.clone()])).collect();
        let status = round(nodes, 10_000).status("routing", i64::MIN, &DomainStatus::default(), NOW);
        let size = serde_json::to_string(&status).expect("JSON").len();
        println!("{size} bytes");
        assert_eq!(status.worst_nodes.len(), WORST);
        assert!(status.worst_nodes.iter().all(|node| node.message.len() <= LONGEST && node.reasons.len() <= 4));
        assert!(size < 32 << 10, "{size} bytes");
    }
}
