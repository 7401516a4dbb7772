//! Noticing `fork`: a child has none of the mappings, and must not keep the parent's sockets open.
//!
//! Two independent means. A page with `MADV_WIPEONFORK` reads as zero in a child, however the child was made (`fork`, `clone`,
//! a raw system call): comparing [`epoch`] is one load. And a `pthread_atfork` handler closes every socket in [`CloseAtFork`] in the child, so
//! that the peer sees the parent's death in time; a raw `clone` that passes by the handler keeps them until it execs or exits.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

static CANARY: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
static INSTALLED: OnceLock<()> = OnceLock::new();
static EPOCHS: AtomicU32 = AtomicU32::new(0);
const SLOTS: usize = 1024;
static SOCKETS: [AtomicI32; SLOTS] = [const { AtomicI32::new(-1) }; SLOTS];

/// Installs both means and returns this process's epoch: what a handle keeps and compares with [`epoch`]. The first call in a
/// forked child starts an epoch of its own, so that a child may join anew.
pub fn install() -> u32 {
    INSTALLED.get_or_init(|| {
        let size = 4096;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let page = unsafe {
            mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .expect("one page of memory");
        // SAFETY: exactly the page made above, never unmapped.
        unsafe { madvise(page, size, Advice::LinuxWipeOnFork) }.expect("MADV_WIPEONFORK: Linux 4.14 or newer");
        CANARY.store(page.cast(), Ordering::Release);
        // SAFETY: the handler only swaps atomics and calls close(2): async-signal-safe.
        unsafe { libc::pthread_atfork(None, None, Some(close_sockets_in_child)) };
    });
    let canary = CANARY.load(Ordering::Acquire);
    // SAFETY: set above to a zeroed, aligned page that is never unmapped.
    let canary = unsafe { &*canary };
    if canary.load(Ordering::Relaxed) == 0 {
        let new = EPOCHS.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = canary.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
    }
    canary.load(Ordering::Relaxed)
}

/// This process's epoch; 0 in a forked child that has not called [`install`]. One load.
#[inline]
pub fn epoch() -> u32 {
    let canary = CANARY.load(Ordering::Relaxed);
    if canary.is_null() {
        return 0;
    }
    // SAFETY: a page that is never unmapped.
    unsafe { (*canary).load(Ordering::Relaxed) }
}

extern "C" fn close_sockets_in_child() {
    for slot in &SOCKETS {
        let fd = slot.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: a descriptor that its owner registered and has not closed: it unregisters first. The child's handles refuse
            // to work before they could use it.
            unsafe { libc::close(fd) };
        }
    }
}

/// A socket that a forked child closes at once. Drop it before the socket.
#[derive(Debug)]
pub struct CloseAtFork {
    slot: Option<usize>,
}

impl CloseAtFork {
    /// Registers `socket`. With more than 1,024 of them the child keeps the rest, and reclaim is late.
    pub fn register(socket: BorrowedFd<'_>) -> Self {
        install();
        let fd = socket.as_raw_fd();
        let slot =
            SOCKETS.iter().position(|s| s.compare_exchange(-1, fd, Ordering::Relaxed, Ordering::Relaxed).is_ok());
        CloseAtFork { slot }
    }
}

impl Drop for CloseAtFork {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            SOCKETS[slot].store(-1, Ordering::Relaxed);
        }
    }
}
