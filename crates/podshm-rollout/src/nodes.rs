//! One node's way through a batch.

use crate::action::{Action, Change};
use crate::health::{counted, sick};
use crate::seen::Seen;
use crate::world::{
    World, has_label, has_taint, is_cordoned, is_ready, labels, mark_of, name, phase, restarts, unhealthy,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use podshm_api::rollout::{AgentRef, AgentRollout, NodeMark, NodeState, Purpose};
use std::collections::BTreeMap;

/// Label of a DaemonSet's pods and revisions.
const REVISION: &str = "controller-revision-hash";

/// Why a node waits, if its daemon is the reason.
const SILENT: &str = "its node daemon does not answer";
/// How long it may take until one has been asked at all, in seconds.
const ASKED_WITHIN: i64 = 15;
/// How long one may be silent before its node is skipped, in seconds.
const SILENCE: i64 = 60;

/// What comes next for a node: its annotation afterwards, and what to do.
pub(crate) struct Next {
    pub mark: NodeMark,
    pub actions: Vec<Action>,
}

/// Whether label and taint are on a node by now, or its agents are about to be replaced.
pub(crate) fn is_touched(state: NodeState) -> bool {
    !matches!(state, NodeState::Pending | NodeState::Skipped | NodeState::RolledBack)
}

/// Whether fat pods should leave a node.
pub(crate) fn is_converted(state: NodeState) -> bool {
    matches!(state, NodeState::Migrating | NodeState::Soaking | NodeState::Done)
}

/// Whether it is one of those that `maxUnavailable` counts.
pub(crate) fn is_worked_on(state: NodeState) -> bool {
    matches!(state, NodeState::Preparing | NodeState::AgentReady | NodeState::Verifying | NodeState::Migrating)
}

/// All nodes with a mark of the rollout.
pub(crate) fn marked<'w>(rollout: &AgentRollout, world: &'w World) -> Vec<(&'w Node, NodeMark)> {
    world.nodes.values().filter_map(|node| Some((node, mark_of(node, rollout)?))).collect()
}

/// A mark of the rollout.
pub(crate) fn new_mark(rollout: &AgentRollout, batch: u32, state: NodeState, reason: &str, now: i64) -> NodeMark {
    NodeMark {
        rollout: name(&rollout.metadata).into(),
        uid: rollout.metadata.uid.clone().unwrap_or_default(),
        batch,
        state,
        reason: reason.into(),
        since: now,
        before: None,
        restarts: BTreeMap::new(),
    }
}

/// What a person has undone on a node that was touched.
pub(crate) fn edited(rollout: &AgentRollout, node: &Node) -> Option<String> {
    let mark = &rollout.spec.mark;
    let label = has_label(node, mark);
    let taint = has_taint(node, mark) || rollout.spec.purpose == Purpose::UpgradeAgents;
    let what = match (label, taint) {
        (true, true) => return None,
        (false, true) => "label",
        (true, false) => "taint",
        (false, false) => "label and taint",
    };
    Some(format!(
        "the {what} {}={} was taken off by somebody else; put it back and resume, or roll back",
        mark.key, mark.value
    ))
}

/// A node's next state. `may_begin`: whether an untouched one may be touched now; `going_since`: nobody was late before; `progressed`: when
/// the batch came a step further last.
pub(crate) fn next(
    rollout: &AgentRollout,
    world: &Seen<'_>,
    node: &Node,
    mark: &NodeMark,
    may_begin: bool,
    going_since: i64,
    progressed: i64,
) -> Next {
    let to = |state, reason: String, actions: Vec<Action>| Next {
        mark: NodeMark { state, reason, since: world.now, ..mark.clone() },
        actions,
    };
    let stay = || Next { mark: mark.clone(), actions: Vec::new() };
    let who = name(&node.metadata);
    let spec = &rollout.spec;
    let waited = world.now - mark.since.max(going_since);
    // As a Deployment's: what is slow and goes on is not late.
    let stood = waited.min(world.now - progressed);
    let is_late = stood > i64::from(spec.progress_deadline_seconds);
    let is_watched = is_touched(mark.state) && mark.state != NodeState::Failed;
    if let Some(why) = is_watched.then(|| unhealthy(node).or_else(|| edited(rollout, node))).flatten() {
        return to(NodeState::Failed, why, vec![]);
    }
    match mark.state {
        NodeState::Pending => {
            match unhealthy(node).or_else(|| is_cordoned(node).then(|| "the node is cordoned".into())) {
                Some(why) => to(NodeState::Skipped, format!("before it was touched: {why}"), vec![]),
                None if may_begin => {
                    if let Some(next) = not_heard_of(rollout, world, who, mark) {
                        return next;
                    }
                    if let Some(why) = sick(rollout, world, who) {
                        return to(NodeState::Skipped, format!("before it was touched: {why}"), vec![]);
                    }
                    let mut next = to(NodeState::Preparing, "its agents are to come".into(), vec![]);
                    next.mark.before = counted(rollout, world, who);
                    if spec.purpose == Purpose::Convert {
                        next.actions = vec![convert(who, next.mark.clone())];
                    }
                    next
                }
                None => stay(),
            }
        }
        NodeState::Preparing => {
            let mut actions = Vec::new();
            let missing = spec.agents.iter().find_map(|agent| agent_missing(rollout, world, agent, who, &mut actions));
            match missing {
                None => to(NodeState::AgentReady, "its agents are Ready".into(), actions),
                Some(what) if is_late => {
                    to(NodeState::Failed, format!("after {stood} s without progress: {what}"), actions)
                }
                Some(_) => Next { actions, ..stay() },
            }
        }
        NodeState::AgentReady => match &spec.gates.verification {
            Some(_) => {
                let verify = Action::Verify { node: who.into() };
                to(NodeState::Verifying, "its verification pod runs".into(), vec![verify])
            }
            None => to(NodeState::Migrating, "business moves".into(), vec![]),
        },
        NodeState::Verifying => {
            let timeout = spec.gates.verification.as_ref().map_or(0, |one| one.timeout_seconds);
            match verification(rollout, world, who) {
                Some(pod) if phase(pod) == "Succeeded" => {
                    // It stays until that is written down: it would have to run once more.
                    to(NodeState::Migrating, "verified; business moves".into(), vec![])
                }
                Some(pod) if phase(pod) == "Failed" => {
                    to(NodeState::Failed, format!("verification failed: {}", last_words(pod)), vec![])
                }
                found if waited > i64::from(timeout) => {
                    let state = found.map_or("it was not created".into(), |pod| {
                        format!("it is {}: {}", phase(pod), last_words(pod))
                    });
                    to(NodeState::Failed, format!("verification did not end within {timeout} s; {state}"), vec![])
                }
                Some(_) => stay(),
                None => Next { actions: vec![Action::Verify { node: who.into() }], ..stay() },
            }
        }
        NodeState::Migrating => {
            let verified = verification(rollout, world, who).map(|_| Action::CleanUp { node: who.into() });
            let actions = verified.into_iter().collect();
            match fat_on(rollout, world, who) {
                0 => to(NodeState::Soaking, "watched".into(), actions),
                n if is_late => to(
                    NodeState::Failed,
                    format!("after {stood} s without progress, {n} fat pods are still there"),
                    actions,
                ),
                _ => Next { actions, ..stay() },
            }
        }
        NodeState::Soaking | NodeState::Done | NodeState::Skipped | NodeState::Failed | NodeState::RolledBack => stay(),
    }
}

/// What is to be done about a node that is not touched and whose daemon does not answer, if it does not: it is waited for, then skipped.
fn not_heard_of(rollout: &AgentRollout, world: &Seen<'_>, node: &str, mark: &NodeMark) -> Option<Next> {
    if rollout.spec.domain.is_none() || world.reports.contains_key(node) {
        return None;
    }
    let (now, mark) = (world.now, mark.clone());
    let mark = match mark.reason.as_str() {
        SILENT if now - mark.since <= SILENCE => mark,
        // It is asked from now on.
        _ if now - mark.since <= ASKED_WITHIN => mark,
        SILENT => NodeMark {
            state: NodeState::Skipped,
            reason: format!("before it was touched: {SILENT} for {} s", now - mark.since),
            since: now,
            ..mark
        },
        _ => NodeMark { reason: SILENT.into(), since: now, ..mark },
    };
    Some(Next { mark, actions: Vec::new() })
}

/// Label and taint on, with the annotation.
pub(crate) fn convert(node: &str, mark: NodeMark) -> Action {
    Action::Node { name: node.into(), mark: Some(mark), label: Change::On, taint: Change::On }
}

/// A node's verification pod.
pub(crate) fn verification<'w>(rollout: &AgentRollout, world: &Seen<'w>, node: &str) -> Option<&'w Pod> {
    let uid = rollout.metadata.uid.as_deref();
    world.verifying(node).iter().copied().find(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && pod.metadata.owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid)
    })
}

/// What is wrong with an agent on a node, by name; asks for its replacement where it is of an older version.
fn agent_missing(
    rollout: &AgentRollout,
    world: &Seen<'_>,
    agent: &AgentRef,
    node: &str,
    actions: &mut Vec<Action>,
) -> Option<String> {
    let of = agent.full_name();
    let Some(set) = world.daemon_set(agent) else { return Some(format!("DaemonSet {of} is gone")) };
    let pods: Vec<&Pod> = world.agents_on(set, node);
    let wanted = (rollout.spec.purpose == Purpose::UpgradeAgents).then(|| newest(world, set)).flatten();
    let is_current =
        |pod: &&&Pod| wanted.as_ref().is_none_or(|wanted| labels(&pod.metadata).get(REVISION) == Some(wanted));
    if let Some(old) = pods.iter().find(|pod| !is_current(pod)) {
        actions.push(Action::Replace { namespace: agent.namespace.clone(), name: name(&old.metadata).into() });
        return Some(format!("{of} is of an older version here"));
    }
    match pods.first() {
        None => Some(format!("{of} has no pod here (does it tolerate the taint, and select the label?)")),
        Some(pod) if !is_ready(pod) => Some(format!(
            "{of}: pod {} is not Ready ({}, {} restarts)",
            name(&pod.metadata),
            last_words(pod),
            restarts(pod)
        )),
        Some(_) => None,
    }
}

/// The hash of a DaemonSet's newest revision.
pub(crate) fn newest(world: &World, set: &DaemonSet) -> Option<String> {
    labels(&world.revisions_of(set).last()?.metadata).get(REVISION).cloned()
}

/// The hash of a revision.
pub(crate) fn hash_of(revision: &ControllerRevision) -> Option<&String> {
    labels(&revision.metadata).get(REVISION)
}

/// The hash of a pod's revision.
pub(crate) fn revision_of(pod: &Pod) -> Option<&String> {
    labels(&pod.metadata).get(REVISION)
}

/// Fat pods of listed workloads on a node.
pub(crate) fn fat_on(rollout: &AgentRollout, world: &Seen<'_>, node: &str) -> usize {
    let fat = rollout.spec.workloads.iter().filter_map(|one| world.deployment(&one.namespace, &one.name));
    fat.map(|fat| world.count_on(fat, node)).sum()
}

/// Why a pod is not as it should be, in the cluster's own words.
pub(crate) fn last_words(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let said = containers.into_iter().flatten().find_map(|one| {
        let state = one.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            let message = waiting.message.as_deref().unwrap_or_default();
            return Some(format!("{} {message}", waiting.reason.as_deref().unwrap_or_default()));
        }
        let ended = state.terminated.as_ref()?;
        let message = ended.message.as_deref().unwrap_or_default().trim();
        Some(format!("status {} {message}", ended.exit_code))
    });
    let blocked = || {
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let one = conditions.into_iter().flatten().find(|one| one.type_ == "PodScheduled" && one.status == "False")?;
        one.message.clone()
    };
    let text = said.or_else(blocked).unwrap_or_else(|| format!("phase {}", phase(pod)));
    text.trim().chars().take(200).collect()
}
