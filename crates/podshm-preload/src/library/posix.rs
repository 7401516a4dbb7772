//! `shm_open`, `shm_unlink` and `ftruncate`.

use super::call::{PATIENT, Request, call};
use super::log::{Cause, explain};
use super::sys::{self, Sys, errno, nr, raw};
use super::{domain, libc};
use crate::wire::{self, request};
use core::ffi::{CStr, c_char, c_int};

const SHM: &[u8] = b"/dev/shm/";
const NAME_MAX: usize = 255;
const S_IFREG: u16 = 0o100000;

/// A name as glibc takes it: leading slashes don't count, others may not be in it.
fn name_of(name: &[u8]) -> Result<&[u8], c_int> {
    let start = name.iter().position(|byte| *byte != b'/').unwrap_or(name.len());
    let name = &name[start..];
    if name.is_empty() || name.contains(&b'/') || name == b"." || name == b".." {
        Err(errno::EINVAL)
    } else if name.len() > NAME_MAX {
        Err(errno::ENAMETOOLONG)
    } else {
        Ok(name)
    }
}

/// The object's path in /dev/shm, with its NUL.
fn path_of(name: &[u8], into: &mut [u8; SHM.len() + NAME_MAX + 1]) -> usize {
    into[..SHM.len()].copy_from_slice(SHM);
    into[SHM.len()..SHM.len() + name.len()].copy_from_slice(name);
    SHM.len() + name.len() + 1
}

/// Is it the daemon that has the objects, because this member's /dev/shm is not the domain's?
fn asks_daemon() -> bool {
    domain::present() && !domain::posix_mounted()
}

fn ask(operation: u32, arguments: [u64; 3], name: &[u8], fd: Option<c_int>, fds: &mut [c_int]) -> Sys {
    let words = request(operation, arguments, sys::pid());
    let tail = [name.as_ptr() as usize, name.len()];
    let expected = fds.len();
    let reply = call(Request { words, tail, fd, into: [0, 0], fds }, PATIENT)?;
    if reply.fds == expected { Ok(reply.result) } else { Err(errno::ENOMEM) }
}

/// # Safety
/// As of shm_open(3): the name is a C string.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shm_open(name: *const c_char, flags: c_int, mode: u32) -> c_int {
    // SAFETY: the program says that it is a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let open = |name: &[u8]| {
        if asks_daemon() {
            let mut fds = [-1];
            ask(wire::OPEN, [flags as u32 as u64, u64::from(mode), 0], name, None, &mut fds)?;
            return Ok(fds[0] as usize);
        }
        let mut path = [0; SHM.len() + NAME_MAX + 1];
        let length = path_of(name, &mut path);
        let file = sys::open(&path[..length], flags as usize | sys::O_NOFOLLOW | sys::O_CLOEXEC, mode as usize)?;
        let fd = file.0;
        core::mem::forget(file);
        Ok(fd as usize)
    };
    libc::to_c(name_of(name).and_then(open)) as c_int
}

/// # Safety
/// As of shm_unlink(3): the name is a C string.
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn shm_unlink(name: *const c_char) -> c_int {
    // SAFETY: the program says that it is a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // glibc says ENOENT where shm_open says EINVAL: a name that can't be is not there.
    let unlink = |name: &[u8]| {
        if asks_daemon() {
            return ask(wire::UNLINK, [0; 3], name, None, &mut []);
        }
        let mut path = [0; SHM.len() + NAME_MAX + 1];
        path_of(name, &mut path);
        // SAFETY: a path that ends in NUL, since the buffer was zeroed.
        match unsafe { raw(nr::UNLINKAT, [sys::AT_FDCWD, path.as_ptr() as usize, 0, 0, 0, 0]) } {
            Err(1) => Err(13), // EPERM, of a sticky directory, is EACCES here
            other => other,
        }
    };
    let name = name_of(name).map_err(|error| if error == errno::EINVAL { errno::ENOENT } else { error });
    libc::to_c(name.and_then(unlink)) as c_int
}

/// # Safety
/// As of ftruncate(2).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    libc::to_c(truncate(fd, length)) as c_int
}

/// # Safety
/// As of ftruncate(2).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    libc::to_c(truncate(fd, length)) as c_int
}

/// A file of the domain's /dev/shm that grows is allocated by the daemon, so that a full domain is ENOSPC here and not SIGBUS
/// at a touch. Everything else is the kernel's.
fn truncate(fd: c_int, length: i64) -> Sys {
    if domain::present() && length > 0 && grows_in_domain(fd, length as u64) {
        let grown = ask(wire::GROW, [length as u64, 0, 0], &[], Some(fd), &mut []);
        if grown == Err(errno::EXDEV) {
            return keep_native(fd, length);
        }
        if grown == Err(errno::ENOSPC) {
            explain(
                Cause::Full,
                &[b"ftruncate: the domain's /dev/shm is full; raise its size, or remove what is left"],
            );
        }
        return grown;
    }
    keep_native(fd, length)
}

fn keep_native(fd: c_int, length: i64) -> Sys {
    // SAFETY: the program's own call.
    unsafe { raw(nr::FTRUNCATE, [fd as usize, length as usize, 0, 0, 0, 0]) }
}

fn grows_in_domain(fd: c_int, length: u64) -> bool {
    let Ok((file, size, mode)) = sys::stat(fd) else { return false };
    if mode & 0o170000 != S_IFREG || size >= length {
        return false;
    }
    if asks_daemon() {
        // Its objects are on a file system that this member can't name; the daemon tells, and leaves what is not its own.
        return is_tmpfs(fd);
    }
    let Ok(directory) = sys::open(b"/dev/shm\0", sys::O_PATH | sys::O_CLOEXEC, 0) else { return false };
    sys::stat(directory.0).is_ok_and(|(shm, ..)| shm.device == file.device)
}

fn is_tmpfs(fd: c_int) -> bool {
    #[cfg(target_arch = "x86_64")]
    const FSTATFS: usize = 138;
    #[cfg(target_arch = "aarch64")]
    const FSTATFS: usize = 44;
    let mut statfs = [0u64; 15];
    // SAFETY: struct statfs has 120 bytes on both architectures.
    let done = unsafe { raw(FSTATFS, [fd as usize, statfs.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    done.is_ok() && statfs[0] == 0x0102_1994
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_glibc() {
        assert_eq!(name_of(b"//a"), Ok(&b"a"[..]));
        assert_eq!(name_of(b"a"), Ok(&b"a"[..]));
        for bad in [&b""[..], b"/", b"/a/b", b"/.", b"/.."] {
            assert_eq!(name_of(bad), Err(errno::EINVAL), "{bad:?}");
        }
        assert_eq!(name_of(&[b'x'; 255]), Ok(&[b'x'; 255][..]));
        assert_eq!(name_of(&[b'x'; 256]), Err(errno::ENAMETOOLONG));
    }

    #[test]
    fn paths_end_in_nul() {
        let mut path = [0; SHM.len() + NAME_MAX + 1];
        let length = path_of(&[b'x'; 255], &mut path);
        assert_eq!((length, path[length - 1], path[length - 2]), (path.len(), 0, b'x'));
    }
}
