//! Once a second: what went without a word, what is to be reaped, how full /dev/shm is.

use super::Loop;
use crate::alert::Crossing;
use crate::answer::now;
use crate::peer::started;
use crate::segments::Segment;
use std::time::{Duration, Instant};

/// How long somebody may be connected without asking.
const DAWDLING: Duration = Duration::from_secs(10);

impl Loop {
    pub(super) fn tick(&mut self) {
        self.waiting.retain(|_, waiting| waiting.since.elapsed() < DAWDLING);
        self.memory.store.sweep(now());
        self.reap();
        self.watch_fill();
    }

    fn watch_fill(&mut self) {
        let Ok(fill) = self.place.fill() else { return };
        let (domain, percent, level) = (&self.config.name, fill.percent(), self.config.shm_alert_percent);
        match self.alert.look(&fill) {
            Some(Crossing::Rose) => tracing::warn!(
                domain,
                percent,
                level,
                used = fill.used,
                size = fill.size,
                files = fill.inodes_used,
                of = fill.inodes,
                "the domain's /dev/shm is filling up; once it is full ftruncate is ENOSPC over the preload, and a touch is \
                 SIGBUS without it: see `podshm ls`, remove what is left with `podshm rm`"
            ),
            Some(Crossing::Fell) => tracing::info!(domain, percent, level, "the domain's /dev/shm has room again"),
            None => {}
        }
    }

    /// Names, ages and, after the domain's grace, removes what nobody will come back to.
    fn reap(&mut self) {
        let Some(grace) = self.config.reap_after else { return };
        let all: Vec<Segment> = self.memory.store.segments().all().cloned().collect();
        self.idle_since.retain(|id, _| all.iter().any(|segment| segment.id == *id));
        for segment in all {
            if !creator_gone(&segment) || self.memory.store.count(segment.id, now()) > 0 {
                self.idle_since.remove(&segment.id);
                continue;
            }
            let since = *self.idle_since.entry(segment.id).or_insert_with(|| {
                let creator = &segment.creator;
                tracing::info!(
                    domain = self.config.name,
                    id = segment.id,
                    key = segment.key,
                    size = segment.size,
                    member = creator.member,
                    pid = creator.pid,
                    grace,
                    "a segment has neither its creator nor an attachment"
                );
                Instant::now()
            });
            if since.elapsed() >= Duration::from_secs(grace) {
                tracing::warn!(domain = self.config.name, id = segment.id, size = segment.size, "a segment was reaped");
                self.memory.store.remove_by_force(segment.id);
                self.idle_since.remove(&segment.id);
            }
        }
    }
}

pub(super) fn creator_gone(segment: &Segment) -> bool {
    started(segment.creator.node_pid) != Some(segment.creator.started)
}
