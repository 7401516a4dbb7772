//! The heads in front of a call's first fragment, in each direction.

use podshm::fuzzing::{request_head, response_head};

/// The target.
pub fn frames(data: &[u8]) {
    let words: Vec<u64> =
        data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect();
    if let Some(&words) = words.first_chunk::<3>() {
        let (id, deadline, total, encoded) = request_head(words);
        assert_eq!((id, deadline, u64::from(total)), (words[0], words[1], words[2] & 0xffff_ffff));
        // The last four bytes are reserved: written as 0, not read.
        assert_eq!(encoded[..20], data[..20]);
        assert_eq!(encoded[20..], [0; 4]);
    }
    if let Some(&words) = words.first_chunk::<2>() {
        let (id, total, status, encoded) = response_head(words);
        assert_eq!((id, u64::from(total), u64::from(status)), (words[0], words[1] & 0xffff_ffff, words[1] >> 32));
        assert_eq!(encoded, data[..16]);
    }
}
