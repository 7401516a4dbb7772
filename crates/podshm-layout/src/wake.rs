//! Sleeping without losing a wake-up, across processes.
//!
//! ```text
//!  sleeper (its own region)                waker
//!  armed = epoch                           publish the record
//!  full fence  ◄─────── pairs with ──────► full fence
//!  look once more; still nothing: sleep    read armed; a new epoch: wake, once
//! ```
//! Either the sleeper's second look sees the record, or the waker sees `armed`: with both fences sequentially consistent one
//! of the two loads must see the other side's store. Without them both may miss (the planted fault of the model).
//!
//! A fence per record is dear. Where the sleeper can make every waker go through one (membarrier(2)), it does so between arming
//! and looking once more, and says so at [`SLEEPER_FENCES`](crate::geometry::SLEEPER_FENCES); wakers then fence no more ([`Waker::check_light`]).

use crate::mem::{Load, Store};
use crate::step::{self, Step};
use crate::sync::{Ordering, compiler_fence, fence};

/// How a sleeper wants to be woken; a bit set in the armed word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants(u64);

impl Wants {
    /// A FUTEX_WAKE on the waker's wake word.
    pub const FUTEX: Wants = Wants(1);
    /// A byte through the doorbell.
    pub const DOORBELL: Wants = Wants(2);
    /// Both, for a process with sleepers of both kinds.
    pub const BOTH: Wants = Wants(3);
    /// An agent's: its answers wait for room, so reading one is news too.
    pub const ROOM: Wants = Wants(3);

    /// Whether making room is news.
    pub fn room(self) -> bool {
        self == Wants::ROOM
    }

    /// Whether a futex wake is wanted.
    pub fn futex(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether a doorbell is wanted.
    pub fn doorbell(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The sleeper's side: an armed word in its own region.
#[derive(Debug)]
pub struct Sleeper {
    offset: usize,
    epoch: u64,
}

impl Sleeper {
    /// The armed word at `offset` of the sleeper's own region.
    pub const fn at(offset: usize) -> Self {
        Sleeper { offset, epoch: 0 }
    }

    /// Says "about to sleep". The caller looks once more after this, and only then sleeps.
    pub fn arm(&mut self, own: &impl Store, wants: Wants) {
        self.announce(own, wants);
        fence(Ordering::SeqCst); // pairs with the fence in Waker::check
        step::at(Step::SleepArmed);
    }

    /// [`Sleeper::arm`] without a fence, for a sleeper that goes through a barrier with all its wakers before it looks once more.
    pub fn announce(&mut self, own: &impl Store, wants: Wants) {
        self.epoch = (self.epoch + 1) & (u64::MAX >> 2);
        own.store(self.offset, self.epoch << 2 | wants.0, Ordering::Relaxed);
    }

    /// Says "awake". Nobody needs to see it in time: a wake that comes anyway finds nobody.
    #[inline]
    pub fn disarm(&mut self, own: &impl Store) {
        own.store(self.offset, 0, Ordering::Relaxed);
    }
}

/// The waker's side: reads the peer's armed word, wakes once per epoch.
#[derive(Debug)]
pub struct Waker {
    offset: usize,
    woken: u64,
}

impl Waker {
    /// The armed word at `offset` of the peer's region.
    pub const fn at(offset: usize) -> Self {
        Waker { offset, woken: 0 }
    }

    /// Call after publishing: says how to wake the peer, or that it is awake (or was woken for this sleep already).
    /// Costs a full fence.
    #[inline]
    pub fn check(&mut self, peer: &impl Load) -> Option<Wants> {
        fence(Ordering::SeqCst); // pairs with the fence in Sleeper::arm
        self.armed(peer)
    }

    /// [`Waker::check`] without the fence, only for a process that takes part in its peer's barriers.
    #[inline(always)]
    pub fn check_light(&mut self, peer: &impl Load) -> Option<Wants> {
        compiler_fence(Ordering::SeqCst); // pairs with the barrier between Sleeper::announce and the second look
        self.armed(peer)
    }

    /// Call after making room: wakes a peer only if it waits for that. `light` as in [`Waker::check_light`].
    #[inline(always)]
    pub fn check_for_room(&mut self, peer: &impl Load, light: bool) -> bool {
        if light {
            compiler_fence(Ordering::SeqCst); // pairs with the barrier between Sleeper::announce and the second look
        } else {
            fence(Ordering::SeqCst); // pairs with the fence in Sleeper::arm
        }
        let armed = peer.load(self.offset, Ordering::Relaxed);
        Wants(armed & 3).room() && self.armed(peer).is_some()
    }

    #[inline(always)]
    fn armed(&mut self, peer: &impl Load) -> Option<Wants> {
        let armed = peer.load(self.offset, Ordering::Relaxed);
        if armed == 0 || armed == self.woken {
            return None;
        }
        self.woken = armed;
        Some(Wants(armed & 3))
    }
}
