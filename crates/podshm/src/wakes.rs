//! Wakes through a doorbell, counted so that no peer can keep its neighbour in system calls.
//!
//! ```text
//!  listening ── a wake costs a token; progress and time give tokens back ──► none left: silenced
//!      ▲                                                                        │ polled: after 2 ms, 4, … 64, and
//!      └── after .1 s, .2 s, … 12.8 s with each silence that follows soon ──────┘ 2 again when something was there
//! ```
//! An honest peer rings once for each time that its neighbour went to sleep, with something to be found, so its tokens never run
//! out. Time is passed in, in nanoseconds.

use rustix::net::{RecvFlags, recv};
use std::os::fd::AsFd;

const MS: u64 = 1_000_000;
/// Tokens at most, and at the start.
pub(crate) const BURST: u64 = 256;
/// Tokens after a silence.
pub(crate) const PROBE: u64 = 16;
/// A token for every so much time: 100 useless wakes a second are nobody's burden.
pub(crate) const REFILL: u64 = 10 * MS;
const FIRST_PAUSE: u64 = 2 * MS;
const MOST_PAUSE: u64 = 64 * MS;
const FIRST_SILENCE: u64 = 100 * MS;
/// Silences double so often at most.
const MOST_STRIKES: u32 = 7;
/// A silence that comes so long after the last one is a first one again.
const FORGIVEN: u64 = 10_000 * MS;

/// What a participant was woken by so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakeStats {
    /// Looks at doorbells and broker: one epoll_wait or poll each.
    pub looks: u64,
    /// Wakes through doorbells, hang-ups among them.
    pub rung: u64,
    /// How often a peer rang so much for nothing that its doorbell was left alone for a while.
    pub silenced: u64,
    /// Looks at peers that are polled instead.
    pub polls: u64,
    /// An agent's clients whose process was dead while somebody kept its sockets open.
    pub held_open: u64,
}

/// Takes some of what the doorbell holds: one system call, whatever the peer does. More is another wake.
pub(crate) fn hear(doorbell: impl AsFd) {
    let _ = recv(doorbell, &mut [0u8; 512][..], RecvFlags::DONTWAIT);
}

/// Takes what a doorbell can hold.
pub(crate) fn empty(doorbell: impl AsFd) {
    let mut bytes = [0u8; 4096];
    for _ in 0..64 {
        if !recv(&doorbell, &mut bytes[..], RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {
            return;
        }
    }
}

/// What is known of one peer's wakes.
#[derive(Debug)]
pub(crate) struct Wakes {
    tokens: u64,
    /// Time up to which tokens were given.
    paid: u64,
    /// Progress for which tokens were given.
    progress: u64,
    silence: Option<Silence>,
    strikes: u32,
    listens_since: u64,
}

#[derive(Debug)]
struct Silence {
    next_look: u64,
    pause: u64,
    until: u64,
}

impl Wakes {
    pub(crate) fn new(now: u64) -> Self {
        Wakes { tokens: BURST, paid: now, progress: 0, silence: None, strikes: 0, listens_since: now }
    }

    /// A wake has come; there was progress `progress` times so far. Says whether to go on listening; if not, the peer is polled:
    /// [`Wakes::next_look`], [`Wakes::looked`].
    pub(crate) fn rung(&mut self, now: u64, progress: u64) -> bool {
        if self.silence.is_some() {
            return false;
        }
        let refills = now.saturating_sub(self.paid) / REFILL;
        self.paid += refills * REFILL;
        let earned = refills + (progress - self.progress);
        self.progress = progress;
        self.tokens = (self.tokens + earned).min(BURST);
        if self.tokens > 0 {
            self.tokens -= 1;
            return true;
        }
        if now.saturating_sub(self.listens_since) >= FORGIVEN {
            self.strikes = 0;
        }
        self.silence_until(now, now + (FIRST_SILENCE << self.strikes));
        self.strikes = (self.strikes + 1).min(MOST_STRIKES);
        false
    }

    /// The doorbell is gone, and its peer perhaps not: it is polled from now on.
    pub(crate) fn hung_up(&mut self, now: u64) {
        self.silence_until(now, u64::MAX);
    }

    fn silence_until(&mut self, now: u64, until: u64) {
        self.silence = Some(Silence { next_look: now + FIRST_PAUSE, pause: FIRST_PAUSE, until });
    }

    /// When to look at a peer that is polled; `None` while it is listened to.
    pub(crate) fn next_look(&self) -> Option<u64> {
        self.silence.as_ref().map(|s| s.next_look)
    }

    /// A polled peer was looked at, and something was `found` or not. Says whether to listen again.
    pub(crate) fn looked(&mut self, now: u64, found: bool) -> bool {
        let Some(silence) = &mut self.silence else { return true };
        if now >= silence.until {
            self.silence = None;
            (self.tokens, self.paid, self.listens_since) = (PROBE, now, now);
            return true;
        }
        silence.pause = if found { FIRST_PAUSE } else { (silence.pause * 2).min(MOST_PAUSE) };
        silence.next_look = now + silence.pause;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doorbell::ring;
    use proptest::prelude::*;

    /// The same by bookkeeping of every millisecond.
    struct Model {
        now: u64,
        tokens: u64,
        /// Milliseconds since tokens were last given for time.
        aged: u64,
        /// Progress during a silence.
        unpaid: u64,
        silent_for: Option<(u64, u64)>,
        silences: Vec<u64>,
        listening_for: u64,
    }

    impl Model {
        fn pass(&mut self, ms: u64) {
            for _ in 0..ms {
                self.now += MS;
                match &mut self.silent_for {
                    Some((gone, _)) => *gone += 1,
                    None => {
                        self.listening_for += 1;
                        self.aged += 1;
                        if self.aged == 10 {
                            self.aged = 0;
                            self.tokens = (self.tokens + 1).min(256);
                        }
                    }
                }
            }
        }

        fn rung(&mut self) -> bool {
            if self.silent_for.is_some() {
                return false;
            }
            if self.tokens > 0 {
                self.tokens -= 1;
                return true;
            }
            let length = match self.silences.last() {
                Some(last) if self.listening_for < 10_000 => (last * 2).min(12_800),
                _ => 100,
            };
            self.silences.push(length);
            self.silent_for = Some((0, length));
            false
        }

        fn looked(&mut self) -> bool {
            if let Some((gone, length)) = self.silent_for
                && gone >= length
            {
                self.silent_for = None;
                self.tokens = (16 + std::mem::take(&mut self.unpaid)).min(256);
                (self.aged, self.listening_for) = (0, 0);
                return true;
            }
            self.silent_for.is_none()
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Pass(u64),
        Ring(u32),
        Progress(u64),
        Look(bool),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0u64..60).prop_map(Act::Pass),
            1 => (1_000u64..15_000).prop_map(Act::Pass),
            6 => (1u32..200).prop_map(Act::Ring),
            2 => (1u64..50).prop_map(Act::Progress),
            6 => any::<bool>().prop_map(Act::Look),
        ];
        prop::collection::vec(act, 1..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn is_what_the_model_says(acts in acts()) {
            let start = 7 * MS;
            let mut wakes = Wakes::new(start);
            let mut model =
                Model { now: start, tokens: 256, aged: 0, unpaid: 0, silent_for: None, silences: Vec::new(), listening_for: 0 };
            let (mut progress, mut listened) = (0, 0);
            for act in acts {
                match act {
                    Act::Pass(ms) => model.pass(ms),
                    Act::Progress(times) => {
                        progress += times;
                        if model.silent_for.is_none() {
                            model.tokens = (model.tokens + times).min(256);
                        } else {
                            model.unpaid += times;
                        }
                    }
                    Act::Ring(times) => for _ in 0..times {
                        let listens = wakes.rung(model.now, progress);
                        prop_assert_eq!(listens, model.rung());
                        listened += u64::from(listens);
                    },
                    Act::Look(found) => {
                        let listens = wakes.looked(model.now, found);
                        prop_assert_eq!(listens, model.looked());
                        if let Some(next) = wakes.next_look() {
                            let pause = next - model.now;
                            prop_assert!((FIRST_PAUSE..=MOST_PAUSE).contains(&pause), "{}", pause);
                            prop_assert!(!found || pause == FIRST_PAUSE);
                        }
                    }
                }
                prop_assert_eq!(wakes.next_look().is_some(), model.silent_for.is_some());
            }
            let most = BURST + progress + (model.now - start) / REFILL + PROBE * model.silences.len() as u64;
            prop_assert!(listened <= most, "{} wakes were listened to, {} at most", listened, most);
        }
    }

    #[test]
    fn whoever_brings_something_each_time_is_never_silenced() {
        let mut wakes = Wakes::new(0);
        assert!((1..1_000_000).all(|n| wakes.rung(0, n)));
    }

    #[test]
    fn a_doorbell_that_hung_up_is_polled_for_ever() {
        let (mut wakes, mut now, mut pauses) = (Wakes::new(0), 0, Vec::new());
        wakes.hung_up(now);
        for _ in 0..9 {
            let next = wakes.next_look().unwrap();
            pauses.push((next - now) / MS);
            now = next;
            assert!(!wakes.looked(now, false));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 64, 64, 64]);
        assert!(!wakes.looked(now, true) && !wakes.looked(u64::MAX - MOST_PAUSE - 1, true));
        assert_eq!(wakes.next_look(), Some(u64::MAX - MOST_PAUSE - 1 + FIRST_PAUSE));
    }

    #[test]
    fn ringing_a_dead_or_a_full_doorbell_does_no_harm() {
        use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        // Not even non-blocking ones: full, and as empty as that again.
        (0..10_000).for_each(|_| ring(&a));
        empty(&b);
        let mut byte = [0u8; 1];
        assert!(recv(&b, &mut byte[..], RecvFlags::DONTWAIT).is_err(), "something is left");
        // Of a flood one bite is taken, whatever there is.
        assert_eq!(send(&a, &[1; 4096], SendFlags::empty()), Ok(4096));
        hear(&b);
        let mut left = [0u8; 8192];
        assert_eq!(recv(&b, &mut left[..], RecvFlags::DONTWAIT).unwrap().1, 4096 - 512);
        hear(&b);
        drop(b);
        ring(&a);
    }
}
