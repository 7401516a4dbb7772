//! Describing an agent.

use crate::agent::podshm_agent;
use crate::border::{Mut, Out, Own, Ref, Text};
use crate::last::{Fault, entry, in_use};
use crate::result::podshm_result;
use podshm::AgentBuilder;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// What an agent offers. For any number of threads; in a forked child, too, unless another thread was using it at that moment: PODSHM_FORKED.
#[derive(Default)]
pub struct podshm_builder(Mutex<AgentBuilder>);

impl podshm_builder {
    /// Waits for another thread, but not in a forked child for one of its parent's.
    fn enter(&self, is_forked: bool) -> Result<MutexGuard<'_, AgentBuilder>, Fault> {
        match self.0.try_lock() {
            Ok(builder) => Ok(builder),
            Err(TryLockError::WouldBlock) if is_forked => Err(podshm::process::forked().into()),
            Err(_) => Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl Mut<podshm_builder> {
    fn add(&self, change: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Result<(), Fault> {
        let mut builder = self.get()?.enter(self.is_forked()?)?;
        *builder = change(std::mem::take(&mut *builder));
        Ok(())
    }
}

/// One that offers nothing yet. On failure `*builder` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_new(builder: Out<*mut podshm_builder>) -> podshm_result {
    entry(|| builder.give(|| Ok(podshm_builder::default())))
}

/// Frees it. Null is nothing to do.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_free(builder: Own<podshm_builder>) -> podshm_result {
    entry(|| builder.free_unless(|builder| in_use(&builder.0, "builder")))
}

/// Offers a table with room for `keys` keys whose records take `bytes` in all; it grows when that is not enough.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_table(
    builder: Mut<podshm_builder>,
    name: Text,
    keys: u64,
    bytes: u64,
) -> podshm_result {
    entry(|| {
        let name = name.name()?;
        builder.add(|builder| builder.table(name, keys, bytes))
    })
}

/// Offers a queue with a ring of `ring` bytes (a power of two from 4,096 on, PODSHM_DEFAULT_RING to start with) in each client, for records of
/// up to `longest` bytes (at most half the ring, less 16).
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_queue(
    builder: Mut<podshm_builder>,
    name: Text,
    ring: u32,
    longest: u32,
) -> podshm_result {
    entry(|| {
        let name = name.name()?;
        builder.add(|builder| builder.queue(name, ring, longest))
    })
}

/// Offers a call with a ring of `ring` bytes (PODSHM_DEFAULT_CALL_RING to start with) each way, for requests and responses of up to `longest`
/// bytes (at most 1 GiB). Longer than a quarter of the ring, they go in fragments. An agent that dies leaves the calls in its hand with
/// PODSHM_OUTCOME_UNKNOWN.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_call(
    builder: Mut<podshm_builder>,
    name: Text,
    ring: u32,
    longest: u32,
) -> podshm_result {
    entry(|| {
        let name = name.name()?;
        builder.add(|builder| builder.call(name, ring, longest))
    })
}

/// podshm_builder_call() whose requests may be handled twice without harm: a successor repeats what its predecessor may have handled.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_builder_idempotent_call(
    builder: Mut<podshm_builder>,
    name: Text,
    ring: u32,
    longest: u32,
) -> podshm_result {
    entry(|| {
        let name = name.name()?;
        builder.add(|builder| builder.idempotent_call(name, ring, longest))
    })
}

/// Connects to the broker whose socket is in `directory`, waiting for it until `timeout_ns`. The agent serves from podshm_agent_ready() on. The
/// builder can be used again. On failure `*agent` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_agent_new(
    builder: Ref<podshm_builder>,
    directory: Text,
    timeout_ns: u64,
    agent: Out<*mut podshm_agent>,
) -> podshm_result {
    entry(|| {
        agent.give(|| {
            let builder = builder.get()?.enter(builder.is_forked()?)?.clone();
            let connected = builder.connect(directory.path()?, Duration::from_nanos(timeout_ns))?;
            Ok(podshm_agent::new(connected))
        })
    })
}
