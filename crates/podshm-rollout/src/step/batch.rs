//! A batch's beginning: which one is next, which nodes are its, and what is remembered of before.

use super::Run;
use super::edits::brief;
use crate::action::Action;
use crate::batches::{assign, eligible};
use crate::gates::restarts_of;
use crate::nodes::{hash_of, is_worked_on, new_mark, revision_of};
use crate::world::name;
use k8s_openapi::api::apps::v1::ControllerRevision;
use podshm_api::rollout::{BatchRecord, NodeMark, NodeState, Phase, Purpose};
use std::collections::BTreeMap;

impl Run<'_> {
    /// The next batch, if there is one and it may begin.
    pub(super) fn begin_batch(&mut self) -> bool {
        let spec = &self.rollout.spec;
        let is_last = self.status.batch as usize >= spec.batches.len();
        let (number, all) = self.next_batch();
        let new: Vec<String> = all.iter().filter(|node| !self.marks.contains_key(*node)).cloned().collect();
        if is_last && new.is_empty() {
            self.complete();
            return false;
        }
        if spec.gates.approval && spec.approved < number {
            self.status.phase = Phase::AwaitingApproval;
            self.status.message =
                format!("batch {number} waits for spec.approved to be {number} (podshm rollout approve)");
            return false;
        }
        if self.lacks_room(number, &new) {
            return false;
        }
        self.status.phase = Phase::Running;
        self.status.batch = number;
        (self.status.soaking_since, self.status.moved) = (0, 0);
        self.remember_restarts();
        if number == 1 && spec.purpose == Purpose::UpgradeAgents {
            self.remember_agents();
        }
        let as_it_is = spec.batches.get(number as usize - 1).map(brief).unwrap_or_default();
        let began = self.world.now;
        let nodes = all.len() as u32;
        let record = BatchRecord { batch: number, began, nodes, spec: as_it_is, ..BatchRecord::default() };
        self.status.history.push(record);
        true
    }

    /// The next batch and its nodes: the last once more where nodes came midway that belong to it, as a percentage has it.
    pub(super) fn next_batch(&self) -> (u32, Vec<String>) {
        let number = (self.status.batch + 1).min(self.rollout.spec.batches.len() as u32);
        let mut all = assign(self.rollout, self.world, number);
        (number, all.remove(&number).unwrap_or_default())
    }

    pub(super) fn remember_restarts(&mut self) {
        let (rollout, world) = (self.rollout, self.world);
        let mut before = std::mem::take(&mut self.status.workloads);
        self.status.workloads = rollout
            .spec
            .workloads
            .iter()
            .map(|one| {
                let of = one.full_name();
                let place = before.iter().position(|two| two.name == of);
                let mut status = place.map(|place| before.swap_remove(place)).unwrap_or_default();
                let before = restarts_of(rollout, world, &of);
                (status.restarts_before, status.slim_restarts_before) = (before.of_both, before.of_slim);
                status.name = of;
                status
            })
            .collect();
    }

    /// Which versions there were, to go back to.
    fn remember_agents(&mut self) {
        for agent in &self.rollout.spec.agents {
            let Some(set) = self.world.daemon_set(agent) else { continue };
            let revisions = self.world.revisions_of(set);
            let [earlier @ .., _] = revisions.as_slice() else { continue };
            // The one that most nodes run; templates that no pod was ever made of may have come between.
            let mut running: BTreeMap<&String, usize> = BTreeMap::new();
            for node in eligible(self.rollout, self.world) {
                let pods = self.world.agents_on(set, name(&node.metadata));
                pods.into_iter().filter_map(revision_of).for_each(|hash| *running.entry(hash).or_default() += 1);
            }
            let runs = |one: &&&ControllerRevision| hash_of(one).and_then(|hash| running.get(hash)).copied();
            let before = earlier.iter().filter(|one| runs(one).is_some()).max_by_key(runs).or(earlier.last());
            if let Some(before) = before {
                self.status.agents_before.insert(agent.full_name(), name(&before.metadata).into());
            }
        }
    }

    /// Marks nodes of the batch that have no mark yet; none once work has begun.
    pub(super) fn fill_batch(&mut self) {
        let number = self.status.batch;
        let Some(planned) = self.status.history.last().map(|record| record.nodes) else { return };
        let here: Vec<&NodeMark> = self.marks.values().filter(|mark| mark.batch == number).collect();
        let is_begun = here.iter().any(|mark| is_worked_on(mark.state));
        if is_begun || here.len() as u32 >= planned {
            return;
        }
        let all = assign(self.rollout, self.world, number);
        for node in all.get(&number).into_iter().flatten() {
            if !self.marks.contains_key(node) {
                let mark = new_mark(self.rollout, number, NodeState::Pending, "in this batch", self.world.now);
                self.actions.push(Action::mark(node, mark.clone()));
                self.marks.insert(node.clone(), mark);
            }
        }
    }
}
