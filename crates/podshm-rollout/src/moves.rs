//! Replicas of a workload from one form to the other, never fewer Ready than its owner asked for.
//!
//! ```text
//!   fat   5 ████████████▌                 slim grows first, and is Ready; then the fat pods
//!   slim  0             ▐██████████ 5     on converted nodes go, as budgets allow
//! ```

use crate::action::{Action, Asked};
use crate::forms::{slim_form, slim_name};
use crate::seen::Seen;
use crate::world::{adopted, annotation, asked_of, is_ready, labels, name, namespace, node_of, replicas};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use podshm_api::rollout::{AgentRollout, MADE_BY, MADE_BY_UID, TEMPLATE, Workload, WorkloadStatus};
use std::collections::{BTreeMap, BTreeSet};

/// Annotation by which a ReplicaSet takes away pods first.
pub(crate) const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What comes next for a workload.
#[derive(Default)]
pub(crate) struct Moves {
    pub actions: Vec<Action>,
    pub status: WorkloadStatus,
    /// What is waited for; nothing is left to do where there is nothing here, no action and no failure.
    pub waits_for: Option<String>,
    /// Why it can't go on.
    pub failure: Option<String>,
}

impl Moves {
    pub fn is_idle(&self) -> bool {
        self.actions.is_empty() && self.waits_for.is_none() && self.failure.is_none()
    }
}

struct Forms<'w> {
    fat: &'w Deployment,
    slim: Option<&'w Deployment>,
    asked: Asked,
    is_annotated: bool,
    fat_pods: Vec<&'w Pod>,
    slim_pods: Vec<&'w Pod>,
}

/// Moves fat pods off nodes that are converted.
pub(crate) fn forward(
    rollout: &AgentRollout,
    world: &Seen<'_>,
    before: &[WorkloadStatus],
    index: usize,
    converted: &BTreeSet<String>,
) -> Moves {
    let workload = &rollout.spec.workloads[index];
    let (mut moves, forms) = match look(rollout, world, before, workload) {
        Ok(found) => found,
        Err(moves) => return moves,
    };
    let to_move: Vec<&Pod> = forms
        .fat_pods
        .iter()
        .copied()
        .filter(|pod| node_of(pod).is_some_and(|node| converted.contains(node)))
        .collect();
    let Some(slim) = forms.slim else {
        if !to_move.is_empty() {
            moves.actions.push(Action::Slim { workload: index });
        }
        return moves;
    };
    match is_as_wanted(rollout, workload, forms.fat, slim) {
        Ok(true) => {}
        Ok(false) => {
            moves.actions.push(Action::Slim { workload: index });
            return moves;
        }
        Err(why) => {
            moves.failure.get_or_insert(why);
        }
    }
    moves.status.slim_wanted = (replicas(slim) as usize + to_move.len()).min(forms.asked.replicas as usize) as u32;
    if moves.failure.is_some() {
        return moves;
    }
    let (fat, slim_now, asked) = (forms.asked.fat, replicas(slim), forms.asked.replicas);
    let excess = (fat + slim_now).saturating_sub(asked);
    if excess > 0 {
        for pod in &forms.fat_pods {
            let first = node_of(pod).is_some_and(|node| converted.contains(node));
            if first != (annotation(&pod.metadata, COST) == Some("-100")) {
                let (namespace, name) = (namespace(&pod.metadata).into(), name(&pod.metadata).into());
                moves.actions.push(Action::GoesFirst { namespace, name, first });
            }
        }
        if !moves.actions.is_empty() {
            return moves;
        }
        if to_move.is_empty() {
            // They have gone by themselves, and come elsewhere: there is a slim one too many.
            shrink(&mut moves, world, &forms, slim, &forms.slim_pods, excess, |left| scale(slim, left, None));
        } else {
            let most = excess.min(to_move.len() as u32);
            let fat_ = forms.fat;
            let asked = forms.asked.clone();
            shrink(&mut moves, world, &forms, fat_, &to_move, most, |left| {
                scale(fat_, left, Some(Asked { fat: left, ..asked.clone() }))
            });
        }
    } else if !to_move.is_empty() {
        grow(&mut moves, &forms, slim, to_move.len() as u32, |wanted| scale(slim, wanted, None));
    }
    moves
}

/// Moves everything back.
pub(crate) fn back(rollout: &AgentRollout, world: &Seen<'_>, before: &[WorkloadStatus], index: usize) -> Moves {
    let workload = &rollout.spec.workloads[index];
    let (mut moves, forms) = match look(rollout, world, before, workload) {
        Ok((mut moves, forms)) if moves.failure.is_some() => {
            serves_on(&mut moves, &forms.slim_pods);
            return moves;
        }
        Ok(found) => found,
        // Without its fat form there is nothing to go back to.
        Err(mut moves) => {
            let slim = world.deployment(&workload.namespace, &slim_name(workload));
            serves_on(&mut moves, &slim.map(|slim| world.pods_of(slim).all).unwrap_or_default());
            return moves;
        }
    };
    // A slim form may be there before anything was moved: whoever made it may have died then.
    let (fat, slim_now, asked) = (forms.asked.fat, forms.slim.map_or(0, replicas), forms.asked.replicas);
    let excess = (fat + slim_now).saturating_sub(asked);
    let fat_ = forms.fat;
    if fat < asked && excess == 0 {
        let was = forms.asked.clone();
        grow(&mut moves, &forms, fat_, asked - fat, |wanted| {
            scale(fat_, wanted, Some(Asked { fat: wanted, ..was.clone() }))
        });
    } else if let Some(slim) = forms.slim {
        if slim_now > 0 {
            let pods = forms.slim_pods.clone();
            shrink(&mut moves, world, &forms, slim, &pods, excess.min(slim_now), |left| scale(slim, left, None));
        } else if !forms.slim_pods.is_empty() {
            moves.waits_for = Some(format!("{} slim pods of {} to end", forms.slim_pods.len(), moves.status.name));
        } else {
            let (namespace, name) = (workload.namespace.clone(), slim_name(workload));
            moves.actions.push(Action::Remove { namespace, name });
        }
    }
    for pod in forms.fat_pods.iter().filter(|pod| annotation(&pod.metadata, COST) == Some("-100")) {
        let (namespace, name) = (namespace(&pod.metadata).into(), name(&pod.metadata).into());
        moves.actions.push(Action::GoesFirst { namespace, name, first: false });
    }
    moves
}

/// Where a workload can't go back its slim pods serve on, and need the agents: somebody is waited for.
fn serves_on(moves: &mut Moves, slim_pods: &[&Pod]) {
    if let Some(why) = moves.failure.as_ref().filter(|_| !slim_pods.is_empty()) {
        moves.waits_for = Some(format!("{why}; meanwhile its {} slim pods keep their agents", slim_pods.len()));
    }
}

fn look<'w>(
    rollout: &AgentRollout,
    world: &Seen<'w>,
    before: &[WorkloadStatus],
    workload: &Workload,
) -> Result<(Moves, Forms<'w>), Moves> {
    let of = workload.full_name();
    let found = before.iter().find(|one| one.name == of).cloned().unwrap_or_default();
    let mut moves = Moves { status: WorkloadStatus { name: of.clone(), ..found }, ..Moves::default() };
    let Some(fat) = world.deployment(&workload.namespace, &workload.name) else {
        moves.failure = Some(format!("Deployment {of} is gone"));
        return Err(moves);
    };
    let slim = world.deployment(&workload.namespace, &slim_name(workload));
    if let Some(found) = slim.and_then(|slim| others(slim, rollout)) {
        moves.failure = Some(found);
        return Err(moves);
    }
    let asked = asked_of(fat, rollout);
    let is_annotated = asked.is_some();
    let asked = asked.unwrap_or_else(|| adopted(fat, slim, rollout));
    let fat_pods = world.pods_of(fat).all;
    let slim_pods = slim.map(|slim| world.pods_of(slim).all).unwrap_or_default();
    moves.status.asked = asked.replicas;
    moves.status.fat_ready = ready(&fat_pods);
    moves.status.slim_ready = ready(&slim_pods);
    if is_annotated && replicas(fat) != asked.fat {
        moves.failure = Some(format!(
            "somebody scaled {of} to {}; of the {} that were asked for, {} are to be fat now: scale it back to {} and resume",
            replicas(fat),
            asked.replicas,
            asked.fat,
            asked.fat
        ));
    }
    Ok((moves, Forms { fat, slim, asked, is_annotated, fat_pods, slim_pods }))
}

/// Why a Deployment of the slim form's name is not one that this rollout may move; a rollout of the same name before this one is gone.
pub(crate) fn others(slim: &Deployment, rollout: &AgentRollout) -> Option<String> {
    let made_by = labels(&slim.metadata).get(MADE_BY);
    if made_by.map(String::as_str) == Some(name(&rollout.metadata)) {
        return None;
    }
    let (of, by) = (format!("{}/{}", namespace(&slim.metadata), name(&slim.metadata)), name(&rollout.metadata));
    Some(match made_by {
        Some(other) => format!(
            "Deployment {of} is rollout {other}'s, and is left alone: its pods may serve; leave this workload out of {by}, or call this rollout {other} once that one is gone"
        ),
        None => format!(
            "Deployment {of} is nobody's rollout's, and is left alone: its pods may serve; leave this workload out of {by}, or have whoever made it give it another name"
        ),
    })
}

/// Whether the slim form is what its fat one makes it now: its owner may have released another version since.
fn is_as_wanted(
    rollout: &AgentRollout,
    workload: &Workload,
    fat: &Deployment,
    slim: &Deployment,
) -> Result<bool, String> {
    let wanted = slim_form(workload, fat, rollout).map_err(|error| error.to_string())?;
    let is_same = |key: &str| annotation(&wanted.metadata, key) == annotation(&slim.metadata, key);
    Ok(is_same(TEMPLATE) && is_same(MADE_BY_UID))
}

fn ready(pods: &[&Pod]) -> u32 {
    pods.iter().filter(|pod| is_ready(pod)).count() as u32
}

fn scale(of: &Deployment, replicas: u32, asked: Option<Asked>) -> Action {
    let (namespace, name) = (namespace(&of.metadata).into(), name(&of.metadata).into());
    Action::Scale { namespace, name, replicas, asked }
}

/// More of one form, a quarter of all at a time; what was asked for is written down before.
fn grow(moves: &mut Moves, forms: &Forms<'_>, of: &Deployment, missing: u32, to: impl Fn(u32) -> Action) {
    if !forms.is_annotated {
        moves.actions.push(scale(forms.fat, forms.asked.fat, Some(forms.asked.clone())));
        return;
    }
    // What was begun is to be over: pods that a ReplicaSet has not taken away yet would be counted twice.
    for (form, pods) in [(Some(forms.fat), &forms.fat_pods), (forms.slim, &forms.slim_pods)] {
        if let Some(form) = form.filter(|form| replicas(form) as usize != pods.len()) {
            moves.waits_for =
                Some(format!("{} to have {} pods; it has {}", name(&form.metadata), replicas(form), pods.len()));
            return;
        }
    }
    let surge = (forms.asked.replicas / 4).max(1);
    moves.actions.push(to(replicas(of) + missing.min(surge)));
}

/// Fewer of one form: as many as are Ready beyond what was asked for, and as budgets allow.
fn shrink<'w>(
    moves: &mut Moves,
    world: &Seen<'w>,
    forms: &Forms<'_>,
    of: &Deployment,
    going: &[&Pod],
    most: u32,
    to: impl Fn(u32) -> Action,
) {
    let ready = ready(&forms.fat_pods) + ready(&forms.slim_pods);
    let asked = forms.asked.replicas;
    let spare = ready.saturating_sub(asked);
    if spare == 0 {
        moves.waits_for = Some(format!(
            "{ready} of {asked} replicas of {} are Ready; one more is to be, before one goes",
            moves.status.name
        ));
        return;
    }
    let mut allowed = most.min(spare);
    let budgets: BTreeMap<_, _> = going
        .iter()
        .flat_map(|pod| world.budgets_of(namespace(&pod.metadata), labels(&pod.metadata)))
        .map(|budget| ((namespace(&budget.metadata), name(&budget.metadata)), budget))
        .collect();
    let mut spent = world.spent.borrow_mut();
    for (key, budget) in &budgets {
        let left = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0).max(0) as u32;
        let left = left.saturating_sub(spent.get(key).copied().unwrap_or_default());
        if left == 0 {
            moves.waits_for =
                Some(format!("PodDisruptionBudget {} allows no disruption of {} now", key.1, moves.status.name));
        }
        allowed = allowed.min(left);
    }
    budgets.into_keys().for_each(|key| *spent.entry(key).or_default() += allowed);
    drop(spent);
    if allowed > 0 {
        moves.actions.push(to(replicas(of).saturating_sub(allowed)));
    }
}
