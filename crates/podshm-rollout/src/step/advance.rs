//! A batch under way: its nodes and its workloads come further, then all of it is watched.

use super::{Run, shortened};
use crate::action::Action;
use crate::moves::{Moves, forward};
use crate::nodes::{is_converted, is_worked_on, next};
use podshm_api::rollout::{NodeState, VerdictResult};
use std::collections::BTreeSet;

impl Run<'_> {
    /// Every node's next state; why the rollout can't go on, if it can't.
    pub(super) fn advance_nodes(&mut self) -> Option<String> {
        let (rollout, world) = (self.rollout, self.world);
        let mut busy = self.marks.values().filter(|mark| is_worked_on(mark.state)).count() as u32;
        let (mut failed, progressed) = (None, self.progressed());
        let names: Vec<String> = self.marks.keys().cloned().collect();
        for who in names {
            let Some(node) = world.nodes.get(&who) else { continue };
            let mark = self.marks[&who].clone();
            let may_begin = busy < rollout.spec.max_unavailable && mark.batch == self.status.batch;
            if mark.state == NodeState::Failed && !self.is_due(&mark) {
                // Whoever wrote that down may have died before the status said so.
                failed.get_or_insert_with(|| format!("node {who}: {}", mark.reason));
            }
            let advance = next(rollout, world, node, &mark, may_begin, self.going_since(), progressed);
            if advance.mark != mark {
                busy += u32::from(is_worked_on(advance.mark.state) && !is_worked_on(mark.state));
                if advance.mark.state == NodeState::Failed {
                    failed.get_or_insert_with(|| format!("node {who}: {}", advance.mark.reason));
                }
                let writes_itself = advance.actions.iter().any(|action| matches!(action, Action::Node { .. }));
                if !writes_itself {
                    self.actions.push(Action::mark(&who, advance.mark.clone()));
                }
                self.marks.insert(who, advance.mark);
            }
            self.actions.extend(advance.actions);
        }
        failed
    }

    pub(super) fn advance_workloads(&mut self) -> Vec<Moves> {
        let all = self.moves(&self.converted());
        self.actions.extend(all.iter().flat_map(|moves| moves.actions.iter().cloned()));
        all
    }

    /// Nodes that fat pods should leave.
    pub(super) fn converted(&self) -> BTreeSet<String> {
        self.marks.iter().filter(|(_, mark)| is_converted(mark.state)).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn moves(&self, converted: &BTreeSet<String>) -> Vec<Moves> {
        let (rollout, before) = (self.rollout, &self.status.workloads);
        self.world.spent.borrow_mut().clear();
        let all = 0..rollout.spec.workloads.len();
        all.map(|index| forward(rollout, self.world, before, index, converted)).collect()
    }

    pub(super) fn soak(&mut self, moves: &[Moves]) {
        let number = self.status.batch;
        // As nodes have it: what the API server refused to write is done again, and a batch that was over would have nobody do it.
        let here: Vec<Option<NodeState>> = self
            .marks
            .iter()
            .filter(|(_, mark)| mark.batch == number)
            .map(|(name, _)| self.was.get(name).map(|mark| mark.state))
            .collect();
        let count = |state: NodeState| here.iter().filter(|found| **found == Some(state)).count();
        let (skipped, watched) = (count(NodeState::Skipped), count(NodeState::Soaking) + count(NodeState::Done));
        if skipped == here.len() && !here.is_empty() {
            if self.others_instead() {
                return;
            }
            return self.fail(&format!(
                "all {skipped} nodes of batch {number} were unhealthy before they were touched, or were left out, so nothing was tried"
            ));
        }
        let busy = moves.iter().find_map(|moves| moves.waits_for.clone());
        if skipped + watched < here.len() || !moves.iter().all(Moves::is_idle) {
            self.status.soaking_since = 0;
            if let Some(busy) = busy.as_ref().filter(|_| skipped + watched == here.len() && self.is_late()) {
                return self.fail(&format!("after {} s without progress, it waits for: {busy}", self.stood()));
            }
            let nodes = format!("batch {number}: {watched} of {} nodes converted", here.len() - skipped);
            self.status.message = shortened(&busy.map_or(nodes.clone(), |busy| format!("{nodes}; waits for {busy}")));
            return;
        }
        let now = self.world.now;
        if self.status.soaking_since == 0 {
            self.status.soaking_since = now;
        }
        let (soak, passed) = (i64::from(self.rollout.spec.soak_seconds), now - self.status.soaking_since);
        let waiting = self.status.gates.iter().find(|gate| gate.result != VerdictResult::Passed);
        match waiting {
            _ if passed < soak => {
                self.status.message = format!("batch {number} is watched for {} s more", soak - passed);
            }
            Some(gate)
                if now - self.status.soaking_since.max(self.world.led_since)
                    > soak + i64::from(self.rollout.spec.progress_deadline_seconds) =>
            {
                let why = format!("gate {} has no verdict {passed} s after all was moved: {}", gate.gate, gate.message);
                self.fail(&why);
            }
            Some(gate) => {
                self.status.message =
                    shortened(&format!("batch {number} waits for gate {}: {}", gate.gate, gate.message))
            }
            None => self.end_batch(),
        }
    }
}
