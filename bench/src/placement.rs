//! How far apart the two cores are at this moment.
//!
//! A host may move a virtual machine's cores about: for some seconds they are two threads of one core (a cache line comes
//! back within a hundred nanoseconds), then they share no cache (four hundred). Ratios differ with it, so each figure is
//! taken together with what the line took just before and just after it:
//!
//! ```text
//!   line ─▶ near │ row is measured │ line ─▶ near     kept, as near
//!   line ─▶ near │ row is measured │ line ─▶ far      thrown away: nobody knows which part was which
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock::Clock;
use crate::machine;

/// Where the cores are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Two threads of one core, or two cores that share a cache.
    Near,
    /// Cores that share no cache.
    Far,
}

/// A bounced line from here on is far. What was seen lies at 60 to 120 ns and at 360 to 830.
const FAR_FROM_NS: f64 = 220.0;

impl Place {
    /// Both, in the order of the report.
    pub const ALL: [Place; 2] = [Place::Near, Place::Far];

    /// The place where a bounced line takes so long.
    pub fn of(line_ns: f64) -> Self {
        if line_ns < FAR_FROM_NS { Self::Near } else { Self::Far }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }
}

/// Bounces timed at once: one reading of the clock would be a fifth of a near one.
const BURST: u64 = 32;
/// Bursts whose median counts: one that is interrupted doesn't matter.
const BURSTS: usize = 65;

/// A cache line between this thread and one on the second core, which sleeps while it isn't asked.
#[derive(Debug)]
pub struct Line {
    turn: Arc<AtomicU64>,
    next: u64,
    order: Sender<u64>,
    ready: Receiver<()>,
}

impl Line {
    /// Starts the thread on core `second`; the caller is on the first.
    pub fn start(second: usize) -> Result<Self> {
        let turn = Arc::new(AtomicU64::new(0));
        let (order, orders) = channel::<u64>();
        let (announce, ready) = channel();
        let theirs = Arc::clone(&turn);
        std::thread::Builder::new().name("line".into()).spawn(move || {
            if machine::pin_to(second).is_err() {
                return;
            }
            while let Ok(from) = orders.recv() {
                if announce.send(()).is_err() {
                    return;
                }
                for bounce in 0..BURST * BURSTS as u64 {
                    let mine = from + 2 * bounce + 1;
                    while theirs.load(Ordering::Acquire) != mine {
                        std::hint::spin_loop();
                    }
                    theirs.store(mine + 1, Ordering::Release);
                }
            }
        })?;
        Ok(Self { turn, next: 0, order, ready })
    }

    /// What a bounce takes now, in ns; 0.2 to 2 ms go by.
    pub fn measure(&mut self) -> Result<f64> {
        let gone = "the thread on the second core is gone: it could not be pinned there";
        self.order.send(self.next).ok().context(gone)?;
        self.ready.recv().context(gone)?;
        let clock = Clock::shared();
        let mut bursts = [0; BURSTS];
        for burst in &mut bursts {
            let start = clock.now();
            for _ in 0..BURST {
                self.turn.store(self.next + 1, Ordering::Release);
                self.next += 2;
                while self.turn.load(Ordering::Acquire) != self.next {
                    std::hint::spin_loop();
                }
            }
            *burst = clock.now() - start;
        }
        bursts.sort_unstable();
        Ok(clock.ns(bursts[BURSTS / 2]) / BURST as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cores;

    #[test]
    fn a_bounced_line_takes_some_time_again_and_again() -> Result<()> {
        let Ok(cores) = Cores::choose() else { return Ok(()) };
        let mut line = Line::start(cores.second)?;
        for _ in 0..3 {
            let ns = line.measure()?;
            assert!(ns > 1.0, "{ns}");
        }
        Ok(())
    }

    #[test]
    fn what_was_seen_is_told_apart() {
        assert!([61.0, 118.0, 190.0].iter().all(|&ns| Place::of(ns) == Place::Near));
        assert!([363.0, 445.0, 825.0].iter().all(|&ns| Place::of(ns) == Place::Far));
    }
}
