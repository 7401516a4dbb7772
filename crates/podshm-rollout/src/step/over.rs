//! What is over: a batch, all of them, or the way forward.

use super::{Run, shortened};
use crate::action::{Action, Change};
use crate::batches::assign;
use crate::nodes::is_touched;
use crate::world::has_taint;
use podshm_api::rollout::{NodeMark, NodeState, Phase, Purpose};
use std::collections::BTreeSet;

impl Run<'_> {
    /// Nodes of batches that are over are done. Whoever ended the batch may have died before it wrote that down.
    pub(super) fn settle(&mut self) {
        let over: BTreeSet<u32> =
            self.status.history.iter().filter(|record| record.ended != 0).map(|record| record.batch).collect();
        let open = self.status.history.iter().find(|record| record.ended == 0).map(|record| record.batch);
        let is_due = |mark: &NodeMark| {
            mark.state == NodeState::Soaking && over.contains(&mark.batch) && open != Some(mark.batch)
        };
        for (who, mark) in self.marks.iter_mut().filter(|(_, mark)| is_due(mark)) {
            (mark.state, mark.since) = (NodeState::Done, self.world.now);
            mark.reason = "all gates passed".into();
            self.actions.push(Action::mark(who, mark.clone()));
        }
    }

    pub(super) fn end_batch(&mut self) {
        let slim = self.status.workloads.iter().map(|one| one.slim_ready).sum();
        self.close_record("passed", slim);
        self.settle();
        self.status.message = format!("batch {} passed all its gates", self.status.batch);
        self.status.soaking_since = 0;
    }

    fn close_record(&mut self, outcome: &str, slim: u32) {
        let (now, gates) = (self.world.now, self.status.gates.clone());
        if let Some(record) = self.status.history.last_mut().filter(|record| record.ended == 0) {
            (record.ended, record.outcome, record.slim) = (now.max(1), shortened(outcome), slim);
            record.gates = gates;
        }
    }

    /// All batches are done: the taint goes, the label stays.
    pub(super) fn complete(&mut self) {
        let mark = &self.rollout.spec.mark;
        if self.rollout.spec.purpose == Purpose::Convert {
            for (who, node) in self.world.nodes.iter() {
                if self.marks.get(who).is_some_and(|mark| is_touched(mark.state)) && has_taint(node, mark) {
                    let name = who.clone();
                    self.actions.push(Action::Node { name, mark: None, label: Change::Keep, taint: Change::Off });
                }
            }
            if !self.actions.is_empty() {
                self.status.message = "all batches are done; the taint goes".into();
                return;
            }
        } else if !self.actions.is_empty() {
            return;
        }
        self.status.phase = Phase::Completed;
        let done = self.marks.values().filter(|mark| mark.state == NodeState::Done).count();
        self.status.message = format!("{done} nodes are converted; {} were skipped", self.marks.len() - done);
        if self.rollout.spec.purpose == Purpose::UpgradeAgents {
            self.status.message =
                format!("agents of {done} nodes are of the newest version; {} were skipped", self.marks.len() - done);
        }
        let all = assign(self.rollout, self.world, u32::MAX);
        let apart = all.get(&0).into_iter().flatten().collect::<Vec<_>>();
        if let Some(first) = apart.first() {
            let n = apart.len();
            self.status.message += &format!(
                "; {n} nodes are in no batch and stay as they are ({first}, …): a rollout of their own converts them"
            );
        }
    }

    pub(super) fn turn_back(&mut self, why: &str) {
        self.status.phase = Phase::RollingBack;
        self.status.message = shortened(&format!("rolled back: {why}"));
        let slim = self.status.workloads.iter().map(|one| one.slim_ready).sum();
        self.close_record(&format!("rolled back: {why}"), slim);
    }

    pub(super) fn abort(&mut self) {
        for (who, mark) in &self.marks {
            if matches!(mark.state, NodeState::Verifying | NodeState::Failed) {
                self.actions.push(Action::CleanUp { node: who.clone() });
            }
        }
        let slim = self.status.workloads.iter().map(|one| one.slim_ready).sum();
        self.close_record("aborted", slim);
        self.status.phase = Phase::Aborted;
        self.status.message = "aborted by spec.stop; nodes and workloads stay as they are".into();
    }
}
