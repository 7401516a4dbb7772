//! What is sent: every byte written by the sender, every byte summed by the receiver.
//!
//! A payload is a run of little-endian u64 words `seed, seed+1, seed+2, …`, so its wrapping sum
//! is known without keeping a copy, and a stale, torn or doubled fragment gives another one.
//! Lengths are multiples of 8.

/// Writes words `first ..` of the payload of `seed` into the whole of `out`; `first` is not 0
/// when `out` is a later fragment of a message.
#[inline]
pub fn fill_from(out: &mut [u8], seed: u64, first: usize) {
    debug_assert_eq!(out.len() % 8, 0);
    let mut word = seed.wrapping_add(first as u64);
    for bytes in out.as_chunks_mut::<8>().0 {
        *bytes = word.to_le_bytes();
        word = word.wrapping_add(1);
    }
}

/// Writes the payload of `seed` into the whole of `out`.
#[inline]
pub fn fill(out: &mut [u8], seed: u64) {
    fill_from(out, seed, 0);
}

/// The wrapping sum of the words of `bytes`; sums of fragments add up (wrapping).
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    debug_assert_eq!(bytes.len() % 8, 0);
    bytes.as_chunks::<8>().0.iter().fold(0, |sum, bytes| sum.wrapping_add(u64::from_le_bytes(*bytes)))
}

/// What [`sum`] gives over the whole payload of `seed` of `len` bytes.
#[inline]
pub fn expected(len: usize, seed: u64) -> u64 {
    let words = (len / 8) as u64;
    seed.wrapping_mul(words).wrapping_add(words.wrapping_mul(words.wrapping_sub(1)) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_sum_to_the_whole() {
        let mut whole = vec![0; 4096];
        fill(&mut whole, u64::MAX - 7);
        assert_eq!(sum(&whole), expected(4096, u64::MAX - 7));
        let (mut a, mut b) = ([0; 1000], [0; 3096]);
        fill_from(&mut a, u64::MAX - 7, 0);
        fill_from(&mut b, u64::MAX - 7, 125);
        assert_eq!([&a[..], &b[..]].concat(), whole);
    }

    #[test]
    fn another_seed_sums_to_something_else() {
        assert_ne!(expected(64, 1), expected(64, 2));
    }
}
