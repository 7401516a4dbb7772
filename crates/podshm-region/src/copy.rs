//! Copying bytes out of memory that its writer may be changing at this moment.
//!
//! An ordinary `memcpy` from such memory is a data race. Here the loads are `rep movsb` or vector moves inside `asm!`, which the
//! compiler can neither see through nor repeat; elsewhere than on x86-64 they are relaxed atomic words. The bytes may be torn; the
//! caller's protocol says afterwards whether they held still.
//!
//! Up to 256 bytes a copy is a fixed set of moves from both ends that overlap in the middle: no loop, one branch a size class.

/// From this many bytes on, `rep movsb` beats vector moves (fast short rep moves assumed, any x86-64 of the last decade).
#[cfg(target_arch = "x86_64")]
const REP_FROM: usize = 1024;

/// Whether the processor has AVX, once [`look_at_processor`] has looked. Until then copies are right all the same.
#[cfg(target_arch = "x86_64")]
static HAS_AVX: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Finds out how to copy fastest. The standard library's macro looks when it is asked first; a copy with that call in it has registers
/// to save on each of its ways, which a lookup of a few nanoseconds pays for.
pub fn look_at_processor() {
    #[cfg(target_arch = "x86_64")]
    // Relaxed: says nothing of anything else.
    HAS_AVX.store(std::arch::is_x86_feature_detected!("avx"), std::sync::atomic::Ordering::Relaxed);
}

/// Copies `len` bytes from `src` to `dst`.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, they don't overlap, and no reference of this process covers `src`.
#[inline(always)]
pub unsafe fn copy_racy(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract is passed on unchanged.
    unsafe {
        if len <= 64 {
            up_to_64(src, dst, len);
        } else if len <= 256 {
            up_to_256(src, dst, len);
        } else {
            longer(src, dst, len);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's contract is passed on unchanged.
    unsafe {
        words(src, dst, len);
    }
}

/// Asks for the cache line at `place` ahead of reading it. Any address will do: a prefetch never faults.
#[inline(always)]
pub fn prefetch_read(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 has no effect but on caches, whatever the address is.
    unsafe {
        core::arch::asm!("prefetcht0 [{p}]", p = in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for the cache line at `place` ahead of writing to it.
#[inline(always)]
pub fn prefetch_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHW has no effect but on caches, whatever the address is; where it is missing it does nothing.
    unsafe {
        core::arch::asm!("prefetchw [{p}]", p = in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Two moves of `$width` bytes that cover `$len` bytes (from one width to two) by overlapping. By vector registers and an index whatever the
/// width: then a copy takes no register but those that its arguments are in, and whoever inlines it has none to save.
#[cfg(target_arch = "x86_64")]
macro_rules! both_ends {
    ($src:ident, $dst:ident, $len:ident, $width:literal, $move:literal) => {
        core::arch::asm!(
            concat!($move, " {a}, [{s}]"),
            concat!($move, " {b}, [{s} + {n} - ", $width, "]"),
            concat!($move, " [{d}], {a}"),
            concat!($move, " [{d} + {n} - ", $width, "], {b}"),
            s = in(reg) $src, d = in(reg) $dst, n = in(reg) $len,
            a = out(xmm_reg) _, b = out(xmm_reg) _,
            options(nostack, preserves_flags)
        )
    };
}

/// Four moves of 16 bytes at these places of `$s` and `$d`; everything is loaded before anything is stored.
#[cfg(target_arch = "x86_64")]
macro_rules! four {
    ($src:ident, $dst:ident, $index:ident, $one:literal, $two:literal, $three:literal, $four:literal) => {
        core::arch::asm!(
            "/* {n} */", // not every place has it
            concat!("movups {a}, [{s}", $one, "]"),
            concat!("movups {b}, [{s}", $two, "]"),
            concat!("movups {c}, [{s}", $three, "]"),
            concat!("movups {f}, [{s}", $four, "]"),
            concat!("movups [{d}", $one, "], {a}"),
            concat!("movups [{d}", $two, "], {b}"),
            concat!("movups [{d}", $three, "], {c}"),
            concat!("movups [{d}", $four, "], {f}"),
            s = in(reg) $src, d = in(reg) $dst, n = in(reg) $index,
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, f = out(xmm_reg) _,
            options(nostack, preserves_flags)
        )
    };
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn up_to_64(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: in each class the moves start at 0 or end at `len` and are no wider than `len`: all within [0, len).
    unsafe {
        if len >= 32 {
            four!(src, dst, len, "", " + 16", " + {n} - 32", " + {n} - 16");
        } else if len >= 16 {
            both_ends!(src, dst, len, 16, "movups");
        } else if len >= 8 {
            both_ends!(src, dst, len, 8, "movq");
        } else if len >= 4 {
            both_ends!(src, dst, len, 4, "movd");
        } else {
            for i in 0..len {
                core::arch::asm!("mov {t}, byte ptr [{s}]", "mov byte ptr [{d}], {t}",
                    s = in(reg) src.add(i), d = in(reg) dst.add(i), t = out(reg_byte) _,
                    options(nostack, preserves_flags));
            }
        }
    }
}

/// From 65 to 256 bytes: 64 or 128 from each end.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn up_to_256(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: 64 <= len, and 128 <= len where 128 bytes are taken: all within [0, len). AVX where the processor has it.
    unsafe {
        if len > 128 {
            if HAS_AVX.load(std::sync::atomic::Ordering::Relaxed) {
                return wide(src, dst, len);
            }
            four!(src, dst, len, " + 64", " + 80", " + 96", " + 112");
            four!(src, dst, len, " + {n} - 128", " + {n} - 112", " + {n} - 96", " + {n} - 80");
        }
        four!(src, dst, len, "", " + 16", " + 32", " + 48");
        four!(src, dst, len, " + {n} - 64", " + {n} - 48", " + {n} - 32", " + {n} - 16");
    }
}

/// From 128 to 256 bytes by moves of 32: 128 from each end, all loaded before anything is stored.
///
/// # Safety
/// As [`copy_racy`], with 128 to 256 bytes, on a processor with AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn wide(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: 128 bytes from the start and 128 up to the end: all within [0, len). The upper halves that are used are cleared
    // again, so that no code around pays for them; the compiler keeps nothing there in code that is not made for AVX.
    unsafe {
        core::arch::asm!(
            "vmovups ymm0, [{s}]", "vmovups ymm1, [{s} + 32]", "vmovups ymm2, [{s} + 64]", "vmovups ymm3, [{s} + 96]",
            "vmovups ymm4, [{s} + {n} - 128]", "vmovups ymm5, [{s} + {n} - 96]",
            "vmovups ymm6, [{s} + {n} - 64]", "vmovups ymm7, [{s} + {n} - 32]",
            "vmovups [{d}], ymm0", "vmovups [{d} + 32], ymm1", "vmovups [{d} + 64], ymm2", "vmovups [{d} + 96], ymm3",
            "vmovups [{d} + {n} - 128], ymm4", "vmovups [{d} + {n} - 96], ymm5",
            "vmovups [{d} + {n} - 64], ymm6", "vmovups [{d} + {n} - 32], ymm7",
            "vzeroupper",
            s = in(reg) src, d = in(reg) dst, n = in(reg) len,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn longer(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: reads and writes exactly the bytes of the contract; the direction flag is clear by the ABI. The loop's blocks start
    // at i with i + 64 <= len, the last one at len - 64.
    unsafe {
        if len >= REP_FROM {
            core::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
                options(nostack, preserves_flags));
            return;
        }
        let mut i = 0;
        while i + 64 <= len {
            four!(src, dst, i, " + {n}", " + {n} + 16", " + {n} + 32", " + {n} + 48");
            i += 64;
        }
        four!(src, dst, len, " + {n} - 64", " + {n} - 48", " + {n} - 32", " + {n} - 16");
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
        let looked = |src, dst, len| {
            look_at_processor();
            // SAFETY: the caller's contract is passed on unchanged.
            unsafe { copy_racy(src, dst, len) }
        };
        for way in [copy_racy as unsafe fn(*const u8, *mut u8, usize), looked, words] {
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
