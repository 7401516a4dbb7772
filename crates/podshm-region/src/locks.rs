//! Locks of open file descriptions on single bytes of a file: whoever keeps the description, a mapping of it too, keeps the lock,
//! and the kernel lets go of it with the last. They count attachments, not writers: each has a byte of its own, read-locked.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes from here on are never locked.
pub const END: u64 = 1 << 62;

fn flock(kind: i32, start: u64, length: u64) -> libc::flock {
    debug_assert!(start < END && length <= END - start);
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as i64,
        l_len: length as i64,
        l_pid: 0,
    }
}

/// Read-locks one byte for the open file description of `file`, which has to be readable.
pub fn hold(file: impl AsFd, byte: u64) -> io::Result<()> {
    let lock = flock(libc::F_RDLCK, byte, 1);
    // SAFETY: the kernel reads one struct flock.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A byte from `start` to `end` that another description of this file holds, any of them.
pub fn held_between(file: impl AsFd, start: u64, end: u64) -> io::Result<Option<u64>> {
    if start >= end {
        return Ok(None);
    }
    let mut lock = flock(libc::F_WRLCK, start, end - start);
    // SAFETY: the kernel reads and writes one struct flock.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 if lock.l_type == libc::F_UNLCK as libc::c_short => Ok(None),
        0 => Ok(Some((lock.l_start as u64).max(start))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Every byte that other descriptions of this file hold.
pub fn held(file: impl AsFd) -> io::Result<Vec<u64>> {
    let (mut found, mut open) = (Vec::new(), vec![(0, END)]);
    while let Some((start, end)) = open.pop() {
        if let Some(byte) = held_between(&file, start, end)? {
            found.push(byte);
            open.extend([(start, byte), (byte + 1, end)]);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn every_holder_is_found_and_a_mapping_holds() {
        let path = format!("/dev/shm/podshm-locks-{}", std::process::id());
        let own = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let holders = [5, 0, END - 1, 4, 1 << 40].map(|byte| (reopen(&own), byte));
        for (file, byte) in &holders {
            hold(file, *byte).unwrap();
        }
        let mut found = held(&own).unwrap();
        found.sort();
        assert_eq!(found, [0, 4, 5, 1 << 40, END - 1]);
        let kept = holders.into_iter().next().unwrap();
        assert_eq!(held(&own).unwrap(), [kept.1]);
        own.set_len(4096).unwrap();
        // SAFETY: a new mapping of a whole page; it is unmapped below, and nothing refers to it.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, kept.0.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        drop(kept.0);
        assert_eq!(held(&own).unwrap(), [5], "the mapping keeps it");
        // SAFETY: mapped above.
        assert_eq!(unsafe { libc::munmap(at, 4096) }, 0);
        assert!(held(&own).unwrap().is_empty());
    }

    fn reopen(file: &File) -> File {
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
    }
}
