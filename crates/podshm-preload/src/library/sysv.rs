//! `shmget`, `shmat`, `shmdt`, `shmctl` and `ftok`.

use super::attachments::{ATTACHMENTS, Attachment};
use super::call::{BRIEF, PATIENT, Part, Patience, Reply, Request, call};
use super::log::{Cause, explain};
use super::sys::{self, Fd, Sys, errno, nr, raw};
use super::{domain, fork, libc};
use crate::wire::command::*;
use crate::wire::{self, SHMID_DS, request};
use core::ffi::{c_char, c_int, c_void};

const SHM_RDONLY: c_int = 0o10000;
const SHM_RND: c_int = 0o20000;
const SHM_REMAP: c_int = 0o40000;
const SHM_EXEC: c_int = 0o100000;
const SHM_HUGETLB: c_int = 0o4000;
const PAGE: usize = 4096;
const NONE: Part = [0, 0];

fn ask(operation: u32, arguments: [u64; 3], patience: Patience, fds: &mut [c_int]) -> Result<Reply, c_int> {
    let words = request(operation, arguments, sys::pid());
    call(Request { words, tail: NONE, fd: None, into: NONE, fds }, patience)
}

/// # Safety
/// As of shmget(2).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shmget(key: c_int, size: usize, flags: c_int) -> c_int {
    if !domain::present() {
        // SAFETY: the program's own call.
        return libc::to_c(unsafe { raw(nr::SHMGET, [key as usize, size, flags as usize, 0, 0, 0]) }) as c_int;
    }
    if flags & SHM_HUGETLB != 0 {
        explain(Cause::HugePages, &[b"SHM_HUGETLB: a domain has no huge pages; ENOMEM, as where none are configured"]);
    }
    let result = ask(wire::GET, [key as u32 as u64, size as u64, flags as u32 as u64], PATIENT, &mut []);
    libc::to_c(result.map(|reply| reply.result).inspect_err(|error| refused(b"shmget", *error))) as c_int
}

/// Why the daemon has said no, for whoever asks.
fn refused(call: &[u8], error: c_int) {
    let (cause, why): (_, &[u8]) = match (call, error) {
        (_, errno::EACCES | errno::EPERM) => (
            Cause::Denied,
            b": denied by the segment's owner and mode (EACCES, EPERM); uids are compared as the node counts them, see `podshm ls`",
        ),
        (_, errno::ENOSPC) => {
            (Cause::Limits, b": the domain's shmall or shmmni is reached (ENOSPC); `podshm ls` shows what lies in it")
        }
        (b"shmget", errno::EINVAL) => (
            Cause::Size,
            b": the size is 0, over the domain's shmmax, or more than the segment of this key has (EINVAL); see `podshm ls`",
        ),
        (b"shmget", errno::ENOENT) => (Cause::NoKey, b": the domain has no segment of this key (ENOENT); see `podshm ls`"),
        (_, errno::EINVAL | errno::EIDRM) => {
            (Cause::NoId, b": the domain has no segment of this id, or the address or command is wrong (EINVAL, EIDRM)")
        }
        _ => return,
    };
    explain(cause, &[call, why]);
}

/// # Safety
/// As of shmat(2): with SHM_REMAP whatever is mapped there is the caller's to lose.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shmat(id: c_int, address: *const c_void, flags: c_int) -> *mut c_void {
    let address = sys::address(address);
    if !domain::present() {
        // SAFETY: the program's own call.
        return libc::to_c(unsafe { raw(nr::SHMAT, [id as usize, address, flags as usize, 0, 0, 0]) }) as *mut c_void;
    }
    // SAFETY: passed on from the caller.
    let attached = unsafe { attach(id, address, flags) };
    libc::to_c(attached.inspect_err(|error| refused(b"shmat", *error))) as *mut c_void
}

/// # Safety
/// As of shmat(2).
unsafe fn attach(id: c_int, mut address: usize, flags: c_int) -> Sys {
    if id < 0 {
        return Err(errno::EINVAL);
    }
    let remap = flags & SHM_REMAP != 0;
    // Also where rounding leaves 0, as in the kernel: page 0 is asked for then, and not "anywhere".
    let fixed = address != 0;
    if address & (PAGE - 1) != 0 {
        if flags & SHM_RND == 0 {
            return Err(errno::EINVAL);
        }
        address &= !(PAGE - 1);
    }
    if address == 0 && remap {
        return Err(errno::EINVAL);
    }
    fork::watch();
    let mut all = ATTACHMENTS.lock();
    all.reserve()?;
    let mut fds = [-1];
    let reply = ask(wire::ATTACH, [id as u64, flags as u32 as u64, 0], PATIENT, &mut fds)?;
    let fd = match reply.fds {
        1 => Fd(fds[0]),
        _ => return Err(errno::ENOMEM), // the descriptor did not fit this process's limit
    };
    let [size, token] = reply.values;
    let length = (size as usize).next_multiple_of(PAGE);
    let mut protection = sys::PROT_READ;
    if flags & SHM_RDONLY == 0 {
        protection |= sys::PROT_WRITE;
    }
    if flags & SHM_EXEC != 0 {
        protection |= sys::PROT_EXEC;
    }
    let place = match (fixed, remap) {
        (false, _) => 0,
        // The kernel doesn't look what is at page 0.
        (true, _) if remap || address == 0 => sys::MAP_FIXED,
        (true, _) => sys::MAP_FIXED_NOREPLACE,
    };
    // SAFETY: nothing is replaced but with SHM_REMAP, which asks for it.
    let mapped = unsafe { sys::mmap(address, length, protection, sys::MAP_SHARED | place, fd.0, 0) };
    let mapped = match mapped {
        // A kernel before 4.17 takes NOREPLACE for a hint.
        Ok(at) if fixed && at != address => {
            // SAFETY: just mapped, and nobody knows of it.
            let _ = unsafe { sys::munmap(at, length) };
            Err(errno::EINVAL)
        }
        Err(errno::EEXIST) => Err(errno::EINVAL),
        other => other,
    };
    let file = sys::stat(fd.0).map(|(file, ..)| file);
    drop(fd); // from here on the mapping alone keeps the description, and with it the lock that counts
    match (mapped, file) {
        (Ok(address), Ok(file)) => {
            all.add(Attachment { address, length, id, token, file, child: None });
            Ok(address)
        }
        (Ok(address), Err(error)) => {
            // SAFETY: just mapped, and nobody knows of it.
            let _ = unsafe { sys::munmap(address, length) };
            let _ = ask(wire::UNDO, [id as u64, token, 0], BRIEF, &mut []);
            Err(error)
        }
        (Err(error), _) => {
            let _ = ask(wire::UNDO, [id as u64, token, 0], BRIEF, &mut []);
            Err(error)
        }
    }
}

/// # Safety
/// As of shmdt(2): nobody uses the segment there any more.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shmdt(address: *const c_void) -> c_int {
    let address = sys::address(address);
    if !domain::present() {
        // SAFETY: the program's own call.
        return libc::to_c(unsafe { raw(nr::SHMDT, [address, 0, 0, 0, 0, 0]) }) as c_int;
    }
    let mut all = ATTACHMENTS.lock();
    // Several may have had this address: the one of which something is mapped nearest to it is meant, as in the kernel.
    let mut meant: Option<(usize, usize)> = None;
    for (index, one) in all.all().iter().enumerate().filter(|(_, one)| one.address == address) {
        let mut first = usize::MAX;
        one.pieces(|piece| first = first.min(piece.start));
        if first < meant.map_or(usize::MAX, |(first, _)| first) {
            meant = Some((first, index));
        }
    }
    let Some((_, index)) = meant else { return libc::to_c(Err(errno::EINVAL)) as c_int };
    let gone = all.remove(index);
    gone.pieces(|piece| {
        // SAFETY: a piece of this attachment, of which the program says that it needs it no more.
        let _ = unsafe { sys::munmap(piece.start, piece.end - piece.start) };
    });
    let _ = ask(wire::DETACH, [gone.id as u64, gone.token, 0], BRIEF, &mut []);
    0
}

/// # Safety
/// As of shmctl(2): the buffer is what the command wants.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shmctl(id: c_int, command: c_int, buffer: *mut c_void) -> c_int {
    let buffer = buffer as usize;
    if !domain::present() {
        // SAFETY: the program's own call.
        let result = unsafe { raw(nr::SHMCTL, [id as usize, command as usize, buffer, 0, 0, 0]) };
        return libc::to_c(result) as c_int;
    }
    // The kernel copies to and from the program's buffer with the message, so a wrong pointer is EFAULT here too.
    let (tail, into) = match command {
        IPC_SET => ([buffer, SHMID_DS], NONE),
        IPC_STAT | SHM_STAT | SHM_STAT_ANY => (NONE, [buffer, SHMID_DS]),
        IPC_INFO => (NONE, [buffer, 72]),
        SHM_INFO => (NONE, [buffer, 48]),
        IPC_RMID | SHM_LOCK | SHM_UNLOCK => (NONE, NONE),
        _ => return libc::to_c(Err(errno::EINVAL)) as c_int,
    };
    let words = request(wire::CONTROL, [id as u32 as u64, command as u64, 0], sys::pid());
    let result = call(Request { words, tail, fd: None, into, fds: &mut [] }, PATIENT);
    libc::to_c(result.map(|reply| reply.result).inspect_err(|error| refused(b"shmctl", *error))) as c_int
}

/// The same key for the same path and id in every member, which the device and inode numbers of different pods would not give.
///
/// # Safety
/// As of ftok(3): the path is a C string.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn ftok(path: *const c_char, project: c_int) -> c_int {
    // SAFETY: the program says that it is a C string.
    let path = unsafe { core::ffi::CStr::from_ptr(path) }.to_bytes_with_nul();
    libc::to_c(key_of(path, project).map(|key| key as usize)) as c_int
}

fn key_of(path: &[u8], project: c_int) -> Result<u32, c_int> {
    let file = sys::open(path, sys::O_PATH | sys::O_CLOEXEC, 0)?;
    if !domain::present() {
        let (id, ..) = sys::stat(file.0)?;
        let device = id.device.1 & 0xff;
        return Ok(id.inode as u32 & 0xffff | device << 16 | (project as u32) << 24);
    }
    let mut link = [0u8; 32];
    let length = descriptor_path(file.0, &mut link);
    let mut real = [0u8; 4096];
    let arguments = [sys::AT_FDCWD, link[..length].as_ptr() as usize, real.as_mut_ptr() as usize, real.len(), 0, 0];
    // SAFETY: a NUL-terminated path and a buffer of that length.
    let length = unsafe { raw(nr::READLINKAT, arguments) }?;
    Ok(hash(&real[..length]) & 0xff_ffff | (project as u32) << 24)
}

/// `/proc/self/fd/N` and a NUL; returns the length.
fn descriptor_path(fd: c_int, into: &mut [u8; 32]) -> usize {
    const START: &[u8] = b"/proc/self/fd/";
    into[..START.len()].copy_from_slice(START);
    let mut digits = 1;
    while fd / 10i32.pow(digits) > 0 {
        digits += 1;
    }
    for place in 0..digits {
        into[START.len() + (digits - 1 - place) as usize] = b'0' + (fd / 10i32.pow(place) % 10) as u8;
    }
    START.len() + digits as usize + 1
}

/// FNV-1a; never 0 in the lower 24 bits, which with project 0 would be IPC_PRIVATE.
fn hash(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let folded = hash >> 24 ^ hash;
    if folded & 0xff_ffff == 0 { 1 } else { folded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_paths() {
        for fd in [0, 9, 10, 99, 100, 4095, 1_048_576] {
            let mut path = [0; 32];
            let length = descriptor_path(fd, &mut path);
            assert_eq!(std::str::from_utf8(&path[..length]).unwrap(), format!("/proc/self/fd/{fd}\0"));
        }
    }

    #[test]
    fn keys_of_different_paths_differ_and_none_is_private() {
        let keys: std::collections::BTreeSet<u32> =
            (0..1000).map(|n| hash(format!("/var/lib/a/{n}").as_bytes()) & 0xff_ffff).collect();
        assert!(keys.len() >= 999, "{}", keys.len());
        assert!(!keys.contains(&0));
    }
}
