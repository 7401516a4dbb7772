//! A status in short: counts, and the nodes that somebody should look at.

use super::{Run, small};
use crate::batches::eligible;
use crate::nodes::is_worked_on;
use podshm_api::clipped;
use podshm_api::rollout::{NodeMark, NodeState, NodeSummary};
use std::collections::BTreeMap;

/// Nodes that a status names.
const WORST: usize = 20;

impl Run<'_> {
    /// Counts, and the nodes that somebody should look at.
    pub(super) fn summarize(&mut self) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for mark in self.marks.values() {
            *counts.entry(format!("{:?}", mark.state)).or_default() += 1;
        }
        let done = counts.get("Done").copied().unwrap_or_default();
        let total = eligible(self.rollout, self.world).len();
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
