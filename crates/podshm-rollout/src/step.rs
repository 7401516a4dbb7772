//! One step of a rollout: where it is, and what is to be done.

mod again;
mod back;
mod compare;
mod edits;
mod gone;
mod progress;
mod said;
mod small;

use crate::action::{Action, Change};
use crate::batches::{assign, eligible};
use crate::gates::{evaluate, restarts_of};
use crate::moves::{Moves, forward};
use crate::nodes::{hash_of, is_converted, is_touched, is_worked_on, marked, new_mark, next, revision_of};
use crate::plan::plan;
use crate::seen::Seen;
use crate::world::{World, has_taint, name};
use k8s_openapi::api::apps::v1::ControllerRevision;
use podshm_api::clipped;
use podshm_api::rollout::{
    AgentRollout, AgentRolloutStatus, BatchRecord, NodeMark, NodeState, NodeSummary, Phase, Purpose, Stop,
    VerdictResult,
};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that a status names.
const WORST: usize = 20;

/// Where a rollout is, and what is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status from now on.
    pub status: AgentRolloutStatus,
    /// May be done in part, or twice: the next step sees what was done.
    pub actions: Vec<Action>,
}

/// Looks at the cluster and decides.
pub fn step(rollout: &AgentRollout, world: &World) -> Step {
    let seen = Seen::of(world);
    let marks: BTreeMap<String, NodeMark> =
        marked(rollout, world).into_iter().map(|(node, mark)| (name(&node.metadata).to_owned(), mark)).collect();
    let mut run = Run {
        rollout,
        world: &seen,
        status: rollout.status.clone().unwrap_or_default(),
        actions: Vec::new(),
        was: marks.clone(),
        marks,
        said: Vec::new(),
    };
    run.decide();
    run.let_go();
    run.summarize();
    run.classify();
    run.say();
    Step { status: run.status, actions: run.actions }
}

struct Run<'r> {
    rollout: &'r AgentRollout,
    world: &'r Seen<'r>,
    status: AgentRolloutStatus,
    actions: Vec<Action>,
    /// As nodes have them.
    was: BTreeMap<String, NodeMark>,
    /// As this step changes them.
    marks: BTreeMap<String, NodeMark>,
    /// What somebody should know: kinds of conditions, reasons and messages.
    said: Vec<(&'static str, &'static str, String)>,
}

impl Run<'_> {
    fn decide(&mut self) {
        let spec = &self.rollout.spec;
        let generation = self.rollout.metadata.generation.unwrap_or_default();
        if self.is_deleted() {
            self.status.observed_generation = generation;
            return self.leave();
        }
        if self.status.phase == Phase::Refused && self.status.observed_generation != generation {
            self.status = AgentRolloutStatus::default();
        }
        self.status.observed_generation = generation;
        if self.status.phase.is_over() {
            return;
        }
        if self.status.phase == Phase::Pending && !self.admit() {
            return;
        }
        if spec.stop != Some(Stop::Abort) && !self.is_held() {
            // Nothing is touched before it is seen to be there.
            return self.actions.push(Action::Hold);
        }
        match spec.stop {
            Some(Stop::Abort) => return self.abort(),
            Some(Stop::RollBack) if self.status.phase != Phase::RollingBack => self.turn_back("as spec.stop says"),
            _ => {}
        }
        if self.status.phase == Phase::RollingBack {
            return self.roll_back();
        }
        let looked_at = spec.resumed_failures >= self.status.failures;
        let by_hand = spec.paused.then(|| "paused by spec.paused; what was begun is left as it is".to_owned());
        if let Some(why) = self.changed_batch().or(by_hand) {
            // Why it failed is said until somebody has looked.
            if self.status.phase != Phase::Paused || looked_at {
                self.status.phase = Phase::Paused;
                self.status.message = shortened(&why);
            }
            return;
        }
        match self.status.phase {
            Phase::Paused if !looked_at => return,
            Phase::Paused => self.resume(),
            _ => {}
        }
        self.go_on();
    }

    /// Whether it may begin. What it needs is looked at once, before anything is touched.
    fn admit(&mut self) -> bool {
        if !self.marks.is_empty() {
            // It has begun, and whoever began it died before the status said so.
            self.status.phase = Phase::Running;
            return true;
        }
        let plan = plan(self.rollout, self.world);
        if plan.refusals.is_empty() {
            self.status.phase = Phase::Running;
            return true;
        }
        let all: Vec<String> =
            plan.refusals.iter().take(5).map(|one| format!("{}: {}", one.about, one.message)).collect();
        self.status.phase = Phase::Refused;
        self.status.message = shortened(&all.join("; "));
        false
    }

    /// Nodes of batches that are over are done. Whoever ended the batch may have died before it wrote that down.
    fn settle(&mut self) {
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

    fn go_on(&mut self) {
        if self.look_at_restarts() || self.try_again() {
            return;
        }
        self.settle();
        self.leave_out();
        let is_between = self.status.history.last().is_none_or(|record| record.ended != 0);
        if is_between {
            // What is done is watched while somebody is waited for, and before more is begun.
            if let Some(why) = self.watch() {
                return self.fail(&why);
            }
            if !self.begin_batch() {
                return;
            }
        }
        if self.count_anew() {
            return;
        }
        self.fill_batch();
        let converted = self.converted();
        let failed = self.advance_nodes();
        let moves = self.advance_workloads();
        self.status.workloads = moves.iter().map(|moves| moves.status.clone()).collect();
        self.count_moved();
        self.status.gates = small::brief(evaluate(self.rollout, self.world, &self.marks, &self.status));
        let gate = self.failed_gate();
        let moving = moves.iter().find_map(|moves| moves.failure.clone());
        // A node that is late is so for a reason.
        let waits = failed.as_ref().and_then(|_| self.moves(&converted).into_iter().find_map(|moves| moves.waits_for));
        let failed = failed.map(|why| waits.map_or(why.clone(), |waits| format!("{why}; it waits for: {waits}")));
        if let Some(why) = failed.or(gate).or(moving) {
            return self.fail(&why);
        }
        self.soak(&moves);
    }

    /// What is wrong with the batches before, between two of them.
    fn watch(&mut self) -> Option<String> {
        // Once all are over the taint goes, which is not somebody else's doing.
        if self.marks.is_empty() || self.status.batch as usize >= self.rollout.spec.batches.len() {
            return None;
        }
        let failed = self.advance_nodes();
        self.status.gates = small::brief(evaluate(self.rollout, self.world, &self.marks, &self.status));
        failed.or(self.failed_gate())
    }

    fn failed_gate(&self) -> Option<String> {
        let gate = self.status.gates.iter().find(|one| one.result == VerdictResult::Failed)?;
        Some(format!("gate {}: {}", gate.gate, gate.message))
    }

    /// The next batch, if there is one and it may begin.
    fn begin_batch(&mut self) -> bool {
        let spec = &self.rollout.spec;
        let last = spec.batches.len() as u32;
        let mut number = self.status.batch + 1;
        if number > last {
            // Nodes that came midway and belong to the last batch, as a percentage has it.
            let all = assign(self.rollout, self.world, last);
            let came = all.get(&last).into_iter().flatten().filter(|node| !self.marks.contains_key(*node)).count();
            if came == 0 {
                self.complete();
                return false;
            }
            number = last;
        }
        if spec.gates.approval && spec.approved < number {
            self.status.phase = Phase::AwaitingApproval;
            self.status.message =
                format!("batch {number} waits for spec.approved to be {number} (podshm rollout approve)");
            return false;
        }
        let all = assign(self.rollout, self.world, number);
        let nodes = all.get(&number).map_or(0, Vec::len) as u32;
        self.status.phase = Phase::Running;
        self.status.batch = number;
        (self.status.soaking_since, self.status.moved) = (0, 0);
        self.remember_restarts();
        if number == 1 && spec.purpose == Purpose::UpgradeAgents {
            self.remember_agents();
        }
        let as_it_is = spec.batches.get(number as usize - 1).map(edits::brief).unwrap_or_default();
        let began = self.world.now;
        let record = BatchRecord { batch: number, began, nodes, spec: as_it_is, ..BatchRecord::default() };
        self.status.history.push(record);
        true
    }

    fn remember_restarts(&mut self) {
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
    fn fill_batch(&mut self) {
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

    /// Every node's next state; why the rollout can't go on, if it can't.
    fn advance_nodes(&mut self) -> Option<String> {
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

    /// Nobody was late while nobody was at work: a person's pause, and the time without a controller, do not count.
    fn going_since(&self) -> i64 {
        self.status.resumed_at.max(self.world.led_since)
    }

    fn advance_workloads(&mut self) -> Vec<Moves> {
        let all = self.moves(&self.converted());
        self.actions.extend(all.iter().flat_map(|moves| moves.actions.iter().cloned()));
        all
    }

    /// Nodes that fat pods should leave.
    fn converted(&self) -> BTreeSet<String> {
        self.marks.iter().filter(|(_, mark)| is_converted(mark.state)).map(|(name, _)| name.clone()).collect()
    }

    fn moves(&self, converted: &BTreeSet<String>) -> Vec<Moves> {
        let (rollout, before) = (self.rollout, &self.status.workloads);
        self.world.spent.borrow_mut().clear();
        let all = 0..rollout.spec.workloads.len();
        all.map(|index| forward(rollout, self.world, before, index, converted)).collect()
    }

    fn soak(&mut self, moves: &[Moves]) {
        let number = self.status.batch;
        let here: Vec<(String, NodeMark)> = self
            .marks
            .iter()
            .filter(|(_, mark)| mark.batch == number)
            .map(|(name, mark)| (name.clone(), mark.clone()))
            .collect();
        let count = |state: NodeState| here.iter().filter(|(_, mark)| mark.state == state).count();
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

    fn end_batch(&mut self) {
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
    fn complete(&mut self) {
        let mark = &self.rollout.spec.mark;
        if self.rollout.spec.purpose == Purpose::Convert {
            for (who, node) in &self.world.nodes {
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

    fn turn_back(&mut self, why: &str) {
        self.status.phase = Phase::RollingBack;
        self.status.message = shortened(&format!("rolled back: {why}"));
        let slim = self.status.workloads.iter().map(|one| one.slim_ready).sum();
        self.close_record(&format!("rolled back: {why}"), slim);
    }

    fn abort(&mut self) {
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

    /// Counts, and the nodes that somebody should look at.
    fn summarize(&mut self) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for mark in self.marks.values() {
            *counts.entry(format!("{:?}", mark.state)).or_default() += 1;
        }
        let done = counts.get("Done").copied().unwrap_or_default();
        let total = crate::batches::eligible(self.rollout, self.world).len();
        self.status.nodes_done = format!("{done}/{total}");
        self.status.progress = format!("{}/{}", self.status.batch, self.rollout.spec.batches.len());
        self.status.nodes = counts;
        let weight = |state: NodeState| match state {
            NodeState::Failed => 0,
            NodeState::Skipped => 1,
            _ if is_worked_on(state) => 2,
            _ => 3,
        };
        let mut worst: Vec<(&String, &NodeMark)> =
            self.marks.iter().filter(|(_, mark)| weight(mark.state) < 3).collect();
        worst.sort_by_key(|(who, mark)| (weight(mark.state), mark.since, (*who).clone()));
        let summary = |(who, mark): (&String, &NodeMark)| NodeSummary {
            name: who.clone(),
            state: mark.state,
            reason: clipped(&mark.reason, 200),
        };
        self.status.worst = worst.into_iter().take(WORST).map(summary).collect();
        small::kept(&mut self.status.history);
    }
}

/// What a status has room for.
fn shortened(text: &str) -> String {
    clipped(text, 1000)
}
