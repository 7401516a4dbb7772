//! What an agent's author writes: functions, and what they get.

use crate::answer::podshm_answer;
use podshm::{Answer, Handler, Record, Request};
use std::ffi::{c_char, c_void};

/// Some text, which does not end with a zero byte.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct podshm_text {
    /// Its first byte.
    pub data: *const c_char,
    /// Its bytes.
    pub len: usize,
}

/// A record as the handler gets it. It and what it points to live until the handler returns. Later releases may add members at the end.
#[repr(C)]
pub struct podshm_record {
    /// The queue's name.
    pub service: podshm_text,
    /// Who pushed it: "namespace/pod".
    pub member: podshm_text,
    /// Number of the client that pushed it.
    pub client: u64,
    /// Its position in the client's ring: with the client's number, its identity.
    pub position: u64,
    /// Its bytes, copied out of the client's memory.
    pub data: *const c_void,
    /// How many.
    pub len: usize,
    /// A predecessor that died may have handled it already.
    pub maybe_seen: bool,
}

/// A request as the handler gets it. It and what it points to live until the handler returns. Later releases may add members at the end.
#[repr(C)]
pub struct podshm_request {
    /// The call's name.
    pub service: podshm_text,
    /// Who sent it: "namespace/pod".
    pub member: podshm_text,
    /// Number of the client that sent it.
    pub client: u64,
    /// How long its caller waits from now on; PODSHM_FOREVER for no end.
    pub time_left_ns: u64,
    /// Length of all of it.
    pub total: usize,
    /// Its bytes, or those of this part; none where the handler's `part` took them as they came.
    pub data: *const c_void,
    /// How many.
    pub len: usize,
    /// A predecessor that died may have handled it already (only where the call is idempotent).
    pub maybe_seen: bool,
}

/// What an agent does with what its clients send. Functions that are null do nothing. None may unwind or jump out, or use the agent.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct podshm_handler {
    /// sizeof(podshm_handler), so that later releases can tell which members there are.
    pub size: usize,
    /// What every function gets.
    pub user: *mut c_void,
    /// A record of a queue. It is acknowledged when this returns.
    pub record: Option<unsafe extern "C" fn(user: *mut c_void, record: *const podshm_record)>,
    /// A request; answer it through `answer`, which lives until this returns. Without an answer the caller gets PODSHM_FAILED.
    pub call:
        Option<unsafe extern "C" fn(user: *mut c_void, request: *const podshm_request, answer: *mut podshm_answer)>,
    /// A part of a request that came in several, at `offset` of `request->total`. Say true at the first part to take them as they come,
    /// without a whole copy; `call` follows after the last.
    pub part: Option<unsafe extern "C" fn(user: *mut c_void, request: *const podshm_request, offset: usize) -> bool>,
}

/// The functions as a handler of the library's.
pub(crate) struct Functions(pub(crate) podshm_handler);

impl Handler for Functions {
    #[inline]
    fn record(&mut self, record: Record<'_>) {
        let Record { service, client, member, position, maybe_seen, bytes } = record;
        self.0.give_record(&podshm_record {
            service: service.into(),
            member: member.into(),
            client,
            position,
            data: bytes.as_ptr().cast(),
            len: bytes.len(),
            maybe_seen,
        });
    }

    #[inline]
    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        self.0.give_request(&request.into(), answer);
    }

    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        self.0.give_part(&request.into(), offset)
    }
}

impl From<&str> for podshm_text {
    #[inline]
    fn from(text: &str) -> Self {
        podshm_text { data: text.as_ptr().cast(), len: text.len() }
    }
}

impl From<Request<'_>> for podshm_request {
    #[inline]
    fn from(request: Request<'_>) -> Self {
        let Request { service, client, member, maybe_seen, time_left, len, bytes } = request;
        podshm_request {
            service: service.into(),
            member: member.into(),
            client,
            time_left_ns: u64::try_from(time_left.as_nanos()).unwrap_or(u64::MAX),
            total: len,
            data: bytes.as_ptr().cast(),
            len: bytes.len(),
            maybe_seen,
        }
    }
}
