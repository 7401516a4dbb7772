//! What happened in a domain that somebody should hear of. Kept beside it, so that it outlives the daemon: for `podshm events`, and
//! for whoever tells a cluster of it.
//!
//! The same once more is counted, not listed again, and the oldest go first: a member can fill nothing with them.

use crate::place::Place;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;

/// Kept at most.
pub const MOST: usize = 256;
/// Between two writes of the daemon.
const PENDING: usize = 64;

/// What happened, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// `auto` found no native mode here.
    ModeFellBack,
    /// A member could not be started.
    MemberNotStarted,
    /// A System V call that did not come through the library was refused.
    NativeCallRefused,
    /// A segment was not made: the domain's limits are reached.
    SegmentRefused,
    /// /dev/shm has filled past its level.
    DevShmFilling,
    /// /dev/shm is well below its level again.
    DevShmHasRoom,
    /// A segment that nobody came back to was removed.
    SegmentReaped,
    /// A POSIX object that nobody came back to was removed.
    ObjectReaped,
}

impl Reason {
    /// Whether somebody should do something about it.
    pub fn is_warning(self) -> bool {
        self != Reason::DevShmHasRoom
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What.
    pub reason: Reason,
    /// Whose; empty where it is the domain's.
    pub member: String,
    /// In words.
    pub message: String,
    /// How often.
    pub count: u64,
    /// The first time, in seconds since 1970.
    pub first: i64,
    /// The last time.
    pub last: i64,
}

impl Event {
    /// Once, now.
    pub fn now(reason: Reason, member: &str, message: String) -> Self {
        let now = crate::answer::now();
        Event { reason, member: member.to_owned(), message, count: 1, first: now, last: now }
    }

    fn is(&self, other: &Event) -> bool {
        (self.reason, &self.member, &self.message) == (other.reason, &other.member, &other.message)
    }
}

/// A domain's, the latest last; what can't be read is left out.
pub fn read(place: &Place) -> io::Result<Vec<Event>> {
    match fs::read_to_string(place.path("events")) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds to a domain's. The daemon and `podshm run` may do so at once.
pub fn record(place: &Place, new: impl IntoIterator<Item = Event>) -> io::Result<()> {
    let directory = File::open(place.path(""))?;
    flock(&directory, FlockOperation::LockExclusive)?;
    let all = merge(read(place)?, new);
    let mut text = String::new();
    for event in all {
        text.push_str(&serde_json::to_string(&event)?);
        text.push('\n');
    }
    let next = place.path("events.next");
    fs::write(&next, text)?;
    fs::rename(next, place.path("events"))
}

fn merge(mut all: Vec<Event>, new: impl IntoIterator<Item = Event>) -> Vec<Event> {
    for mut event in new {
        if let Some(index) = all.iter().position(|known| known.is(&event)) {
            let known = all.remove(index);
            event = Event { count: known.count + event.count, first: known.first, ..event };
        }
        all.push(event);
    }
    all.drain(..all.len().saturating_sub(MOST));
    all
}

/// What the daemon has not written yet: members can bring about many, and each write takes a while.
#[derive(Debug, Default)]
pub struct Pending(BTreeMap<(Reason, String), Vec<Event>>);

impl Pending {
    /// Notes one; true if it is the first of its kind since the last write, and so worth a line in the log.
    pub fn note(&mut self, reason: Reason, member: &str, message: String) -> bool {
        let noted: usize = self.0.values().map(Vec::len).sum();
        let event = Event::now(reason, member, message);
        let alike = self.0.entry((reason, member.to_owned())).or_default();
        match alike.iter_mut().find(|known| known.is(&event)) {
            Some(known) => {
                (known.count, known.last) = (known.count + 1, event.last);
                false
            }
            None if noted >= PENDING => false,
            None => {
                alike.push(event);
                true
            }
        }
    }

    /// Writes them down.
    pub fn write(&mut self, place: &Place) {
        if self.0.is_empty() {
            return;
        }
        if let Err(error) = record(place, std::mem::take(&mut self.0).into_values().flatten()) {
            tracing::error!(%error, "events could not be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str, at: i64) -> Event {
        Event { first: at, last: at, ..Event::now(Reason::SegmentRefused, "m", message.to_owned()) }
    }

    #[test]
    fn the_same_again_is_counted_and_the_oldest_go() {
        let all = merge(vec![event("a", 1), event("b", 2)], [event("a", 3), event("a", 4)]);
        assert_eq!(all, [event("b", 2), Event { count: 3, first: 1, ..event("a", 4) }]);
        let all = merge(all, (0..MOST as i64).map(|n| event(&n.to_string(), n)));
        assert_eq!((all.len(), &*all[0].message), (MOST, "0"));
    }

    #[test]
    fn a_member_that_brings_about_many_is_bounded() {
        let mut pending = Pending::default();
        assert!(pending.note(Reason::SegmentRefused, "m", "full".into()));
        assert!(!pending.note(Reason::SegmentRefused, "m", "full".into()), "said already");
        let noted = (0..1000).filter(|n| pending.note(Reason::NativeCallRefused, "m", n.to_string())).count();
        assert_eq!(noted, PENDING - 1);
        assert_eq!(pending.0[&(Reason::SegmentRefused, "m".to_owned())][0].count, 2);
    }
}
