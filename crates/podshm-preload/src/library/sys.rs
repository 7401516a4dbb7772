//! System calls by hand: the library links to no libc, so that there is no version of one that it could need.

use core::ffi::{c_int, c_void};

/// A system call's outcome: the errno, positive, where it failed.
pub type Sys = Result<usize, c_int>;

#[cfg(target_arch = "x86_64")]
#[allow(missing_docs)]
pub mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const MREMAP: usize = 25;
    pub const SHMGET: usize = 29;
    pub const SHMAT: usize = 30;
    pub const SHMCTL: usize = 31;
    pub const GETPID: usize = 39;
    pub const NANOSLEEP: usize = 35;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const SEMGET: usize = 64;
    pub const SEMOP: usize = 65;
    pub const SEMCTL: usize = 66;
    pub const SHMDT: usize = 67;
    pub const MSGGET: usize = 68;
    pub const MSGSND: usize = 69;
    pub const MSGRCV: usize = 70;
    pub const MSGCTL: usize = 71;
    pub const FTRUNCATE: usize = 77;
    pub const FUTEX: usize = 202;
    pub const SEMTIMEDOP: usize = 220;
    pub const MQ_OPEN: usize = 240;
    pub const OPENAT: usize = 257;
    pub const UNLINKAT: usize = 263;
    pub const READLINKAT: usize = 267;
    pub const PPOLL: usize = 271;
    pub const STATX: usize = 332;
}
#[cfg(target_arch = "aarch64")]
#[allow(missing_docs)]
pub mod nr {
    pub const UNLINKAT: usize = 35;
    pub const FTRUNCATE: usize = 46;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const READLINKAT: usize = 78;
    pub const FUTEX: usize = 98;
    pub const NANOSLEEP: usize = 101;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const GETPID: usize = 172;
    pub const MQ_OPEN: usize = 180;
    pub const MSGGET: usize = 186;
    pub const MSGCTL: usize = 187;
    pub const MSGRCV: usize = 188;
    pub const MSGSND: usize = 189;
    pub const SEMGET: usize = 190;
    pub const SEMCTL: usize = 191;
    pub const SEMTIMEDOP: usize = 192;
    pub const SEMOP: usize = 193;
    pub const SHMGET: usize = 194;
    pub const SHMCTL: usize = 195;
    pub const SHMAT: usize = 196;
    pub const SHMDT: usize = 197;
    pub const SOCKET: usize = 198;
    pub const CONNECT: usize = 203;
    pub const SENDMSG: usize = 211;
    pub const RECVMSG: usize = 212;
    pub const MUNMAP: usize = 215;
    pub const MREMAP: usize = 216;
    pub const MMAP: usize = 222;
    pub const STATX: usize = 291;
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("libpodshm-preload.so knows the system calls of x86_64 and aarch64; add this architecture's to sys.rs");

/// Any system call.
///
/// # Safety
/// As that of the call: pointers have to be what the kernel expects of them, and what it changes must be the caller's.
pub unsafe fn raw(number: usize, a: [usize; 6]) -> Sys {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention: rcx and r11 are lost; memory effects are the caller's promise.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1],
            in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; memory effects are the caller's promise.
    unsafe {
        core::arch::asm!("svc 0", in("x8") number, inlateout("x0") a[0] as isize => result, in("x1") a[1], in("x2") a[2],
            in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    if (-4095..0).contains(&result) { Err(-result as c_int) } else { Ok(result as usize) }
}

/// The errnos that are named here; the same on both architectures.
#[allow(missing_docs)]
pub mod errno {
    use core::ffi::c_int;
    pub const ENOENT: c_int = 2;
    pub const EINTR: c_int = 4;
    pub const ENOMEM: c_int = 12;
    pub const EPERM: c_int = 1;
    pub const EACCES: c_int = 13;
    pub const EIDRM: c_int = 43;
    pub const EFAULT: c_int = 14;
    pub const EEXIST: c_int = 17;
    pub const EXDEV: c_int = 18;
    pub const EINVAL: c_int = 22;
    pub const ENOSPC: c_int = 28;
    pub const EPIPE: c_int = 32;
    pub const ENAMETOOLONG: c_int = 36;
    pub const ENOSYS: c_int = 38;
    pub const ECONNRESET: c_int = 104;
    pub const ETIMEDOUT: c_int = 110;
    pub const ECONNREFUSED: c_int = 111;
}

pub(super) const AT_FDCWD: usize = -100isize as usize;
pub(super) const O_RDONLY: usize = 0;
pub(super) const O_CLOEXEC: usize = 0o2000000;
#[cfg(target_arch = "x86_64")]
pub(super) const O_NOFOLLOW: usize = 0o400000;
#[cfg(target_arch = "aarch64")]
pub(super) const O_NOFOLLOW: usize = 0o100000;
pub(super) const O_PATH: usize = 0o10000000;

pub(super) const PROT_READ: usize = 1;
pub(super) const PROT_WRITE: usize = 2;
pub(super) const PROT_EXEC: usize = 4;
pub(super) const MAP_SHARED: usize = 1;
pub(super) const MAP_PRIVATE: usize = 2;
pub(super) const MAP_FIXED: usize = 0x10;
pub(super) const MAP_ANONYMOUS: usize = 0x20;
pub(super) const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

/// A descriptor for one call's length.
#[derive(Debug)]
pub struct Fd(pub c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        close(self.0);
    }
}

pub(super) fn close(fd: c_int) {
    // SAFETY: callers own the descriptor; closing touches no memory.
    let _ = unsafe { raw(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Opens a path that ends in NUL.
pub(super) fn open(path: &[u8], flags: usize, mode: usize) -> Result<Fd, c_int> {
    debug_assert_eq!(path.last(), Some(&0));
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    unsafe { raw(nr::OPENAT, [AT_FDCWD, path.as_ptr() as usize, flags, mode, 0, 0]) }.map(|fd| Fd(fd as c_int))
}

pub(super) fn read(fd: &Fd, into: &mut [u8]) -> Sys {
    loop {
        // SAFETY: the kernel writes at most the slice's length into it.
        match unsafe { raw(nr::READ, [fd.0 as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) } {
            Err(errno::EINTR) => {}
            other => return other,
        }
    }
}

pub(super) fn write(fd: c_int, bytes: &[u8]) {
    // SAFETY: the kernel reads the slice.
    let _ = unsafe { raw(nr::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) };
}

pub(super) fn pid() -> i32 {
    // SAFETY: touches no memory.
    unsafe { raw(nr::GETPID, [0; 6]) }.unwrap_or(0) as i32
}

pub(super) fn sleep_ms(ms: i64) {
    let time = [ms / 1000, ms % 1000 * 1_000_000];
    // SAFETY: the kernel reads one timespec, which two i64 are on 64-bit Linux.
    let _ = unsafe { raw(nr::NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

/// Device and inode of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileId {
    /// Major and minor.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
}

/// An open file's identity, size and mode.
pub(super) fn stat(fd: c_int) -> Result<(FileId, u64, u16), c_int> {
    let mut statx = [0u64; 32];
    const AT_EMPTY_PATH: usize = 0x1000;
    const BASIC: usize = 0x7ff;
    let into = statx.as_mut_ptr() as usize;
    // SAFETY: an empty path, and 256 bytes for the kernel to fill, which is what struct statx has.
    unsafe { raw(nr::STATX, [fd as usize, c"".as_ptr() as usize, AT_EMPTY_PATH, BASIC, into, 0]) }?;
    // By offset: mode at 28, inode at 32, size at 40, device at 136.
    let id = FileId { device: (statx[17] as u32, (statx[17] >> 32) as u32), inode: statx[4] };
    Ok((id, statx[5], (statx[3] >> 32) as u16))
}

/// Maps a file, or memory where `fd` is -1.
///
/// # Safety
/// With `MAP_FIXED` whatever is mapped there goes; the caller owns the range or was asked for it by the program.
pub(super) unsafe fn mmap(at: usize, length: usize, prot: usize, flags: usize, fd: c_int, offset: u64) -> Sys {
    // SAFETY: passed on to the caller.
    unsafe { raw(nr::MMAP, [at, length, prot, flags, fd as usize, offset as usize]) }
}

/// Unmaps.
///
/// # Safety
/// Nobody uses the range any more, or the program asked for it.
pub(super) unsafe fn munmap(at: usize, length: usize) -> Sys {
    // SAFETY: passed on to the caller.
    unsafe { raw(nr::MUNMAP, [at, length, 0, 0, 0, 0]) }
}

/// The pointer as a number, for raw calls.
pub(super) fn address(pointer: *const c_void) -> usize {
    pointer as usize
}
