//! Serving.

use crate::border::{Data, Len, Mut, Out, Own, Ref, Room, Stop, Table, User, podshm_stop};
use crate::handler::Functions;
use crate::last::{Fault, entry};
use crate::result::podshm_result;
use podshm::{Agent, Progress};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

/// A connected agent. For one thread at a time: any other, and the agent's own callbacks, get PODSHM_BUSY.
///
/// podshm_agent_poll() until PODSHM_IDLE, then podshm_agent_wait(); or podshm_agent_run(), which does that; or
/// podshm_agent_park() and podshm_agent_event_fd(), for event loops.
pub struct podshm_agent(pub(crate) Arc<Place>);

/// Where the agent is, until it is freed; writers of its tables share it.
pub(crate) struct Place(Mutex<Option<Agent>>);

impl podshm_agent {
    pub(crate) fn new(agent: Agent) -> Self {
        podshm_agent(Arc::new(Place(Mutex::new(Some(agent)))))
    }
}

impl Place {
    #[inline]
    fn enter(&self) -> Result<MutexGuard<'_, Option<Agent>>, Fault> {
        self.0.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Fault::Busy { what: "agent" },
            TryLockError::Poisoned(_) => Fault::Ended { what: "agent", why: "the library failed in it" },
        })
    }

    /// Uses it.
    #[inline]
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Agent) -> Result<R, Fault>) -> Result<R, Fault> {
        match &mut *self.enter()? {
            Some(agent) => work(agent),
            None => Err(Fault::Ended { what: "agent", why: "it was freed" }),
        }
    }
}

/// What podshm_agent_poll() did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum podshm_progress {
    /// Records or requests were handled.
    PODSHM_HANDLED = 1,
    /// Nothing to do now.
    PODSHM_IDLE = 2,
    /// A successor is ready: call podshm_agent_close(), and end.
    PODSHM_CLOSE_ASKED = 3,
}

/// Frees it. To its clients that is the end of an agent that has crashed, unless podshm_agent_close() came before. Null is nothing to do.
/// While it is in use: PODSHM_BUSY, and nothing is freed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_free(agent: Own<podshm_agent>) -> podshm_result {
    entry(|| {
        agent.free_unless(|handle| match handle.0.enter() {
            Ok(mut agent) => {
                drop(agent.take());
                Ok(())
            }
            Err(busy @ Fault::Busy { .. }) => Err(busy),
            Err(_) => Ok(()), // a broken one goes with its last writer
        })
    })
}

/// Says that the tables are filled. The broker lets this agent take over at once, or when its predecessor has closed.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_ready(agent: Mut<podshm_agent>) -> podshm_result {
    entry(|| agent.here()?.0.with(|agent| Ok(agent.ready()?)))
}

/// One round: a bounded batch from each client that has something goes to the handler's functions. A record is acknowledged when its
/// function returns. `*progress` says what came of it, `*handled` (may be null) how many records and requests.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_poll(
    agent: Mut<podshm_agent>,
    handler: Table,
    progress: Out<podshm_progress>,
    handled: Out<usize>,
) -> podshm_result {
    entry(|| {
        handled.check_if_wanted()?;
        progress.set(podshm_progress::PODSHM_IDLE)?;
        let mut functions = Functions(handler.copy()?);
        let (what, count) = match agent.here()?.0.with(|agent| Ok(agent.poll(&mut functions)?))? {
            Progress::Handled(count) => (podshm_progress::PODSHM_HANDLED, count),
            Progress::Idle => (podshm_progress::PODSHM_IDLE, 0),
            Progress::CloseAsked => (podshm_progress::PODSHM_CLOSE_ASKED, 0),
        };
        progress.set(what)?;
        handled.set_if_wanted(count)
    })
}

/// Sleeps until something comes, for at most `timeout_ns`. While clients were busy a moment ago it returns at once.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_wait(agent: Mut<podshm_agent>, timeout_ns: u64) -> podshm_result {
    entry(|| agent.here()?.0.with(|agent| Ok(agent.wait(Duration::from_nanos(timeout_ns))?)))
}

/// Serves until `stop` (may be null) says so, which is asked every 20 ms at least, or a successor is ready; then closes in order, leaving no
/// state.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_run(
    agent: Mut<podshm_agent>,
    handler: Table,
    stop: podshm_stop,
    stop_user: User,
) -> podshm_result {
    entry(|| {
        let (mut functions, mut stop) = (Functions(handler.copy()?), Stop::new(stop, stop_user));
        agent.here()?.0.with(|agent| Ok(agent.run(&mut functions, || stop.is_due())?))
    })
}

/// A descriptor that becomes readable when there is something to do, for epoll and the like. Wait for it only after podshm_agent_park() has
/// said so; don't read or close it. It lives as long as the agent.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_event_fd(agent: Ref<podshm_agent>, fd: Out<i32>) -> podshm_result {
    entry(|| fd.set(agent.here()?.0.with(|agent| Ok(agent.event_fd().as_raw_fd()))?))
}

/// Gets ready to sleep on podshm_agent_event_fd(): asks every client to ring from now on, and looks once more. `*sleeps` says whether nobody
/// has anything; if not, call podshm_agent_poll() again.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_park(agent: Mut<podshm_agent>, sleeps: Out<bool>) -> podshm_result {
    entry(|| sleeps.set(agent.here()?.0.with(|agent| Ok(agent.park()?))?))
}

/// How long the agent goes on polling after the last record before it sleeps; 50 us by default.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_set_spin(agent: Mut<podshm_agent>, spin_ns: u64) -> podshm_result {
    entry(|| {
        let spin = Duration::from_nanos(spin_ns);
        agent.here()?.0.with(|agent| {
            agent.set_spin(spin);
            Ok(())
        })
    })
}

/// How many agents have served the domain up to this one; 0 before it serves.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_epoch(agent: Ref<podshm_agent>, epoch: Out<u64>) -> podshm_result {
    entry(|| epoch.set(agent.here()?.0.with(|agent| Ok(agent.epoch()))?))
}

/// Clients that are served now, dead ones that are being drained included.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_clients(agent: Ref<podshm_agent>, clients: Out<usize>) -> podshm_result {
    entry(|| clients.set(agent.here()?.0.with(|agent| Ok(agent.clients()))?))
}

/// Copies what the predecessor left by podshm_agent_close(): nothing (`*len` is 0) after a crash, PODSHM_NOT_YET before this agent serves. Where
/// the buffer is too small `*len` says what it takes.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_inherited_state(
    agent: Ref<podshm_agent>,
    mut buffer: Room,
    size: Len,
    len: Out<usize>,
) -> podshm_result {
    entry(|| {
        let room = buffer.slice(size)?;
        agent.here()?.0.with(|agent| {
            let state = agent.inherited_state().ok_or(Fault::NotYet)?;
            len.set(state.len())?;
            let (needed, found) = (state.len(), room.len());
            let room = room.get_mut(..needed).ok_or(podshm::Error::BufferTooSmall { needed, found })?;
            room.copy_from_slice(state);
            Ok(())
        })
    })
}

/// Finishes what is in hand, closes every ring where it stands, leaves the state to the successor and hangs up. Nothing is handled after
/// this; free it.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_close(agent: Mut<podshm_agent>, state: Data, len: Len) -> podshm_result {
    entry(|| {
        let state = state.slice(len)?.to_vec();
        agent.here()?.0.with(|agent| Ok(agent.close(state)?))
    })
}
