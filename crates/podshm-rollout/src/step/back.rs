//! The way back.

use super::{Run, shortened};
use crate::action::{Action, Change};
use crate::moves::{Moves, back};
use crate::nodes::{is_touched, newest, revision_of};
use crate::world::{has_label, has_taint, is_ready, name, phase, unhealthy};
use k8s_openapi::api::core::v1::{Node, Pod};
use podshm_api::clipped;
use podshm_api::rollout::{NodeMark, NodeState, Phase, Purpose};

/// Between why a rollout goes back and what it waits for.
const WAITS: &str = "; waits for: ";

impl Run<'_> {
    /// Workloads first, then label and taint; agents to their former version.
    pub(super) fn roll_back(&mut self) {
        let (rollout, world) = (self.rollout, self.world);
        let before = &self.status.workloads;
        let moves: Vec<Moves> =
            (0..rollout.spec.workloads.len()).map(|index| back(rollout, world, before, index)).collect();
        self.status.workloads = moves.iter().map(|moves| moves.status.clone()).collect();
        self.actions.extend(moves.iter().flat_map(|moves| moves.actions.iter().cloned()));
        if rollout.spec.purpose == Purpose::UpgradeAgents && !self.restore_agents() {
            return;
        }
        let touched: Vec<(String, NodeMark)> = self
            .marks
            .iter()
            .filter(|(_, mark)| is_touched(mark.state) || mark.state == NodeState::Pending)
            .map(|(name, mark)| (name.clone(), mark.clone()))
            .collect();
        // What can't be moved back is given up only where nothing of it needs an agent any more.
        let is_back = moves.iter().all(|moves| moves.actions.is_empty() && moves.waits_for.is_none());
        self.waits(moves.iter().find_map(|moves| moves.waits_for.clone()));
        let blocked = moves.iter().filter(|moves| moves.waits_for.is_some()).find_map(|moves| moves.failure.clone());
        self.blocked(blocked);
        if !is_back {
            // Only where fat pods find no other place does the taint go before they are back.
            if rollout.spec.workloads.iter().any(|one| self.is_stuck(&one.namespace, &one.name)) {
                for (who, _) in &touched {
                    if world.nodes.get(who).is_some_and(|node| has_taint(node, &rollout.spec.mark)) {
                        let name = who.clone();
                        self.actions.push(Action::Node { name, mark: None, label: Change::Keep, taint: Change::Off });
                    }
                }
            }
            return;
        }
        for (who, mark) in touched {
            let reason = "as it was before".to_owned();
            let mark = NodeMark { state: NodeState::RolledBack, reason, since: world.now, ..mark };
            let off = match rollout.spec.purpose {
                Purpose::Convert => Change::Off,
                Purpose::UpgradeAgents => Change::Keep,
            };
            self.actions.push(Action::CleanUp { node: who.clone() });
            self.actions.push(Action::Node { name: who.clone(), mark: Some(mark.clone()), label: off, taint: off });
            self.marks.insert(who, mark);
        }
        let is_clean = |node: &Node| {
            rollout.spec.purpose == Purpose::UpgradeAgents
                || !(has_label(node, &rollout.spec.mark) || has_taint(node, &rollout.spec.mark))
        };
        let mut back = self.marks.iter().filter(|(_, mark)| mark.state == NodeState::RolledBack).map(|(who, _)| who);
        let marked = back.find(|who| world.nodes.get(who).is_some_and(|node| !is_clean(node))).cloned();
        if !self.actions.is_empty() {
            return;
        }
        if let Some(who) = marked {
            let key = &rollout.spec.mark.key;
            return self.waits(Some(format!(
                "label and taint {key} to be off node {who}, where somebody has put them on again"
            )));
        }
        self.status.phase = Phase::RolledBack;
        let lost = moves.iter().filter_map(|moves| moves.failure.clone()).collect::<Vec<_>>().join("; ");
        if !lost.is_empty() {
            self.status.message = shortened(&format!("{}; not moved back: {lost}", self.status.message));
        }
    }

    /// Says what is waited for on the way back, if anything is, beside why it goes back.
    fn waits(&mut self, what: Option<String>) {
        let why = self.status.message.split(WAITS).next().unwrap_or_default().to_owned();
        self.status.message =
            what.map_or(why.clone(), |what| shortened(&format!("{}{WAITS}{what}", clipped(&why, 500))));
    }

    /// Says what no waiting helps against, and the way out.
    fn blocked(&mut self, why: Option<String>) {
        let Some(why) = why else { return };
        let of = name(&self.rollout.metadata);
        let gone = if self.is_deleted() { " and have it gone" } else { "" };
        let out = format!("put that right, or leave all as it is{gone}: podshm rollout abort {of}");
        self.said.push(("WayBackBlocked", "CannotGoBack", format!("{why}; {out}")));
    }

    /// Whether a pod of the fat form finds no place.
    fn is_stuck(&self, namespace: &str, fat: &str) -> bool {
        let Some(fat) = self.world.deployment(namespace, fat) else { return false };
        let is_unschedulable = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            phase(pod) == "Pending"
                && conditions.into_iter().flatten().any(|one| {
                    one.type_ == "PodScheduled"
                        && one.status == "False"
                        && one.reason.as_deref() == Some("Unschedulable")
                })
        };
        self.world.pods_of(fat).all.iter().any(|pod| is_unschedulable(pod))
    }

    /// Whether agents of nodes that were touched are of the version before; the last that were touched come first, as many at once as
    /// `maxUnavailable` says.
    fn restore_agents(&mut self) -> bool {
        let (mut waits, mut left): (Option<String>, Vec<(usize, String)>) = (None, Vec::new());
        let (mut busy, mut gone) = (0, None);
        let mut nodes: Vec<(&String, &NodeMark)> =
            self.marks.iter().filter(|(_, mark)| is_touched(mark.state)).collect();
        nodes.sort_by_key(|(who, mark)| (std::cmp::Reverse(mark.batch), std::cmp::Reverse(*who)));
        for (index, agent) in self.rollout.spec.agents.iter().enumerate() {
            let of = agent.full_name();
            let (Some(set), Some(before)) = (self.world.daemon_set(agent), self.status.agents_before.get(&of)) else {
                continue;
            };
            let revisions = self.world.revisions_of(set);
            if !revisions.iter().any(|one| name(&one.metadata) == before) {
                let why = format!("revision {before} of DaemonSet {of} is gone; set its former template by hand");
                waits.get_or_insert(why.clone());
                gone.get_or_insert(why);
                continue;
            }
            if revisions.last().is_none_or(|last| name(&last.metadata) != before) {
                self.actions.push(Action::Restore { agent: index, revision: before.clone() });
                waits.get_or_insert(format!("DaemonSet {of} to have revision {before} again"));
                continue;
            }
            let hash = newest(self.world, set);
            for (who, _) in &nodes {
                let pods: Vec<&Pod> = self.world.agents_on(set, who);
                if let Some(pod) = pods.iter().find(|pod| revision_of(pod) != hash.as_ref()) {
                    left.push((index, name(&pod.metadata).into()));
                } else if !pods.iter().any(|pod| is_ready(pod)) {
                    waits.get_or_insert(format!("{of} on node {who} to be Ready"));
                    // Where a node is away nothing is to be had by waiting for it with the others.
                    busy += u32::from(self.world.nodes.get(who).is_some_and(|node| unhealthy(node).is_none()));
                }
            }
        }
        if !left.is_empty() {
            waits.get_or_insert(format!("{} agents to be of the version before", left.len()));
        }
        let room = self.rollout.spec.max_unavailable.saturating_sub(busy) as usize;
        for (index, name) in left.into_iter().take(room) {
            let namespace = self.rollout.spec.agents[index].namespace.clone();
            self.actions.push(Action::Replace { namespace, name });
        }
        let is_back = waits.is_none();
        self.blocked(gone);
        self.waits(waits);
        is_back
    }
}
