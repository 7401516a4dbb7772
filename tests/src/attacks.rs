//! Everything that a participant could try on a region that is not its own to write.

use podshm_layout::PAGE;
use rustix::fs::{FallocateFlags, Mode, OFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Tries all of them; adds those that went through, by name.
pub fn all(fd: BorrowedFd<'_>, bytes: u64, through: &mut Vec<&'static str>) {
    let len = bytes as usize;
    let mut check = |name, succeeded: bool| {
        if succeeded {
            through.push(name);
        }
    };
    // SAFETY: fresh mappings at the kernel's choice, not touched except where said, leaked on purpose.
    let map = |fd: BorrowedFd<'_>, prot| unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0)
    };
    check("mmap writable", map(fd, ProtFlags::READ | ProtFlags::WRITE).is_ok());
    check("mmap write only", map(fd, ProtFlags::WRITE).is_ok());
    let read_only = map(fd, ProtFlags::READ).expect("reading is allowed");
    // SAFETY: exactly the mapping made above; nothing of Rust's lives there.
    check(
        "mprotect",
        unsafe { rustix::mm::mprotect(read_only, len, MprotectFlags::READ | MprotectFlags::WRITE) }.is_ok(),
    );
    // SAFETY: as above.
    check("madvise remove", unsafe { rustix::mm::madvise(read_only, PAGE, Advice::LinuxRemove) }.is_ok());
    check("write", rustix::io::pwrite(fd, &[1; 8], 0).is_ok());
    check("shrink", rustix::fs::ftruncate(fd, bytes - PAGE as u64).is_ok());
    check("truncate", rustix::fs::ftruncate(fd, 0).is_ok());
    check("grow", rustix::fs::ftruncate(fd, bytes + PAGE as u64).is_ok());
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    check("punch", rustix::fs::fallocate(fd, punch, 0, PAGE as u64).is_ok());
    check("zero", rustix::fs::fallocate(fd, FallocateFlags::ZERO_RANGE, 0, PAGE as u64).is_ok());
    check("allocate more", rustix::fs::fallocate(fd, FallocateFlags::empty(), bytes, PAGE as u64).is_ok());
    check("another seal", rustix::fs::fcntl_add_seals(fd, SealFlags::SEAL).is_ok());
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // The kernel may well open it; what counts is that the open file can do no more.
    for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::RDWR | OFlags::TRUNC] {
        if let Ok(again) = rustix::fs::open(&path, flags, Mode::empty()) {
            check("re-open and map", map(again.as_fd(), ProtFlags::READ | ProtFlags::WRITE).is_ok());
            check("re-open and write", rustix::io::pwrite(&again, &[1; 8], 0).is_ok());
            check("re-open and shrink", rustix::fs::ftruncate(&again, 0).is_ok());
            check("re-open and punch", rustix::fs::fallocate(&again, punch, 0, PAGE as u64).is_ok());
            if flags == OFlags::RDWR
                && let Ok(read_only) = map(again.as_fd(), ProtFlags::READ)
            {
                // SAFETY: exactly the mapping made above.
                let done = unsafe { rustix::mm::mprotect(read_only, len, MprotectFlags::READ | MprotectFlags::WRITE) };
                check("re-open and mprotect", done.is_ok());
            }
        }
    }
}

/// What a reader's advice to the kernel does, which no seal forbids: each piece of advice with its outcome.
pub fn advise(fd: BorrowedFd<'_>, bytes: u64) -> Vec<String> {
    let len = bytes as usize;
    // Huge pages need a mapping that begins with one.
    const HUGE: usize = 2 << 20;
    // SAFETY: a fresh reservation at the kernel's choice, leaked on purpose.
    let room =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len + HUGE, ProtFlags::empty(), MapFlags::PRIVATE) };
    let room = room.expect("address space").cast::<u8>();
    let start = room.wrapping_add(room.align_offset(HUGE)).cast();
    // SAFETY: a read-only mapping within the reservation made above, where nothing else lies.
    let map = unsafe { rustix::mm::mmap(start, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, fd, 0) };
    let map = map.expect("reading is allowed");
    let pieces = [
        ("collapse", 25),
        ("remove", libc::MADV_REMOVE),
        ("free", libc::MADV_FREE),
        ("dontneed", libc::MADV_DONTNEED),
        ("cold", libc::MADV_COLD),
        ("pageout", libc::MADV_PAGEOUT),
        ("populate for writing", libc::MADV_POPULATE_WRITE),
    ];
    let outcome = |(name, advice): &(&str, i32)| {
        // SAFETY: exactly the mapping made above; nothing of Rust's lives there.
        let done = unsafe { libc::madvise(map, len, *advice) } == 0;
        let error = std::io::Error::last_os_error();
        if done { format!("{name} done") } else { format!("{name} refused ({})", error.kind()) }
    };
    pieces.iter().map(outcome).collect()
}
