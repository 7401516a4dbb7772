//! One step of a rollout: where it is, and what is to be done.
//!
//! ```text
//!  decide ─► admit ─► go_on ─► batch.rs ─► advance.rs ─► over.rs ─► … ─► Completed
//!    │                  └─ again.rs: failed ─► Paused, and tried again
//!    └─ back.rs, gone.rs: everything back           summary.rs, said.rs: what people read of it
//! ```

mod advance;
mod again;
mod back;
mod batch;
mod compare;
mod edits;
mod gone;
mod over;
mod progress;
mod room;
mod said;
mod small;
mod summary;

use crate::action::Action;
use crate::gates::evaluate;
use crate::nodes::marked;
use crate::plan::plan;
use crate::seen::Seen;
use crate::world::{World, name};
use podshm_api::clipped;
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, NodeMark, Phase, Stop, VerdictResult};
use std::collections::BTreeMap;

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
    run.recall_room();
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
}

/// What a status has room for.
fn shortened(text: &str) -> String {
    clipped(text, 1000)
}
