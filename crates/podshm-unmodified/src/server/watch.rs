//! Once a second: what went without a word, what is to be reaped, how full /dev/shm is.

use super::Loop;
use crate::alert::Crossing;
use crate::answer::now;
use crate::events::Reason;
use crate::native::KernelSegment;
use crate::peer::started;
use crate::place::Mode;
use crate::runs;
use crate::segments::Segment;
use std::time::{Duration, Instant};

/// How long somebody may be connected without asking.
const DAWDLING: Duration = Duration::from_secs(10);

impl Loop {
    pub(super) fn tick(&mut self) {
        self.waiting.retain(|_, waiting| waiting.since.elapsed() < DAWDLING);
        self.end_runs();
        self.memory.store.sweep(now());
        self.reap();
        self.watch_fill();
        self.memory.events.write(&self.place);
    }

    pub(super) fn end_runs(&mut self) {
        for member in runs::ended(&self.place) {
            self.remove_member(&member);
        }
    }

    fn watch_fill(&mut self) {
        let Ok(fill) = self.place.fill() else { return };
        let (domain, percent, level) = (&self.config.name, fill.percent(), self.config.shm_alert_percent);
        match self.alert.look(&fill) {
            Some(Crossing::Rose) => {
                tracing::warn!(
                    domain,
                    percent,
                    level,
                    used = fill.used,
                    size = fill.size,
                    files = fill.inodes_used,
                    of = fill.inodes,
                    "the domain's /dev/shm is filling up; once it is full ftruncate is ENOSPC over the preload, and a touch \
                     is SIGBUS without it: see `podshm ls`, remove what is left with `podshm rm`"
                );
                let message = format!("/dev/shm is past {level} % of its bytes or files; see `podshm ls`");
                self.memory.events.note(Reason::DevShmFilling, "", message);
            }
            Some(Crossing::Fell) => {
                tracing::info!(domain, percent, level, "the domain's /dev/shm has room again");
                let message = format!("/dev/shm is well below {level} % again");
                self.memory.events.note(Reason::DevShmHasRoom, "", message);
            }
            None => {}
        }
    }

    /// Names, ages and, after the domain's grace, removes what nobody will come back to.
    fn reap(&mut self) {
        let Some(grace) = self.config.reap_after else { return };
        if self.config.mode == Mode::Native {
            return self.reap_native(Duration::from_secs(grace));
        }
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
                let message = format!("segment {} with key {:#x}, {} bytes", segment.id, segment.key, segment.size);
                self.memory.events.note(Reason::SegmentReaped, &segment.creator.member, message);
                self.memory.store.remove_by_force(segment.id);
                self.idle_since.remove(&segment.id);
            }
        }
    }

    /// The same for the kernel's segments.
    fn reap_native(&mut self, grace: Duration) {
        let there = match self.place.kernel_segments() {
            Ok(there) => there,
            Err(error) => return tracing::error!(%error, "the domain's segments can't be read"),
        };
        let domain = &self.config.name;
        let (idle, over) = self.native.look(&there, started, Instant::now(), grace);
        for KernelSegment { id, key, size, creator, .. } in idle {
            let grace = grace.as_secs();
            tracing::info!(
                domain,
                id,
                key,
                size,
                pid = creator,
                grace,
                "a segment has neither its creator nor an attachment"
            );
        }
        for KernelSegment { id, key, size, .. } in over {
            match self.place.remove_kernel_segment(id, false) {
                Ok(()) => {
                    tracing::warn!(domain, id, size, "a segment was reaped");
                    let message = format!("segment {id} with key {key:#x}, {size} bytes");
                    self.memory.events.note(Reason::SegmentReaped, "", message);
                }
                Err(why) => tracing::info!(domain, id, %why, "a segment was not reaped"),
            }
        }
    }
}

/// A creator that can't be seen from here counts as alive.
pub(super) fn creator_gone(segment: &Segment) -> bool {
    segment.creator.node_pid != 0 && started(segment.creator.node_pid) != Some(segment.creator.started)
}
