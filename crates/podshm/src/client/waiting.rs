//! How a client waits for its agent: it spins for as long as its caller allows, then sleeps.

use podshm_layout::geometry::{ARMED, WAKE};
use podshm_layout::wake::{Sleeper, Wants};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Channel;
use super::own::Own;
use super::spinners::{self, Place};

/// How long a wait spins before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Sleep at once: no CPU, some 50 µs of latency.
    Never,
    /// Spin for so long, then sleep; after 5 µs where half as many threads of the process spin already as it has processors. Up to
    /// 50 µs this is for an agent that is awake: one that sleeps takes longer to wake up, and may need this very core for it, so the
    /// caller sleeps at once.
    For(Duration),
    /// Never sleep: a core for the lowest latency.
    Always,
}

impl Default for Spin {
    /// 20 µs: longer than an agent that is awake needs, shorter than two context switches.
    fn default() -> Self {
        Spin::For(Duration::from_micros(20))
    }
}

/// What an agent that sleeps takes at least until it has answered.
const WAKING: Duration = Duration::from_micros(50);

impl Spin {
    /// Whether the budget is of use with an agent that sleeps.
    pub(crate) fn outlasts_waking(self) -> bool {
        !matches!(self, Spin::For(budget) if budget <= WAKING)
    }

    /// Whether a wait that has lasted for `waited` goes on spinning.
    pub(crate) fn goes_on(self, waited: Duration) -> bool {
        match self {
            Spin::Never => false,
            Spin::For(budget) => waited < budget,
            Spin::Always => true,
        }
    }
}

/// One wait: its deadline and its spinning. It first reads the clock when it is first asked, so that what is there at once costs
/// no reading; a deadline counts from then, a microsecond late at most.
#[derive(Debug)]
pub(crate) struct Patience {
    timeout: Duration,
    spin: Spin,
    start: Option<Instant>,
    looks_for_room: u32,
    /// Among the process's threads that spin.
    place: Option<Place>,
}

/// A wait that spins for longer than this needs a place to do so: see [`super::spinners`].
const FREE: Duration = Duration::from_micros(5);

/// Looks for room that a sender spins for before it sleeps, whatever its budget is: the agent is at work on the ring then.
const LOOKS_FOR_ROOM: u32 = 2000;

impl Patience {
    pub(crate) fn new(timeout: Duration, spin: Spin) -> Self {
        Patience { timeout, spin, start: None, looks_for_room: 0, place: None }
    }

    fn waited(&mut self) -> Duration {
        let now = Instant::now();
        now - *self.start.get_or_insert(now)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The deadline.
    pub(crate) fn until(&mut self) -> Instant {
        *self.start.get_or_insert_with(Instant::now) + self.timeout
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.waited() >= self.timeout
    }

    /// Whether to spin on: neither the budget nor the time is over, and the agent is awake or the budget outlasts its waking up.
    pub(crate) fn spins(&mut self, channel: &Channel) -> bool {
        let waited = self.waited();
        let goes_on = waited < self.timeout
            && self.spin.goes_on(waited)
            && (self.spin.outlasts_waking() || !channel.agent_sleeps());
        self.has_place(goes_on, waited < FREE)
    }

    /// Whether a wait that would spin may: nobody is kept from it for a moment, or where the caller has said "always".
    fn has_place(&mut self, spins: bool, is_short: bool) -> bool {
        if !spins {
            self.place = None;
        } else if self.place.is_none() && !is_short && self.spin != Spin::Always {
            self.place = spinners::place();
            return self.place.is_some();
        }
        spins
    }

    /// Whether to look for room once more before sleeping.
    pub(crate) fn spins_for_room(&mut self) -> bool {
        self.looks_for_room += 1;
        let spins = self.spin != Spin::Never && !self.looks_for_room.is_multiple_of(LOOKS_FOR_ROOM);
        self.has_place(spins, false)
    }
}

/// Nobody sleeps longer than this without looking: a futex gets no hang-up.
pub(crate) const SLICE: Duration = Duration::from_millis(20);

/// Everybody of this process who sleeps for the agent shares one armed word.
#[derive(Debug)]
pub(crate) struct Sleepers {
    state: Mutex<Armed>,
    /// Futures and event descriptors want the doorbell.
    pub(crate) wants_doorbell: AtomicU64,
    /// How often the agent was asked to ring: it rings once for each at most.
    pub(crate) rings_asked: AtomicU64,
}

#[derive(Debug)]
struct Armed {
    sleeper: Sleeper,
    /// Sleepers on the futex.
    asleep: u32,
    /// C, with the armed word.
    own: Arc<Own>,
}

impl Sleepers {
    pub(crate) fn new(own: Arc<Own>) -> Self {
        Sleepers {
            state: Mutex::new(Armed { sleeper: Sleeper::at(ARMED), asleep: 0, own }),
            wants_doorbell: AtomicU64::new(0),
            rings_asked: AtomicU64::new(0),
        }
    }

    /// Arms, looks once more by `ready`, and sleeps for at most a slice.
    pub(crate) fn sleep(&self, channel: &Channel, until: Instant, ready: impl FnOnce() -> bool) {
        let before = channel.wake_word();
        self.arm(true);
        if !ready() {
            let left = until.saturating_duration_since(Instant::now()).min(SLICE);
            channel.head.futex_wait(WAKE, before, left);
        }
        self.disarm();
    }

    /// Arms for the doorbell without sleeping here.
    pub(crate) fn arm_doorbell(&self) {
        self.wants_doorbell.fetch_add(1, Ordering::Relaxed);
        self.arm(false);
    }

    /// C, as it is used now.
    pub(crate) fn own(&self) -> Arc<Own> {
        Arc::clone(&self.state().own)
    }

    /// Goes over to C's next generation with whoever sleeps or wants the doorbell.
    pub(crate) fn move_to(&self, own: Arc<Own>) {
        let mut state = self.state();
        state.own = own;
        self.announce(&mut state);
    }

    fn arm(&self, futex: bool) {
        let mut state = self.state();
        state.asleep += u32::from(futex);
        if self.wants_doorbell.load(Ordering::Relaxed) > 0 {
            self.rings_asked.fetch_add(1, Ordering::Relaxed);
        }
        self.announce(&mut state);
    }

    /// Arms for everybody who is waiting; nothing where nobody is.
    fn announce(&self, state: &mut Armed) {
        let wants = match (state.asleep > 0, self.wants_doorbell.load(Ordering::Relaxed) > 0) {
            (true, true) => Wants::BOTH,
            (false, true) => Wants::DOORBELL,
            (true, false) => Wants::FUTEX,
            (false, false) => return,
        };
        state.sleeper.arm(&state.own.first, wants);
    }

    fn disarm(&self) {
        let mut state = self.state();
        state.asleep -= 1;
        if state.asleep == 0 && self.wants_doorbell.load(Ordering::Relaxed) == 0 {
            let Armed { sleeper, own, .. } = &mut *state;
            sleeper.disarm(&own.first);
        }
    }

    fn state(&self) -> MutexGuard<'_, Armed> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
