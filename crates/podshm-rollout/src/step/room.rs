//! Room for pods that are not listed, counted again before nodes of a batch are touched: since it was planned hours may have gone by.

use super::{Run, shortened};
use crate::capacity::{listed, remaining};
use crate::nodes::is_touched;
use podshm_api::rollout::{Phase, Purpose};
use std::collections::BTreeSet;

/// The condition, while it is paused for that and there still is none.
const NO_ROOM: &str = "NoRoom";

impl Run<'_> {
    /// Whether pods that are not listed would have nowhere to go once these nodes, too, have the taint. It pauses then, whatever
    /// `onFailure` says: nothing of this was touched, and what was touched before is well.
    pub(super) fn lacks_room(&mut self, batch: u32, nodes: &[String]) -> bool {
        let Some(why) = self.short_of_room(batch, nodes) else { return false };
        self.status.failures += 1;
        self.status.phase = Phase::Paused;
        self.status.message = shortened(&why);
        self.said.push((NO_ROOM, "NowhereToGo", why));
        true
    }

    /// Until somebody has looked it is said whether that is so still.
    pub(super) fn recall_room(&mut self) {
        let mut kinds = self.status.conditions.iter().map(|one| one.kind.as_str());
        let is_said = self.said.iter().any(|(kind, ..)| *kind == NO_ROOM);
        if self.status.phase != Phase::Paused || is_said || !kinds.any(|kind| kind == NO_ROOM) {
            return;
        }
        let is_open = self.status.history.last().is_some_and(|record| record.ended == 0);
        let (batch, mut nodes) = if is_open { (self.status.batch, self.instead()) } else { self.next_batch() };
        nodes.retain(|node| !self.marks.contains_key(node));
        if let Some(why) = self.short_of_room(batch, &nodes) {
            self.said.push((NO_ROOM, "NowhereToGo", why));
        }
    }

    fn short_of_room(&self, batch: u32, nodes: &[String]) -> Option<String> {
        if self.rollout.spec.purpose != Purpose::Convert {
            return None;
        }
        let touched = self.marks.iter().filter(|(_, mark)| is_touched(mark.state)).map(|(who, _)| who.as_str());
        let tainted: BTreeSet<&str> = touched.chain(nodes.iter().map(String::as_str)).collect();
        let listed = listed(self.rollout, self.world);
        let short = remaining(self.world, &self.rollout.spec.mark, &tainted, &listed).short()?;
        Some(format!(
            "batch {batch} is not begun on {} nodes: {short}; add nodes, have those pods need less or tolerate the taint, leave nodes out \
             (spec.nodes.exclude), or have fewer in spec.batches[{}]; then podshm rollout resume (or rollback, abort)",
            nodes.len(),
            batch.saturating_sub(1)
        ))
    }
}
