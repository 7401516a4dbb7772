//! How long nothing has come any further: `progressDeadlineSeconds`, as a Deployment has it.

use super::Run;
use crate::world::replicas;
use podshm_api::rollout::NodeState;

impl Run<'_> {
    /// When a node or a replica came a step further last, in seconds since 1970. A node's way is in its annotation; replicas are counted.
    /// A failure needs no leaving out: a rollout goes on after one only once it is resumed, and nobody was late before.
    pub(super) fn progressed(&self) -> i64 {
        let on_its_way = self.marks.values().filter(|mark| mark.state != NodeState::Pending);
        on_its_way.map(|mark| mark.since).max().unwrap_or_default().max(self.status.moved_at)
    }

    /// Nobody was late while nobody was at work: a person's pause, and the time without a controller, do not count.
    pub(super) fn going_since(&self) -> i64 {
        self.status.resumed_at.max(self.world.led_since)
    }

    /// How long nothing has come any further, in seconds. A pause makes nobody late.
    pub(super) fn stood(&self) -> i64 {
        self.world.now - self.progressed().max(self.going_since())
    }

    pub(super) fn is_late(&self) -> bool {
        self.stood() > i64::from(self.rollout.spec.progress_deadline_seconds)
    }

    /// Counts replicas that are Ready in the slim form, and those that have left the fat one. Only more than ever in this batch is
    /// progress: a replica that comes and goes is none.
    pub(super) fn count_moved(&mut self) {
        let mut moved = 0;
        for (one, status) in self.rollout.spec.workloads.iter().zip(&self.status.workloads) {
            let fat = self.world.deployment(&one.namespace, &one.name).map_or(status.asked, replicas);
            moved += status.slim_ready.min(status.asked) + status.asked.saturating_sub(fat);
        }
        if moved > self.status.moved {
            (self.status.moved, self.status.moved_at) = (moved, self.world.now);
        }
    }
}
