//! What is changed midway: batches and nodes of the spec, nodes that join and leave.
//!
//! Nodes are dealt to a batch when it begins, out of what there is then: batches that have not begun may be edited, added and left out, and
//! nodes may join and leave. A batch that has begun stays as it was; so do nodes that are touched.

use super::Run;
use crate::action::Action;
use crate::batches::{assign, eligible};
use crate::nodes::is_touched;
use crate::world::name;
use podshm_api::rollout::{Batch, NodeState, Phase};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_64;

/// Why a node of a batch is left alone after all.
const LEFT_OUT: &str = "left out by spec.nodes before it was touched";
/// What a record has of a batch at most, in bytes.
const BRIEF: usize = 100;
/// Nodes that a condition names.
const NAMED: usize = 5;

/// A batch as the spec has it, or a hash where that is long.
pub(super) fn brief(batch: &Batch) -> String {
    let text = serde_json::to_string(batch).unwrap_or_default();
    if text.len() <= BRIEF { text } else { format!("xxh3:{:016x}", xxh3_64(text.as_bytes())) }
}

impl Run<'_> {
    /// Which batch that has begun is not in the spec as it was then, and what to do. Nothing more is begun meanwhile.
    pub(super) fn changed_batch(&mut self) -> Option<String> {
        let batches = &self.rollout.spec.batches;
        let is_other = |number: u32, was: &str| batches.get(number as usize - 1).is_none_or(|now| brief(now) != was);
        let known = self.status.history.iter().filter(|record| record.batch > 0 && !record.spec.is_empty());
        let record = known.into_iter().find(|record| is_other(record.batch, &record.spec))?;
        let (number, was) = (record.batch, record.spec.clone());
        let why = format!(
            "spec.batches[{}] must stay as it was once batch {number} has begun, and was {was}: put it back, or abort or roll back and start \
             another; batches that have not begun may be changed",
            number - 1
        );
        self.said.push(("BatchesChanged", "BatchHasBegun", why.clone()));
        Some(why)
    }

    /// Nodes of the batch under way that spec.nodes leaves out now, and that are not touched, are left alone; and are of it again if it does
    /// not any more.
    pub(super) fn leave_out(&mut self) {
        let wanted: BTreeSet<&str> =
            eligible(self.rollout, self.world).into_iter().map(|node| name(&node.metadata)).collect();
        let open = self.status.history.last().filter(|record| record.ended == 0).map(|record| record.batch);
        for (who, mark) in &mut self.marks {
            let is_wanted = wanted.contains(who.as_str());
            let (state, reason) = match mark.state {
                NodeState::Pending if !is_wanted => (NodeState::Skipped, LEFT_OUT),
                NodeState::Skipped if is_wanted && mark.reason == LEFT_OUT && open == Some(mark.batch) => {
                    (NodeState::Pending, "in this batch again")
                }
                _ => continue,
            };
            (mark.state, mark.reason, mark.since) = (state, reason.into(), self.world.now);
            self.actions.push(Action::mark(who, mark.clone()));
        }
    }

    /// Nodes that somebody may take for others than they are: touched and left out since, and those that no batch takes.
    pub(super) fn classify(&mut self) {
        if self.status.phase.is_over() || matches!(self.status.phase, Phase::Pending | Phase::RollingBack) {
            return;
        }
        let wanted: BTreeSet<&str> =
            eligible(self.rollout, self.world).into_iter().map(|node| name(&node.metadata)).collect();
        let touched = self.marks.iter().filter(|(_, mark)| is_touched(mark.state)).map(|(who, _)| who.as_str());
        let left_out: Vec<&str> = touched.filter(|who| !wanted.contains(who)).collect();
        if !left_out.is_empty() {
            let what = "are left out by spec.nodes and touched already: they go on with the rollout; a rollback takes them back";
            self.said.push((
                "NodesLeftOut",
                "AlreadyTouched",
                format!("{} nodes ({}) {what}", left_out.len(), some(&left_out)),
            ));
        }
        let last = self.rollout.spec.batches.len() as u32;
        let mut all = assign(self.rollout, self.world, (self.status.batch + 1).min(last));
        let apart = all.remove(&0).unwrap_or_default();
        let apart: Vec<&str> = apart.iter().map(String::as_str).collect();
        if !apart.is_empty() {
            let what = "are in no batch, and stay as they are: have spec.batches end with {percent: 100}, or start a rollout of their own after this one";
            self.said.push((
                "NodesInNoBatch",
                "NoBatchTakesThem",
                format!("{} nodes ({}) {what}", apart.len(), some(&apart)),
            ));
        }
    }
}

fn some(names: &[&str]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(NAMED)].join(", "))
}
