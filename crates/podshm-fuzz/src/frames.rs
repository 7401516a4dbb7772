//! The heads in front of a call's first fragment, in each direction.

use podshm::fuzzing::{request_head, response_head};

/// The target.
pub fn frames(data: &[u8]) {
    let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| word(at / 8 * 8) >> (at % 8 * 8) & 0xffff_ffff;
    match request_head(data) {
        Some((id, deadline, total, encoded)) => {
            assert!(data.len() >= encoded.len());
            assert_eq!((id, deadline, u64::from(total)), (word(0), word(8), half(16)));
            // The last four bytes are reserved: written as 0, not read.
            assert_eq!(encoded[..20], data[..20]);
            assert_eq!(encoded[20..], [0; 4]);
        }
        None => assert!(data.len() < 24, "a head of {} bytes was not read", data.len()),
    }
    match response_head(data) {
        Some((id, total, status, encoded)) => {
            assert_eq!((id, u64::from(total), u64::from(status)), (word(0), half(8), half(12)));
            assert_eq!(encoded, data[..16]);
        }
        None => assert!(data.len() < 16, "a head of {} bytes was not read", data.len()),
    }
}
