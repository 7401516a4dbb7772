//! The agent's ear: what a doorbell's wake means, and who is polled because of too many or because its doorbell is gone.

use super::Agent;
use crate::clock;
use crate::error::Error;
use crate::wakes::WakeStats;
use podshm_proto::{ClientId, Up};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::time::{Duration, Instant};

const LISTENING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);
/// A hang-up is heard from whoever rings too much, too.
const SILENCED: EventFlags = EventFlags::RDHUP;
const HUNG_UP: EventFlags = EventFlags::HUP.union(EventFlags::RDHUP).union(EventFlags::ERR);

impl Agent {
    /// What this agent has been woken by.
    pub fn wake_stats(&self) -> WakeStats {
        self.wakes
    }

    /// A client's doorbell has something: no system call here but where it is left alone from now on. What it holds is taken by
    /// [`Agent::hear`], when the client has been served: it may be waiting for an answer.
    pub(super) fn doorbell(&mut self, id: u64, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(doorbell) = client.doorbell() else { return };
        self.wakes.rung += 1;
        let now = clock::now();
        if flags.intersects(HUNG_UP) {
            // The client's death, which the broker tells of as well; or its whim, then it is polled. Out of the epoll first: closing does
            // that only if no child of this process keeps it.
            let _ = epoll::delete(&self.poll, doorbell);
            client.hang_up(now);
            self.polled.push(id);
            // Of those that were not there when the broker was started anew it can't know otherwise.
            if self.returns > 0 {
                let _ = self.tell(Up::HungUp(ClientId { client: id })); // a failure shows where it is read from
            }
        } else if client.rung(now) {
            self.unheard.push(id);
        } else if let Some(doorbell) = client.doorbell() {
            let _ = epoll::modify(&self.poll, doorbell, EventData::new_u64(id + 2), SILENCED);
            self.wakes.silenced += 1;
            self.polled.push(id);
            client.name_silenced();
        }
        self.clients.heat_up(id);
    }

    /// Takes what doorbells hold that have rung: one system call each. Before their clients are armed again, or it would take the
    /// next ring as well, which would be lost; until then they are hot and ring for nothing.
    pub(super) fn hear(&mut self) {
        for id in self.unheard.drain(..) {
            if let Some(doorbell) = self.clients.get(id).and_then(|client| client.doorbell()) {
                crate::wakes::hear(doorbell);
            }
        }
    }

    /// `timeout`, or less where a polled client's turn comes before that.
    pub(super) fn until_next_look(&self, timeout: Duration) -> Duration {
        let next = self.polled.iter().filter_map(|id| self.clients.get(*id)?.next_look()).min();
        let timeout = next.map_or(timeout, |next| timeout.min(Duration::from_nanos(next.saturating_sub(clock::now()))));
        let broker = self.absence.next().map(|next| next.saturating_duration_since(Instant::now()));
        broker.map_or(timeout, |broker| timeout.min(broker))
    }

    /// Looks at the clients that are polled and whose turn it is; says how many had something.
    pub(super) fn look_at_polled(&mut self) -> usize {
        if self.polled.is_empty() {
            return 0;
        }
        let mut had = 0;
        let now = clock::now();
        let mut at = 0;
        while let Some(&id) = self.polled.get(at) {
            at += 1;
            let next = self.clients.get(id).and_then(|c| c.next_look());
            if next.is_some_and(|next| next > now) {
                continue;
            }
            let Some(client) = self.clients.get_mut(id).filter(|_| next.is_some()) else {
                at -= 1;
                self.polled.swap_remove(at);
                continue;
            };
            self.wakes.polls += 1;
            let found = client.hot || client.has_news();
            let listens = client.looked(now, found);
            if listens && let Some(doorbell) = client.doorbell() {
                crate::wakes::empty(doorbell);
                let _ = epoll::modify(&self.poll, doorbell, EventData::new_u64(id + 2), LISTENING);
            }
            // Whoever is listened to again may have rung just before, and does not ring twice for one sleep: it is looked at.
            if found || listens {
                had += 1;
                self.clients.heat_up(id);
            }
        }
        had
    }

    /// For event loops, which wait for the epoll alone: it becomes readable when a polled client's turn comes.
    pub(super) fn set_timer(&mut self) -> Result<(), Error> {
        let wait = self.until_next_look(Duration::MAX);
        if wait == Duration::MAX {
            return Ok(());
        }
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
                    .map_err(|e| Error::system("timerfd_create")(e.into()))?;
                epoll::add(&self.poll, &timer, EventData::new_u64(super::TIMER), EventFlags::IN)
                    .map_err(|e| Error::system("epoll_ctl")(e.into()))?;
                none.insert(timer)
            }
        };
        // 0 would disarm it.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)
            .map_err(|e| Error::system("timerfd_settime")(e.into()))?;
        Ok(())
    }

    /// The timer has called: what it calls for is done by the look that finds it.
    pub(super) fn timer_called(&self) {
        if let Some(timer) = &self.timer {
            let _ = rustix::io::read(timer, &mut [0u8; 8][..]);
        }
    }
}
