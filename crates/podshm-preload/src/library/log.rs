//! One line on stderr, once for each cause, where `PODSHM_LOG` asks for it.

use super::{domain, sys};
use core::sync::atomic::{AtomicU32, Ordering};

/// What may be explained.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Cause {
    Semaphores,
    Queues,
    NamedSemaphores,
    NoDaemon,
    Silent,
    HugePages,
    Fork,
    Full,
    Limits,
    Size,
    NoKey,
    NoId,
    Denied,
}

static SAID: AtomicU32 = AtomicU32::new(0);

/// Says why a call ends in an errno, the first time.
pub fn explain(cause: Cause, parts: &[&[u8]]) {
    // Relaxed: at worst two threads say it.
    let bit = 1 << cause as u32;
    if !domain::asks_for_log() || SAID.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    let mut line = [0u8; 512];
    let mut used = 0;
    for part in [b"podshm: " as &[u8]].iter().chain(parts).chain(&[b"\n" as &[u8]]) {
        let take = part.len().min(line.len() - used);
        line[used..used + take].copy_from_slice(&part[..take]);
        used += take;
    }
    sys::write(2, &line[..used]);
}

/// The end of a bug in this library.
pub fn panicked() -> ! {
    sys::write(2, b"podshm: libpodshm-preload.so has found itself in the wrong and ends the program\n");
    loop {
        // SAFETY: an undefined instruction: SIGILL, and nothing after it.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::asm!("ud2")
        };
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            core::arch::asm!("udf #0")
        };
    }
}
