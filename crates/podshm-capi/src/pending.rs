//! Calls that are out.

use crate::border::{Len, Mut, Out, Own, Room};
use crate::last::{Fault, entry};
use crate::result::podshm_result;
use podshm::client::Pending;
use std::sync::{Mutex, MutexGuard, TryLockError};

/// A call that is out. Freeing it cancels it: the agent may still handle it, nobody waits for the response. For one thread at a time.
pub struct podshm_pending(Mutex<State>);

enum State {
    Out(Pending),
    /// It has come, and its room was too small so far.
    Here(Vec<u8>),
    Over,
}

impl podshm_pending {
    pub(crate) fn new(pending: Pending) -> Self {
        podshm_pending(Mutex::new(State::Out(pending)))
    }

    fn enter(&self) -> Result<MutexGuard<'_, State>, Fault> {
        self.0.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Fault::Busy { what: "pending call" },
            TryLockError::Poisoned(_) => Fault::Ended { what: "pending call", why: "the library failed in it" },
        })
    }
}

const OVER: Fault = Fault::Ended { what: "pending call", why: "its response was taken, or it failed" };

/// Gives the response away, or keeps it where the room is too small.
fn give(state: &mut State, response: Vec<u8>, room: &mut [u8], len: &Out<usize>) -> Result<(), Fault> {
    let (needed, found) = (response.len(), room.len());
    len.set_if_wanted(needed)?;
    match room.get_mut(..needed) {
        Some(room) => {
            room.copy_from_slice(&response);
            *state = State::Over;
            Ok(())
        }
        None => {
            *state = State::Here(response);
            Err(podshm::Error::BufferTooSmall { needed, found }.into())
        }
    }
}

/// Cancels the call if it is still out, and frees it. Null is nothing to do. While another thread waits for it: PODSHM_BUSY.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_pending_free(pending: Own<podshm_pending>) -> podshm_result {
    entry(|| {
        pending.free_unless(|out| match out.enter() {
            Err(busy @ Fault::Busy { .. }) => Err(busy),
            _ => Ok(()),
        })
    })
}

/// Copies the response into `buffer`, and its length into `*len` (may be null), if it has come: PODSHM_NOT_YET if not. Where the buffer is too
/// small `*len` says what it takes, and the response stays. From within a callback of the same call: PODSHM_REENTERED, and the call is still
/// out.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_pending_try_take(
    pending: Mut<podshm_pending>,
    buffer: Room,
    size: Len,
    len: Out<usize>,
) -> podshm_result {
    entry(|| take(&pending, buffer, size, &len, |pending| pending.try_take()?.ok_or(Fault::NotYet)))
}

/// podshm_pending_try_take() that waits for the response until the call's deadline.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_pending_wait(
    pending: Mut<podshm_pending>,
    buffer: Room,
    size: Len,
    len: Out<usize>,
) -> podshm_result {
    entry(|| take(&pending, buffer, size, &len, |pending| Ok(pending.wait()?)))
}

/// Gives the response away that is here, or that `look` finds. What `look` says against it ends the call, unless it could not look.
fn take(
    pending: &Mut<podshm_pending>,
    mut buffer: Room,
    size: Len,
    len: &Out<usize>,
    look: impl FnOnce(&mut Pending) -> Result<Vec<u8>, Fault>,
) -> Result<(), Fault> {
    len.check_if_wanted()?;
    let room = buffer.slice(size)?;
    let mut state = pending.here()?.enter()?;
    let response = match &mut *state {
        State::Out(pending) => look(pending),
        State::Here(response) => Ok(std::mem::take(response)),
        State::Over => return Err(OVER),
    };
    match response {
        Ok(response) => give(&mut state, response, room, len),
        Err(still_out @ (Fault::NotYet | Fault::Library(podshm::Error::Reentered(_)))) => Err(still_out),
        Err(fault) => {
            *state = State::Over;
            Err(fault)
        }
    }
}

/// Asks for an event on podshm_caller_event_fd() with the next response. Look by podshm_pending_try_take() once more after this.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_pending_arm(pending: Mut<podshm_pending>) -> podshm_result {
    entry(|| {
        match &*pending.here()?.enter()? {
            State::Out(pending) => pending.arm(),
            State::Here(_) => {}
            State::Over => return Err(OVER),
        }
        Ok(())
    })
}
