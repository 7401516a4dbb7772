//! What an agent's author writes: a handler, and what it gets.

use super::answer::Answer;
use std::time::Duration;

/// A record as the handler gets it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The queue's name.
    pub service: &'a str,
    /// Number of the client that pushed it.
    pub client: u64,
    /// Who that is: `namespace/pod`.
    pub member: &'a str,
    /// Its position in the client's ring: with the client's number, its identity.
    pub position: u64,
    /// A predecessor that died may have handled it already.
    pub maybe_seen: bool,
    /// Its bytes, copied out of the client's memory.
    pub bytes: &'a [u8],
}

/// A request as the handler gets it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The call's name.
    pub service: &'a str,
    /// Number of the client that sent it.
    pub client: u64,
    /// Who that is: `namespace/pod`.
    pub member: &'a str,
    /// A predecessor that died may have handled it already (only where the service is idempotent).
    pub maybe_seen: bool,
    /// How long its caller waits from now on; [`Duration::MAX`] for no end.
    pub time_left: Duration,
    /// Its length.
    pub len: usize,
    /// Its bytes; empty where [`Handler::part`] took them as they came.
    pub bytes: &'a [u8],
}

/// What an agent does with what its clients send. A record is acknowledged when `record` returns.
pub trait Handler {
    /// A record of a queue.
    fn record(&mut self, record: Record<'_>) {
        let _ = record;
    }

    /// A record before it is copied, for who has a place of his own for it: `record.bytes` is empty, and `copy` fills a place of `len` bytes
    /// out of the client's memory, once. It says `false` where another agent serves by now, and the record is not this one's. Say `true` if
    /// the record is taken so; [`Handler::record`] does not follow then.
    #[inline(always)]
    fn record_in_place(&mut self, record: Record<'_>, len: usize, copy: &mut dyn FnMut(&mut [u8]) -> bool) -> bool {
        let _ = (record, len, copy);
        false
    }

    /// A request; answer it through `answer`. Returning without an answer tells the caller that it failed.
    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let _ = (request, answer);
    }

    /// A part of a request that came in several, at `offset` of `request.len`. Say `true` at the first part to take them as they come,
    /// without a whole copy; [`Handler::call`] follows after the last.
    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        let _ = (request, offset);
        false
    }
}
