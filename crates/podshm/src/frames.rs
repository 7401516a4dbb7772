//! What rides in front of a call's first fragment, in each direction.
//!
//! ```text
//!  request   [ id u64 ][ deadline u64, monotonic ns, 0: none ][ total u32 ][ reserved u32 ]
//!  response  [ id u64 ][ total u32 ][ status u32 ]
//! ```

/// Bytes of a request's header.
pub(crate) const REQUEST: usize = 24;
/// Bytes of a response's header.
pub(crate) const RESPONSE: usize = 16;
/// Longest fragment: two of them, in the ring and in a private copy, fit the first-level cache, and the copies overlap. (4, 8, 16, 32
/// KiB tried: 64 KiB there and back took 8.0, 8.1, 8.5, 9.9 µs, 1 MiB 125, 119, 121, 147.)
pub(crate) const FRAGMENT: usize = 8 * 1024;

/// Longest record of a message in a ring of `ring` bytes, header of the message included.
pub(crate) fn fragment(ring: u64) -> usize {
    (ring / 4).min(FRAGMENT as u64) as usize
}

/// Longest message of a call.
pub(crate) const MAX_CALL: usize = podshm_proto::MAX_CALL as usize;

/// Status: answered.
pub(crate) const STATUS_OK: u32 = 0;
/// Status: the handler failed or there is none.
pub(crate) const STATUS_FAILED: u32 = 1;
/// Status: a predecessor may have handled it.
pub(crate) const STATUS_UNKNOWN: u32 = 2;
/// Status: the deadline had passed when the agent saw it.
pub(crate) const STATUS_DEADLINE: u32 = 3;

/// Front of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) id: u64,
    pub(crate) deadline: u64,
    pub(crate) total: u32,
}

impl RequestHead {
    pub(crate) fn encode(self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.deadline.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    /// From the first three words of a record.
    #[inline(always)]
    pub(crate) fn from_words(id: u64, deadline: u64, rest: u64) -> Self {
        RequestHead { id, deadline, total: rest as u32 }
    }
}

/// Front of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) id: u64,
    pub(crate) total: u32,
    pub(crate) status: u32,
}

impl ResponseHead {
    pub(crate) fn encode(self) -> [u8; RESPONSE] {
        let mut bytes = [0; RESPONSE];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.total.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.status.to_le_bytes());
        bytes
    }

    /// From the first two words of a record.
    #[inline(always)]
    pub(crate) fn from_words(id: u64, rest: u64) -> Self {
        ResponseHead { id, total: rest as u32, status: (rest >> 32) as u32 }
    }
}
