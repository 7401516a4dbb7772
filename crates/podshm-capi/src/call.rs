//! Calling the agent.

use crate::border::{Data, Each, Fill, Len, Mut, Out, Own, Ref, Room, Text, User, podshm_each, podshm_fill};
use crate::client::podshm_client;
use crate::last::entry;
use crate::pending::podshm_pending;
use crate::result::podshm_result;
use crate::table::needed;
use podshm::{Caller, Spin};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The way to a call of the agent's. For any number of threads; any number of calls may be out.
pub struct podshm_caller(Caller);

/// The call `name`. Waits spin for 20 us before they sleep. On failure `*caller` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_new(
    client: Ref<podshm_client>,
    name: Text,
    caller: Out<*mut podshm_caller>,
) -> podshm_result {
    entry(|| caller.give(|| Ok(podshm_caller(client.here()?.client.call(name.name()?)?))))
}

/// The same call, with waits that spin for `spin_ns` before they sleep: PODSHM_SPIN_NEVER, PODSHM_SPIN_ALWAYS, or what lies between them.
/// At most half as many threads of a process as there are processors spin for longer than 5 us. On failure `*spinning` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_spinning(
    caller: Ref<podshm_caller>,
    spin_ns: u64,
    spinning: Out<*mut podshm_caller>,
) -> podshm_result {
    let spin = match spin_ns {
        0 => Spin::Never,
        u64::MAX => Spin::Always,
        nanos => Spin::For(Duration::from_nanos(nanos)),
    };
    entry(|| spinning.give(|| Ok(podshm_caller(caller.here()?.0.clone().spin(spin)))))
}

/// The same call, with calls that wait for the next agent where none serves, within their timeout. PODSHM_AGENT_AWAY then says that none came in
/// time; of a caller without it, at once. Nothing is sent twice: what was sent when its agent died ends as of any other caller, by
/// PODSHM_OUTCOME_UNKNOWN or the successor's answer. What was half sent was not sent, and is written anew. On failure `*waiting` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_waiting_for_agent(
    caller: Ref<podshm_caller>,
    waiting: Out<*mut podshm_caller>,
) -> podshm_result {
    entry(|| waiting.give(|| Ok(podshm_caller(caller.here()?.0.clone().wait_for_agent(true)))))
}

/// Frees it. Null is nothing to do. Calls that are out live on.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_free(caller: Own<podshm_caller>) -> podshm_result {
    entry(|| caller.free())
}

/// Sends the request, waits for the response until `timeout_ns`, copies it into `response` and its length into `*response_len` (may be
/// null). Where the room is too small the response is lost, and `*response_len` says what it would have taken.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_call(
    caller: Mut<podshm_caller>,
    request: Data,
    request_len: Len,
    mut response: Room,
    size: Len,
    timeout_ns: u64,
    response_len: Out<usize>,
) -> podshm_result {
    entry(|| {
        response_len.check_if_wanted()?;
        let timeout = Duration::from_nanos(timeout_ns);
        match caller.get()?.0.call(request.slice(request_len)?, response.slice(size)?, timeout) {
            Ok(len) => response_len.set_if_wanted(len),
            Err(error) => {
                if let Some(needed) = needed(&error) {
                    response_len.set_if_wanted(needed)?;
                }
                Err(error.into())
            }
        }
    })
}

/// Sends a request of `request_len` bytes that `fill` writes in place, part by part, and gives the response to `each` as it comes: no whole
/// copy on either side. Parts follow one another; where an agent died in the middle and its successor answers again, they start again
/// at 0, and so do the request's of a podshm_caller_waiting_for_agent(). Neither may use the same call, which is PODSHM_REENTERED.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_call_with(
    caller: Mut<podshm_caller>,
    request_len: usize,
    fill: podshm_fill,
    fill_user: User,
    timeout_ns: u64,
    each: podshm_each,
    each_user: User,
    response_len: Out<usize>,
) -> podshm_result {
    entry(|| {
        response_len.check_if_wanted()?;
        let (mut fill, mut each) = (Fill::new(fill, fill_user, None)?, Each::new(each, each_user)?);
        let fill = |offset: usize, part: &mut [u8]| fill.part(offset, part);
        let each = |offset: usize, total: usize, part: &[u8]| each.part(offset, total, part);
        let timeout = Duration::from_nanos(timeout_ns);
        response_len.set_if_wanted(caller.get()?.0.call_with(request_len, fill, timeout, each)?)
    })
}

/// Sends the request and returns at once; the response comes to `*pending`. Waits for room if the ring is full, and for an agent if it is a
/// podshm_caller_waiting_for_agent(). On failure `*pending` is null.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_start(
    caller: Mut<podshm_caller>,
    request: Data,
    request_len: Len,
    timeout_ns: u64,
    pending: Out<*mut podshm_pending>,
) -> podshm_result {
    entry(|| {
        pending.give(|| {
            let out = caller.here()?.0.start(request.slice(request_len)?, Duration::from_nanos(timeout_ns))?;
            Ok(podshm_pending::new(out))
        })
    })
}

/// A descriptor that becomes readable when responses may have come, for epoll and the like. Read its 8 bytes before you look by
/// podshm_pending_try_take(); podshm_pending_arm() asks for the next event. Not to be closed; it lives as long as what was made of the
/// client.
#[unsafe(no_mangle)]
pub extern "C" fn podshm_caller_event_fd(caller: Ref<podshm_caller>, fd: Out<i32>) -> podshm_result {
    entry(|| fd.set(caller.here()?.0.event_fd()?.as_raw_fd()))
}
