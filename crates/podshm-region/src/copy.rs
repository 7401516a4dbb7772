//! Copying bytes out of memory that its writer may be changing at this moment.
//!
//! An ordinary `memcpy` from such memory is a data race. Here the loads are `rep movsb` or vector moves inside `asm!`, which the
//! compiler can neither see through nor repeat; elsewhere than on x86-64 they are relaxed atomic words. The bytes may be torn; the
//! caller's protocol says afterwards whether they held still.

/// From this many bytes on, `rep movsb` beats vector moves (fast short rep moves assumed, any x86-64 of the last decade).
#[cfg(target_arch = "x86_64")]
const REP_FROM: usize = 1024;

/// Copies `len` bytes from `src` to `dst`.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, they don't overlap, and no reference of this process covers `src`.
#[inline]
pub unsafe fn copy_racy(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract is passed on unchanged.
    unsafe {
        if len >= REP_FROM {
            rep_movsb(src, dst, len);
        } else {
            vector_moves(src, dst, len);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's contract is passed on unchanged.
    unsafe {
        words(src, dst, len);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn rep_movsb(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: reads and writes exactly the bytes of the contract; the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags));
    }
}

/// Sixteen bytes at a time, the last ones overlapping; under sixteen by a word, half-word … that overlap likewise.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn vector_moves(src: *const u8, dst: *mut u8, len: usize) {
    use core::arch::asm;
    // SAFETY: every access lies within [0, len): blocks start at i with i + width <= len, the last one at len - width.
    unsafe {
        if len >= 16 {
            let mut i = 0;
            while i + 64 <= len {
                asm!(
                    "movups {a}, [{s}]", "movups {b}, [{s} + 16]", "movups {c}, [{s} + 32]", "movups {e}, [{s} + 48]",
                    "movups [{d}], {a}", "movups [{d} + 16], {b}", "movups [{d} + 32], {c}", "movups [{d} + 48], {e}",
                    s = in(reg) src.add(i), d = in(reg) dst.add(i),
                    a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, e = out(xmm_reg) _,
                    options(nostack, preserves_flags)
                );
                i += 64;
            }
            while i + 16 <= len {
                move16(src.add(i), dst.add(i));
                i += 16;
            }
            if i < len {
                move16(src.add(len - 16), dst.add(len - 16));
            }
        } else if len >= 8 {
            move8(src, dst);
            move8(src.add(len - 8), dst.add(len - 8));
        } else {
            for i in 0..len {
                asm!("mov {t}, byte ptr [{s}]", "mov byte ptr [{d}], {t}",
                    s = in(reg) src.add(i), d = in(reg) dst.add(i), t = out(reg_byte) _,
                    options(nostack, preserves_flags));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn move16(src: *const u8, dst: *mut u8) {
    // SAFETY: sixteen readable and writable bytes, by the caller.
    unsafe {
        core::arch::asm!("movups {t}, [{s}]", "movups [{d}], {t}", s = in(reg) src, d = in(reg) dst,
            t = out(xmm_reg) _, options(nostack, preserves_flags));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn move8(src: *const u8, dst: *mut u8) {
    // SAFETY: eight readable and writable bytes, by the caller.
    unsafe {
        core::arch::asm!("mov {t}, [{s}]", "mov [{d}], {t}", s = in(reg) src, d = in(reg) dst,
            t = out(reg) _, options(nostack, preserves_flags));
    }
}

/// The portable way: relaxed atomic bytes up to alignment, then relaxed atomic words.
#[cfg_attr(target_arch = "x86_64", cfg(test))]
unsafe fn words(src: *const u8, dst: *mut u8, len: usize) {
    use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
    let mut i = 0;
    // SAFETY: every access lies within [0, len); the word loads are aligned because `src + i` is; atomics are the only accesses.
    unsafe {
        while i < len && !(src as usize + i).is_multiple_of(8) {
            *dst.add(i) = (*src.add(i).cast::<AtomicU8>()).load(Ordering::Relaxed);
            i += 1;
        }
        while i + 8 <= len {
            let word = (*src.add(i).cast::<AtomicU64>()).load(Ordering::Relaxed);
            dst.add(i).cast::<[u8; 8]>().write(word.to_ne_bytes());
            i += 8;
        }
        while i < len {
            *dst.add(i) = (*src.add(i).cast::<AtomicU8>()).load(Ordering::Relaxed);
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_every_length_and_alignment_exactly() {
        let src: Vec<u8> = (0..3000u32).map(|i| (i * 7 % 251) as u8).collect();
        for way in [copy_racy as unsafe fn(*const u8, *mut u8, usize), words] {
            for len in (0..300).chain([1000, 1023, 1024, 1025, 2048, 2900]) {
                for shift in 0..9 {
                    let mut dst = vec![0xeeu8; len + 16];
                    // SAFETY: `shift + len <= 3000`, `8 + len <= dst.len()`; two separate vectors.
                    unsafe { way(src.as_ptr().add(shift), dst.as_mut_ptr().add(8), len) };
                    assert_eq!(dst[8..8 + len], src[shift..shift + len], "length {len}, shift {shift}");
                    assert!(dst[..8].iter().chain(&dst[8 + len..]).all(|b| *b == 0xee), "wrote outside");
                }
            }
        }
    }
}
