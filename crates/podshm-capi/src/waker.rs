//! Waking an agent from another thread.

use crate::agent::podshm_agent;
use crate::border::{Mut, Out, Own, Ref};
use crate::last::entry;
use crate::result::podshm_result;
use podshm::AgentWaker;

/// Ends an agent's sleep from another thread, where that has brought it something to do. For any number of threads; it may outlive the agent, and
/// wakes nobody then.
pub struct podshm_waker(AgentWaker);

/// What other threads wake the agent by; to be made before one of them runs it. On failure `*waker` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_waker_new(agent: Mut<podshm_agent>, waker: Out<*mut podshm_waker>) -> podshm_result {
    entry(|| waker.give(|| agent.here()?.0.with(|agent| Ok(podshm_waker(agent.waker())))))
}

/// Has podshm_agent_wait() return, or the next one if none is under way. In an event loop podshm_agent_event_fd() becomes readable. One system
/// call.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_waker_wake(waker: Ref<podshm_waker>) -> podshm_result {
    entry(|| {
        waker.here()?.0.wake();
        Ok(())
    })
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_waker_free(waker: Own<podshm_waker>) -> podshm_result {
    entry(|| waker.free())
}
