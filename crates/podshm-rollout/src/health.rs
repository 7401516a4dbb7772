//! What node daemons say of the domain, beside what they said before.
//!
//! ```text
//!  before a node is touched ──► sick? it is skipped ──► counted, in its annotation
//!  from then on             ──► counted now − counted before > what is allowed? the rollout stops
//!  a batch begins, or a person has looked ──► counted anew
//! ```

use crate::gates::verdict;
use crate::seen::Seen;
use crate::world::{name, restarts};
use k8s_openapi::api::core::v1::Node;
use podshm_api::report::{DomainReport, NodeReport};
use podshm_api::rollout::{AgentRollout, Counted, HealthGate, NodeMark, Verdict, VerdictResult};

/// How much later than a node daemon the API server may tell of an agent that was started anew, in seconds.
const TOLD_LATE: i64 = 3;

/// Conditions that only say that something was so once: it is counted. And one that goes when the agent comes.
const PASSED: [&str; 3] = ["RecordsDiscarded", "RegionsUnclaimed", "NoAgent"];

fn of<'w>(report: &'w NodeReport, domain: &str) -> Option<&'w DomainReport> {
    report.domains.iter().find(|one| one.name == domain)
}

/// What its daemon has counted so far; none while it does not answer. Its numbers are whatever it says.
pub(crate) fn counted(rollout: &AgentRollout, world: &Seen<'_>, node: &str) -> Option<Counted> {
    let domain = rollout.spec.domain.as_deref()?;
    let report = world.reports.get(node)?;
    let found = of(report, domain).cloned().unwrap_or_default();
    let agents = rollout.spec.agents.iter().filter_map(|agent| world.daemon_set(agent));
    let started_again = agents.flat_map(|set| world.agents_on(set, node)).map(|pod| u64::from(restarts(pod))).sum();
    Some(Counted {
        at: world.now,
        attach_failures: found.refused.saturating_add(report.failed_publishes),
        drops: found.discarded,
        leaks: found.unclaimed.saturating_add(found.held_open),
        agents: found.epoch,
        restarts: started_again,
        shm_percent: percent(found.shm_bytes, found.shm_size),
    })
}

fn percent(of: u64, all: u64) -> u64 {
    if all == 0 { 0 } else { (u128::from(of) * 100 / u128::from(all)) as u64 }
}

/// Why nothing should be begun on a node, as its daemon sees it.
pub(crate) fn sick(rollout: &AgentRollout, world: &Seen<'_>, node: &str) -> Option<String> {
    let (domain, report) = (rollout.spec.domain.as_deref()?, world.reports.get(node)?);
    if !report.registered {
        return Some("the kubelet has not registered its node daemon".into());
    }
    let found = of(report, domain)?;
    let most = u64::from(rollout.spec.gates.podshm.max_stalled_seconds);
    if found.stalled_seconds > most {
        return Some(format!("domain {domain} has been stalled for {} s", found.stalled_seconds));
    }
    lasting(found).map(|what| format!("domain {domain}: {what}"))
}

fn lasting(found: &DomainReport) -> Option<String> {
    let condition = found.conditions.iter().find(|one| !PASSED.contains(&one.reason.as_str()))?;
    Some(format!("{}: {}", condition.reason, condition.message))
}

/// What has come since; a daemon that counts anew has lost what it had counted.
fn more(now: u64, before: u64) -> u64 {
    if now < before { now } else { now - before }
}

/// The gate. `served`: nodes whose agents are there.
pub(crate) fn health(rollout: &AgentRollout, world: &Seen<'_>, domain: &str, served: &[&(&Node, NodeMark)]) -> Verdict {
    let (mut silent, mut unserved, mut came, mut sum) = (0, None, None, Counted::default());
    for (node, mark) in served {
        let on = name(&node.metadata);
        let (Some(report), Some(now)) = (world.reports.get(on), counted(rollout, world, on)) else {
            silent += 1;
            continue;
        };
        let Some(found) = of(report, domain).filter(|found| found.served) else {
            unserved.get_or_insert(on);
            continue;
        };
        let before = mark.before.unwrap_or(now);
        if world.now - world.asked < TOLD_LATE
            && returns(&now, &before) > u64::from(rollout.spec.gates.podshm.max_returns)
        {
            // Its kubelet may be about to say that it has started it.
            came.get_or_insert(on);
            continue;
        }
        if let Some(what) = excess(&rollout.spec.gates.podshm, found, &now, &before).or_else(|| lasting(found)) {
            return verdict("podshm", VerdictResult::Failed, format!("node {on}: {what}"));
        }
        sum.attach_failures = sum.attach_failures.saturating_add(more(now.attach_failures, before.attach_failures));
        sum.drops = sum.drops.saturating_add(more(now.drops, before.drops));
        sum.leaks = sum.leaks.saturating_add(more(now.leaks, before.leaks));
        sum.shm_percent = sum.shm_percent.max(now.shm_percent);
    }
    let numbers = format!(
        "{} attach failures, {} drops, {} leaks more than before, /dev/shm {} % full at most",
        sum.attach_failures, sum.drops, sum.leaks, sum.shm_percent
    );
    if let Some(node) = came {
        let message = format!("an agent came to node {node} a moment ago, started anew or not; {numbers}");
        return verdict("podshm", VerdictResult::Waiting, message);
    }
    match (silent, unserved) {
        (0, None) => {
            let message = format!("{} node daemons see nothing wrong with domain {domain}: {numbers}", served.len());
            verdict("podshm", VerdictResult::Passed, message)
        }
        (0, Some(node)) => {
            let message = format!("no agent serves domain {domain} on node {node}; {numbers}");
            verdict("podshm", VerdictResult::Waiting, message)
        }
        _ => verdict("podshm", VerdictResult::Waiting, format!("{silent} node daemons have not answered; {numbers}")),
    }
}

/// Agents that have come without having been started anew.
fn returns(now: &Counted, before: &Counted) -> u64 {
    let starts = 1 + more(now.restarts, before.restarts);
    more(now.agents, before.agents).saturating_sub(starts)
}

/// What is more than is allowed, with its numbers.
fn excess(gate: &HealthGate, found: &DomainReport, now: &Counted, before: &Counted) -> Option<String> {
    let counted = [
        ("attach failures", more(now.attach_failures, before.attach_failures), gate.max_attach_failures),
        ("drops", more(now.drops, before.drops), gate.max_drops),
        ("leaks", more(now.leaks, before.leaks), gate.max_leaks),
        ("returns of the agent without a start", returns(now, before), gate.max_returns),
    ];
    if let Some((what, more, most)) = counted.into_iter().find(|(_, more, most)| *more > u64::from(*most)) {
        return Some(format!("{more} {what} more than before, {most} expected at most"));
    }
    let as_it_is = [
        ("clients with old generations", u64::from(found.stale_clients), gate.max_stale_clients),
        ("s of stall", found.stalled_seconds, gate.max_stalled_seconds),
    ];
    if let Some((what, found, most)) = as_it_is.into_iter().find(|(_, found, most)| *found > u64::from(*most)) {
        return Some(format!("{found} {what}, {most} expected at most"));
    }
    let (percent, most) = (now.shm_percent, u64::from(gate.max_shm_percent));
    (percent > most && percent > before.shm_percent).then(|| {
        format!("its /dev/shm is {percent} % full, {most} % expected at most; it was {} % before", before.shm_percent)
    })
}
