//! Asymmetric fences by membarrier(2): the side that is in a hurry pays nothing, the side that is about to wait pays for both.
//!
//! ```text
//!  in a hurry (a push)                 about to wait (an agent that goes to sleep)
//!  publish                             armed = epoch
//!  compiler fence                      membarrier(2) ── a full fence on every core that runs a registered process
//!  read armed                          look once more
//! ```
//! Wherever the barrier hits the left side, one of the two loads sees the other side's store: before `publish`, the later read
//! sees `armed`; after it, the second look sees what was published. That needs two facts, each said by whoever knows it: the
//! left side's process is registered ([`register_global`]), the right side's kernel lets it call ([`global_works`]). Where
//! either is missing, the left side goes back to a full fence of its own. A process that lies about it loses its own wake-ups.
//!
//! Registering has a price: any process of the machine may then interrupt the cores that run us for about a microsecond a call,
//! as it may do by other means. `PODSHM_MEMBARRIER=0` turns the whole thing off.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

// Commands of membarrier(2), as linux/membarrier.h has them.
const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier(2) takes numbers only and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

fn is_off() -> bool {
    static OFF: OnceLock<bool> = OnceLock::new();
    *OFF.get_or_init(|| std::env::var_os("PODSHM_MEMBARRIER").is_some_and(|value| value == "0"))
}

/// Registers this process for barriers of others; says whether it is. Costs a system call each time: whether a forked child
/// stays registered differs from kernel to kernel, so whoever joins asks anew. The first time in a process of several threads
/// the kernel waits for a grace period, some ten milliseconds (12 and 16 seen for both kinds): nothing that should be quick may
/// wait for it.
pub fn register_global() -> bool {
    !is_off() && membarrier(REGISTER_GLOBAL_EXPEDITED)
}

/// Registers this process for both kinds, so that doing it again costs a system call only.
pub fn register() {
    let epoch = crate::fork::install();
    register_private();
    register_global();
    REGISTERED.store(epoch, Ordering::Release);
}

/// Whether [`register`] has been through in this process, and not only in one that it was forked from.
pub fn is_registered() -> bool {
    REGISTERED.load(Ordering::Acquire) == crate::fork::install()
}

/// The epoch of the process that has been through [`register`]; no process has 0.
static REGISTERED: AtomicU32 = AtomicU32::new(0);

/// Whether this process may call [`global`].
pub fn global_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| !is_off() && membarrier(GLOBAL_EXPEDITED))
}

/// A full fence here and in every thread of a registered process that runs now; others went through one when they stopped
/// running. A system call and an interrupt for each such core: for the way to sleep, not for a hot path.
pub fn global() {
    if global_works() {
        membarrier(GLOBAL_EXPEDITED);
    }
}

/// Registers this process for its own barriers; says whether [`private`] works. Costs what [`register_global`] does.
pub fn register_private() -> bool {
    !is_off() && membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED)
}

/// A full fence in every running thread of this process.
///
/// # Panics
/// If the kernel takes back what it promised to [`register_private`]: going on would break mutual exclusion.
pub fn private() {
    assert!(membarrier(PRIVATE_EXPEDITED), "membarrier(2) worked before and fails now");
}

/// The left side's part: the compiler keeps the order of program text here.
#[inline(always)]
pub fn light() {
    compiler_fence(Ordering::SeqCst);
}
