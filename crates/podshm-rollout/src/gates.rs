//! What gates say.

use crate::health::health;
use crate::nodes::{is_touched, last_words, newest, revision_of};
use crate::seen::Seen;
use crate::world::{is_ready, name, restarts};
use k8s_openapi::api::core::v1::{Node, Pod};
use podshm_api::rollout::{
    AgentRollout, AgentRolloutStatus, NodeMark, NodeState, Purpose, Verdict, VerdictResult, WorkloadStatus,
};
use std::collections::BTreeMap;

/// How long something that was Ready may be not, in seconds: a probe that failed once is no verdict.
const BLINK: i64 = 30;

/// All gates of the batch under way.
pub(crate) fn evaluate(
    rollout: &AgentRollout,
    world: &Seen<'_>,
    marks: &BTreeMap<String, NodeMark>,
    status: &AgentRolloutStatus,
) -> Vec<Verdict> {
    // As they are from this step on.
    let marked: Vec<(&Node, NodeMark)> =
        marks.iter().filter_map(|(who, mark)| Some((world.nodes.get(who)?, mark.clone()))).collect();
    let served: Vec<&(&Node, NodeMark)> = marked
        .iter()
        .filter(|(_, mark)| is_touched(mark.state) && !matches!(mark.state, NodeState::Preparing | NodeState::Failed))
        .collect();
    let mut all = vec![agents(rollout, world, &served)];
    if rollout.spec.gates.verification.is_some() {
        all.push(verification(&marked, status.resumed_at));
    }
    if let Some(domain) = &rollout.spec.domain {
        all.push(health(rollout, world, domain, &served));
    }
    if !rollout.spec.workloads.is_empty() {
        all.push(business(rollout, world, &status.workloads));
    }
    all.extend(world.outside.iter().cloned());
    all
}

pub(crate) fn verdict(gate: &str, result: VerdictResult, message: String) -> Verdict {
    Verdict { gate: gate.into(), result, message }
}

/// Agents are Ready, stay so, and are not started again.
fn agents(rollout: &AgentRollout, world: &Seen<'_>, served: &[&(&Node, NodeMark)]) -> Verdict {
    let most = rollout.spec.gates.max_new_restarts;
    let (mut count, mut worst) = (0, None);
    for agent in &rollout.spec.agents {
        let Some(set) = world.daemon_set(agent) else {
            return verdict(
                "agents",
                VerdictResult::Failed,
                format!("DaemonSet {}/{} is gone", agent.namespace, agent.name),
            );
        };
        let wanted = (rollout.spec.purpose == Purpose::UpgradeAgents).then(|| newest(world, set)).flatten();
        for (node, mark) in served {
            let on = name(&node.metadata);
            let pod = world
                .agents_on(set, on)
                .into_iter()
                .find(|pod| wanted.is_none() || revision_of(pod) == wanted.as_ref());
            let found = match pod {
                None => Some((VerdictResult::Failed, format!("{} has no pod on node {on}", agent.name))),
                Some(pod) if started_again(pod, mark) > most => {
                    let (times, why) = (started_again(pod, mark), ended(pod));
                    let message = format!(
                        "{} on node {on} was started again {times} times, {most} expected at most{why}",
                        agent.name
                    );
                    Some((VerdictResult::Failed, message))
                }
                Some(pod) if !is_ready(pod) => {
                    let since = not_ready_for(pod, world.now);
                    let result = if since > BLINK { VerdictResult::Failed } else { VerdictResult::Waiting };
                    Some((
                        result,
                        format!("{} on node {on} is not Ready for {since} s: {}", agent.name, last_words(pod)),
                    ))
                }
                Some(_) => None,
            };
            count += 1;
            worst = worst.max(found);
        }
    }
    match worst {
        Some((result, message)) => verdict("agents", result, message),
        None if count == 0 => verdict("agents", VerdictResult::Waiting, "no node has its agents yet".into()),
        None => verdict(
            "agents",
            VerdictResult::Passed,
            format!("{count} agents Ready, none started again more than {most} times"),
        ),
    }
}

/// How often since somebody looked at it, or since it came.
fn started_again(pod: &Pod, mark: &NodeMark) -> u32 {
    let seen = pod.metadata.uid.as_ref().and_then(|uid| mark.restarts.get(uid)).copied().unwrap_or_default();
    restarts(pod).saturating_sub(seen)
}

/// How a container ended the last time.
fn ended(pod: &Pod) -> String {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let last = containers.into_iter().flatten().find_map(|one| one.last_state.as_ref()?.terminated.clone());
    last.map_or(String::new(), |last| {
        format!("; the last time: {}, status {}", last.reason.unwrap_or_default(), last.exit_code)
    })
}

fn not_ready_for(pod: &Pod, now: i64) -> i64 {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|one| one.type_ == "Ready");
    let since = ready.and_then(|one| one.last_transition_time.as_ref()).or(pod.metadata.creation_timestamp.as_ref());
    since.map_or(0, |since| now - since.0.as_second())
}

fn verification(marked: &[(&Node, NodeMark)], resumed_at: i64) -> Verdict {
    let is_new = |mark: &NodeMark| mark.state == NodeState::Failed && mark.since > resumed_at;
    let failed = marked.iter().find(|(_, mark)| is_new(mark) && mark.reason.starts_with("verification"));
    if let Some((node, mark)) = failed {
        return verdict(
            "verification",
            VerdictResult::Failed,
            format!("node {}: {}", name(&node.metadata), mark.reason),
        );
    }
    let over = |mark: &NodeMark| matches!(mark.state, NodeState::Migrating | NodeState::Soaking | NodeState::Done);
    let (passed, due) = (
        marked.iter().filter(|(_, mark)| over(mark)).count(),
        marked.iter().filter(|(_, mark)| mark.state != NodeState::Skipped).count(),
    );
    let result = if passed == due { VerdictResult::Passed } else { VerdictResult::Waiting };
    verdict("verification", result, format!("{passed} of {due} nodes verified"))
}

/// Business is as ready as before, and not started again.
fn business(rollout: &AgentRollout, world: &Seen<'_>, workloads: &[WorkloadStatus]) -> Verdict {
    let most = rollout.spec.gates.max_new_restarts;
    let mut waits = None;
    for one in workloads {
        // Fat pods take theirs along when they go, which must not make up for those of slim ones.
        let now = restarts_of(rollout, world, &one.name);
        let of_slim = now.of_slim.saturating_sub(one.slim_restarts_before);
        let more = now.of_both.saturating_sub(one.restarts_before).max(of_slim);
        if more > most {
            let message = format!(
                "containers of {} were started again {more} times since the batch began, {most} expected at most",
                one.name
            );
            return verdict("business", VerdictResult::Failed, message);
        }
        let ready = one.fat_ready + one.slim_ready;
        if ready < one.asked {
            waits = Some(format!("{}: {ready} of {} replicas are Ready", one.name, one.asked));
        }
    }
    match waits {
        Some(message) => verdict("business", VerdictResult::Waiting, message),
        None => verdict(
            "business",
            VerdictResult::Passed,
            format!("{} workloads as ready as was asked for", workloads.len()),
        ),
    }
}

/// Restarts of all pods of a workload.
#[derive(Default)]
pub(crate) struct Restarts {
    pub(crate) of_both: u32,
    pub(crate) of_slim: u32,
}

pub(crate) fn restarts_of(rollout: &AgentRollout, world: &Seen<'_>, of: &str) -> Restarts {
    let Some(one) = rollout.spec.workloads.iter().find(|one| one.full_name() == of) else { return Restarts::default() };
    let of = |form: &str| world.deployment(&one.namespace, form).map_or(0, |form| world.pods_of(form).restarts());
    let of_slim = of(&crate::forms::slim_name(one));
    Restarts { of_both: of(&one.name) + of_slim, of_slim }
}
