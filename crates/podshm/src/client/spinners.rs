//! How many threads of a process may spin at once while they wait: half of its processors, whatever each of them asks for.

use podshm_region::fork;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Those of this process.
static OURS: Spinners = Spinners(AtomicU64::new(0));

/// The upper half: the process that counts (see [`fork::epoch`]); the lower: its threads that spin.
#[derive(Debug)]
struct Spinners(AtomicU64);

/// One of the places; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: &'static Spinners,
    process: u32,
}

/// A place to spin, if there is one left.
pub(super) fn place() -> Option<Place> {
    static MOST: OnceLock<u32> = OnceLock::new();
    let half = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32 / 2).max(1);
    OURS.place(*MOST.get_or_init(half), fork::epoch())
}

impl Spinners {
    fn place(&'static self, most: u32, process: u32) -> Option<Place> {
        // Relaxed: a number, which nothing else goes by.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            // A forked child has none of its parent's threads.
            let spinning = if (word >> 32) as u32 == process { word as u32 } else { 0 };
            (spinning < most).then(|| u64::from(process) << 32 | u64::from(spinning + 1))
        });
        taken.is_ok().then(|| Place { of: self, process })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.of.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            ((word >> 32) as u32 == self.process && word as u32 > 0).then(|| word - 1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_are_places() {
        static SOME: Spinners = Spinners(AtomicU64::new(0));
        let (first, second) = (SOME.place(2, 7), SOME.place(2, 7));
        assert!(first.is_some() && second.is_some() && SOME.place(2, 7).is_none());
        drop(first);
        let third = SOME.place(2, 7);
        assert!(third.is_some() && SOME.place(2, 7).is_none());
        // In a forked child nobody spins yet, and what its parent's threads leave behind there is not its own.
        let childs = SOME.place(1, 8);
        assert!(childs.is_some());
        drop((second, third));
        assert!(SOME.place(1, 8).is_none());
        drop(childs);
        assert!(SOME.place(1, 8).is_some());
    }
}
