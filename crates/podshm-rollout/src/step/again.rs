//! What failed, and what is tried again once somebody has looked.

use super::{Run, shortened};
use crate::action::Action;
use crate::batches::assign;
use crate::nodes::{convert, is_worked_on, new_mark};
use crate::world::{is_cordoned, restarts, unhealthy};
use podshm_api::rollout::{NodeMark, NodeState, OnFailure, Phase, Purpose};
use std::collections::BTreeMap;

/// How many times as many nodes as a batch counts are tried for it, before all that were unhealthy are too many.
const TRIED: usize = 4;

impl Run<'_> {
    /// After somebody has looked: what failed is tried again.
    pub(super) fn resume(&mut self) {
        self.status.phase = Phase::Running;
        self.status.message = "resumed".into();
        (self.status.soaking_since, self.status.moved) = (0, 0);
        self.status.resumed_at = self.world.now;
        self.remember_restarts();
    }

    /// Whether a node waits to be tried again: it failed before somebody looked.
    pub(super) fn is_due(&self, mark: &NodeMark) -> bool {
        mark.state == NodeState::Failed && mark.since <= self.status.resumed_at
    }

    /// Begins anew with nodes that failed before somebody looked, as many at once as `maxUnavailable` says, and looks again at a batch of
    /// which all were skipped. True if there are any: they are to be seen as they are then first.
    pub(super) fn try_again(&mut self) -> bool {
        let busy = self.marks.values().filter(|mark| is_worked_on(mark.state)).count();
        let room = (self.rollout.spec.max_unavailable as usize).saturating_sub(busy);
        let due = self.marks.iter().filter(|(_, mark)| self.is_due(mark));
        let failed: Vec<String> = due.map(|(name, _)| name.clone()).take(room).collect();
        for node in &failed {
            let node = node.clone();
            let was = &self.marks[&node];
            let mut mark = new_mark(self.rollout, was.batch, NodeState::Preparing, "tried again", self.world.now);
            (mark.before, mark.restarts) = (was.before, was.restarts.clone());
            self.actions.push(match self.rollout.spec.purpose {
                Purpose::Convert => convert(&node, mark.clone()),
                Purpose::UpgradeAgents => Action::mark(&node, mark.clone()),
            });
            self.actions.push(Action::CleanUp { node: node.clone() });
            self.marks.insert(node, mark);
        }
        self.look_at_skipped() || !failed.is_empty()
    }

    fn look_at_skipped(&mut self) -> bool {
        let (now, batch, resumed) = (self.world.now, self.status.batch, self.status.resumed_at);
        let is_open = self.status.history.last().is_some_and(|record| record.ended == 0);
        let here = || self.marks.values().filter(|mark| mark.batch == batch);
        if !is_open || !here().all(|mark| mark.state == NodeState::Skipped) {
            return false;
        }
        let mut is_any = false;
        for (who, mark) in self.marks.iter_mut().filter(|(_, mark)| mark.batch == batch && mark.since <= resumed) {
            (mark.state, mark.since) = (NodeState::Pending, now);
            mark.reason = "looked at again".into();
            self.actions.push(Action::mark(who, mark.clone()));
            is_any = true;
        }
        is_any
    }

    /// Where all nodes of a batch that counts were unhealthy, others take their place. True if some do, or would and there is no room.
    pub(super) fn others_instead(&mut self) -> bool {
        let (number, instead) = (self.status.batch, self.instead());
        if instead.is_empty() {
            return false;
        }
        if self.lacks_room(number, &instead) {
            return true;
        }
        for node in &instead {
            let mark = new_mark(self.rollout, number, NodeState::Pending, "instead of one skipped", self.world.now);
            self.actions.push(Action::mark(node, mark.clone()));
            self.marks.insert(node.clone(), mark);
        }
        true
    }

    /// Those others, if that is so.
    pub(super) fn instead(&self) -> Vec<String> {
        let number = self.status.batch;
        let here: Vec<&NodeMark> = self.marks.values().filter(|mark| mark.batch == number).collect();
        let count = self.rollout.spec.batches.get(number.saturating_sub(1) as usize).and_then(|batch| batch.count);
        let Some(count) = count.map(|count| count as usize) else { return Vec::new() };
        if here.is_empty() || here.len() >= count * TRIED || here.iter().any(|mark| mark.state != NodeState::Skipped) {
            return Vec::new();
        }
        let is_well = |node: &&String| {
            let found = self.world.nodes.get(node);
            !self.marks.contains_key(*node) && found.is_some_and(|node| unhealthy(node).is_none() && !is_cordoned(node))
        };
        let all = assign(self.rollout, self.world, number + 1);
        let later = all.range(number + 1..).flat_map(|(_, nodes)| nodes);
        later.filter(is_well).take(count).cloned().collect()
    }

    /// How often agents had been started again when somebody looked: what has been seen fails nothing any more. True if some were written.
    pub(super) fn look_at_restarts(&mut self) -> bool {
        let since = self.status.resumed_at;
        if self.status.restarts_since >= since {
            return false;
        }
        let world = self.world;
        let sets: Vec<_> = self.rollout.spec.agents.iter().filter_map(|agent| world.daemon_set(agent)).collect();
        let mut written = false;
        for (who, mark) in &mut self.marks {
            let pods = sets.iter().flat_map(|set| world.agents_on(set, who));
            let now: BTreeMap<String, u32> = pods
                .filter(|pod| restarts(pod) > 0)
                .filter_map(|pod| Some((pod.metadata.uid.clone()?, restarts(pod))))
                .collect();
            if !now.is_empty() && now != mark.restarts {
                mark.restarts = now;
                self.actions.push(Action::mark(who, mark.clone()));
                written = true;
            }
        }
        if !written {
            self.status.restarts_since = since;
        }
        written
    }

    /// It stops here. Of what this step would have done only that is left which says why.
    pub(super) fn fail(&mut self, why: &str) {
        let says_why = |mark: &NodeMark| matches!(mark.state, NodeState::Failed | NodeState::Skipped);
        self.actions.retain(|one| matches!(one, Action::Node { mark: Some(mark), .. } if says_why(mark)));
        for (who, mark) in self.marks.iter_mut().filter(|(_, mark)| !says_why(mark)) {
            if let Some(was) = self.was.get(who) {
                mark.clone_from(was);
            }
        }
        let was = &self.was;
        self.marks.retain(|who, mark| says_why(mark) || was.contains_key(who));
        self.status.failures += 1;
        match self.rollout.spec.on_failure {
            OnFailure::Pause => {
                self.status.phase = Phase::Paused;
                self.status.message = shortened(&format!("{why} (resume: podshm rollout resume; or rollback, abort)"));
            }
            OnFailure::RollBack => self.turn_back(why),
        }
    }
}
