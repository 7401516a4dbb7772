//! Noticing `fork`: a child has none of the mappings, and must not keep the parent's descriptors.
//!
//! ```text
//!            fork(3)                        _Fork, clone(2)                vfork, posix_spawn
//!   maps     gone: MADV_DONTFORK            gone                           shared until exec, then gone
//!   handles  epoch 0, they refuse           epoch 0, they refuse           (nothing but exec is allowed there)
//!   fds      closed by the atfork handler   closed when the child first    close-on-exec
//!                                           touches the library, else kept
//! ```
//! A page with `MADV_WIPEONFORK` reads as zero in a child, however the child was made: comparing [`epoch`] is one load. Descriptors
//! that must not outlive this process ([`ProcessFd`]) are listed, and a `pthread_atfork` handler closes them in the child, so that peers see
//! the parent's death in time. A child that was made behind the handler's back keeps them until it uses the library, execs or
//! exits; the broker finds that out by a pidfd, late, and names it.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// Zero in a forked child until it has done what the field says.
#[repr(C)]
struct Wiped {
    epoch: AtomicU32,
    /// [`LEAVING`] or [`LEFT`]: what came with the fork is closed.
    parent: AtomicU32,
}

const LEAVING: u32 = 1;
const LEFT: u32 = 2;
const PAGE: usize = 4096;

static WIPED: AtomicPtr<Wiped> = AtomicPtr::new(std::ptr::null_mut());
static EPOCHS: AtomicU32 = AtomicU32::new(0);

const SLOTS: usize = 64 * 1024;
/// Descriptor plus one; zero is free. Untouched slots cost no memory.
static LISTED: [AtomicI32; SLOTS] = [const { AtomicI32::new(0) }; SLOTS];
/// No slot from here on was ever taken.
static HIGH: AtomicUsize = AtomicUsize::new(0);
/// Where to look for a free slot first.
static HINT: AtomicUsize = AtomicUsize::new(0);

/// Starts noticing forks and returns this process's epoch: what a handle keeps and compares with [`epoch`]. The first call in a
/// forked child starts an epoch of its own, so that a child may join anew. Takes no lock: a fork at any moment leaves none held.
pub fn install() -> u32 {
    let mut page = WIPED.load(Ordering::Acquire);
    if page.is_null() {
        page = make_page();
    }
    leave_parent();
    // SAFETY: `make_page` or an earlier call made it: aligned, zeroed, never unmapped, reached by atomics only.
    let epoch = unsafe { &(*page).epoch };
    if epoch.load(Ordering::Relaxed) == 0 {
        let new = EPOCHS.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = epoch.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
    }
    epoch.load(Ordering::Relaxed)
}

#[cold]
fn make_page() -> *mut Wiped {
    // Twice is as good as once, where two threads come here together: the handler finds nothing left to close.
    // SAFETY: the handler only swaps atomics, yields and calls close(2): async-signal-safe.
    unsafe { libc::pthread_atfork(None, None, Some(leave_parent_in_child)) };
    // SAFETY: a fresh private mapping at an address of the kernel's choice.
    let page =
        unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }
            .expect("one page of memory");
    // SAFETY: exactly the page made above, which nobody has seen yet.
    unsafe { madvise(page, PAGE, Advice::LinuxWipeOnFork) }.expect("MADV_WIPEONFORK: Linux 4.14 or newer");
    let page: *mut Wiped = page.cast();
    match WIPED.compare_exchange(std::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => page,
        Err(first) => {
            // SAFETY: the page made above; another thread's was first, so nobody has ever seen this one.
            let _ = unsafe { munmap(page.cast(), PAGE) };
            first
        }
    }
}

/// This process's epoch; 0 in a forked child that has not called [`install`]. One load.
#[inline]
pub fn epoch() -> u32 {
    let page = WIPED.load(Ordering::Relaxed);
    if page.is_null() {
        return 0;
    }
    // SAFETY: set by `make_page` to a page that is never unmapped.
    unsafe { (*page).epoch.load(Ordering::Relaxed) }
}

/// In a forked child, once: closes what it should not have inherited. Nothing in a process that was not forked, or has done so.
#[cold]
pub fn leave_parent() {
    let page = WIPED.load(Ordering::Acquire);
    if page.is_null() {
        return;
    }
    // SAFETY: set by `make_page` to a page that is never unmapped.
    let parent = unsafe { &(*page).parent };
    // Acquire: pairs with the release of LEFT, so that whoever lists a descriptor after this has its slot to itself.
    match parent.compare_exchange(0, LEAVING, Ordering::Acquire, Ordering::Acquire) {
        Ok(_) => {
            for slot in &LISTED[..HIGH.load(Ordering::Relaxed)] {
                let listed = slot.swap(0, Ordering::Relaxed);
                if listed > 0 {
                    // SAFETY: a descriptor that a ProcessFd of the parent owns. In this process that ProcessFd is of another epoch:
                    // it never closes the number again, and its handle refuses to use it.
                    unsafe { libc::close(listed - 1) };
                }
            }
            parent.store(LEFT, Ordering::Release);
        }
        Err(_) => {
            // Another thread of a child that was cloned is at it: until then no slot may be taken.
            while parent.load(Ordering::Acquire) == LEAVING {
                std::thread::yield_now();
            }
        }
    }
}

extern "C" fn leave_parent_in_child() {
    leave_parent();
}

/// A descriptor that belongs to this process alone: a forked child closes it at once.
///
/// In such a child its number means nothing: whoever owns one compares [`epoch`] before using it.
#[derive(Debug)]
pub struct ProcessFd {
    fd: ManuallyDrop<OwnedFd>,
    epoch: u32,
    slot: Option<usize>,
}

impl ProcessFd {
    /// Lists `fd`. With more than 65,536 of them a child keeps the rest.
    pub fn new(fd: OwnedFd) -> Self {
        let epoch = install();
        let listed = fd.as_raw_fd() + 1;
        let free = |slot: &AtomicI32| slot.compare_exchange(0, listed, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let hint = HINT.load(Ordering::Relaxed).min(SLOTS);
        let slot = (hint..SLOTS).chain(0..hint).find(|&i| free(&LISTED[i]));
        if let Some(slot) = slot {
            HIGH.fetch_max(slot + 1, Ordering::Relaxed);
            HINT.store(slot + 1, Ordering::Relaxed);
        }
        ProcessFd { fd: ManuallyDrop::new(fd), epoch, slot }
    }

    /// The descriptor, which a forked child then keeps.
    ///
    /// # Panics
    /// In a forked child: it is closed there.
    pub fn into_fd(self) -> OwnedFd {
        assert!(self.epoch == epoch(), "a descriptor of the process that forked");
        let mut this = ManuallyDrop::new(self);
        this.unlist();
        // SAFETY: `this` is never dropped, so the descriptor is taken once.
        unsafe { ManuallyDrop::take(&mut this.fd) }
    }

    fn unlist(&self) {
        if let Some(slot) = self.slot {
            LISTED[slot].store(0, Ordering::Relaxed);
            HINT.fetch_min(slot, Ordering::Relaxed);
        }
    }
}

impl Drop for ProcessFd {
    fn drop(&mut self) {
        if self.epoch == epoch() {
            self.unlist();
        } else if self.slot.is_some() {
            // Closed when the parent was left; the number may be another file's by now.
            leave_parent();
            return;
        }
        // SAFETY: dropped here once; `into_fd` is the only other taker and does not come here.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
    }
}

impl AsFd for ProcessFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::fstat;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    /// Runs `child` in a forked child and returns its exit status; `raw` passes the atfork handlers by.
    fn in_child(raw: bool, child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child runs async-signal-safe code and its own memory only, and leaves by _exit.
        let pid = unsafe {
            if raw { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 } else { libc::fork() }
        };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: a child that hangs is ended by the kernel.
            unsafe { libc::alarm(60) };
            let status = child();
            // SAFETY: ends the child without running the test harness's destructors.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "child ended by signal {}", libc::WTERMSIG(status));
        libc::WEXITSTATUS(status)
    }

    fn is_open(fd: i32) -> bool {
        // SAFETY: only asks the kernel whether the number is a descriptor.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn a_child_closes_what_is_the_parents_alone() {
        let (a, b) = pair();
        let (a, number, kept) = (ProcessFd::new(a), b.as_raw_fd(), b);
        let closed = a.as_fd().as_raw_fd();
        let before = epoch();
        assert_ne!(before, 0);
        let status = in_child(false, || i32::from(is_open(closed)) | i32::from(!is_open(number)) << 1);
        assert_eq!(status, 0, "1: the child keeps it; 2: it closed another one");
        // Behind the handler's back: kept until the child touches the library.
        let status = in_child(true, || {
            let kept = is_open(closed);
            let forked = epoch() != before;
            leave_parent();
            i32::from(!kept) | i32::from(is_open(closed)) << 1 | i32::from(!forked) << 2
        });
        assert_eq!(status, 0);
        assert!(is_open(closed) && fstat(&a).is_ok() && fstat(&kept).is_ok(), "the parent keeps both");
    }

    #[test]
    fn dropping_in_a_child_closes_nothing_that_is_its_own() {
        let (a, _b) = pair();
        let number = a.as_raw_fd();
        let mut parents = Some(ProcessFd::new(a));
        for raw in [false, true] {
            let status = in_child(raw, || {
                if install() == 0 {
                    return 1;
                }
                // The number is free by now, and becomes the child's own, in the same slot of the list.
                // (An array: a cloned child may find the allocator locked.)
                let mut own: [_; 64] = std::array::from_fn(|_| Some(pair()));
                let at = own.iter_mut().find_map(|pair| match pair {
                    Some((a, _)) if a.as_raw_fd() == number => pair.take().map(|p| p.0),
                    Some((_, b)) if b.as_raw_fd() == number => pair.take().map(|p| p.1),
                    _ => None,
                });
                let Some(mine) = at.map(ProcessFd::new) else { return 8 };
                drop(parents.take());
                let still = is_open(number);
                drop(mine);
                i32::from(!still) << 1 | i32::from(is_open(number)) << 2
            });
            assert_eq!(
                status, 0,
                "8: the number was not free; 2: the child's own descriptor is closed; 4: it stays open"
            );
        }
        assert!(is_open(number));
    }

    #[test]
    fn epochs_differ_in_every_generation() {
        let first = install();
        assert_eq!(install(), first);
        let status = in_child(false, || {
            let wiped = epoch();
            let second = install();
            let third = in_child(true, || install() as i32);
            i32::from(wiped != 0) | i32::from(second == first) << 1 | i32::from(third == second as i32) << 2
        });
        assert_eq!(status, 0);
    }
}
