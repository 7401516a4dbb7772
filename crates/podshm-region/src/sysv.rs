//! The kernel's own System V segments.
//!
//! The calls are the C library's, so that a preload library that stands in for the kernel is asked, too.

use crate::copy::copy_racy;
use std::io;
use std::ptr::NonNull;

/// Removes one of the calling thread's IPC namespace; whoever has it attached keeps it.
pub fn remove(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no buffer.
    match unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A segment's identifier: of one that is there under this key.
pub fn find(key: i32) -> io::Result<i32> {
    identifier(key, 0, 0)
}

/// Makes a segment under a key that has none.
pub fn create(key: i32, bytes: usize) -> io::Result<i32> {
    identifier(key, bytes, libc::IPC_CREAT | libc::IPC_EXCL | 0o600)
}

fn identifier(key: i32, bytes: usize, flags: i32) -> io::Result<i32> {
    // SAFETY: shmget takes numbers alone.
    match unsafe { libc::shmget(key, bytes, flags) } {
        -1 => Err(io::Error::last_os_error()),
        id => Ok(id),
    }
}

/// A segment as it is attached here. Others may write it at any time: it is copied from and to, never lent.
#[derive(Debug)]
pub struct Attached {
    start: NonNull<u8>,
    bytes: usize,
    is_writable: bool,
}

impl Attached {
    /// Attaches one, as large as it is.
    pub fn to(id: i32, is_writable: bool) -> io::Result<Self> {
        // SAFETY: shmid_ds is plain numbers, of which zeros are a value.
        let mut found: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: IPC_STAT writes one shmid_ds, which is there for it.
        if unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut found) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = if is_writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: at an address of the kernel's choice; nothing of this process lies there.
        let start = unsafe { libc::shmat(id, std::ptr::null(), flags) };
        if start as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("attached at address 0"))?;
        Ok(Attached { start, bytes: found.shm_segsz as usize, is_writable })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies its beginning out: as much as there is, and room for it.
    pub fn read(&self, to: &mut [u8]) -> usize {
        let length = to.len().min(self.bytes);
        // SAFETY: a segment keeps its size as long as it is attached, and `length` bytes lie in it; `to` is this process's own.
        unsafe { copy_racy(self.start.as_ptr(), to.as_mut_ptr(), length) };
        length
    }

    /// Copies to its beginning. False where there is no room for it, or where it is attached for reading alone.
    pub fn write(&self, from: &[u8]) -> bool {
        if !self.is_writable || from.len() > self.bytes {
            return false;
        }
        for (at, byte) in from.iter().enumerate() {
            // SAFETY: `at` is below the size, see above; it is attached for writing, and no reference covers it.
            unsafe { self.start.as_ptr().add(at).write_volatile(*byte) };
        }
        true
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: the address that shmat gave; nothing refers to it any more.
        unsafe { libc::shmdt(self.start.as_ptr().cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_one_attachment_is_read_by_another_and_no_further_than_its_size() {
        // A key of this process's own; where one is there already somebody else has it.
        let key = 0x7064_0000 | (std::process::id() as i32 & 0xffff);
        let id = create(key, 64).unwrap();
        assert!(create(key, 64).is_err(), "made twice");
        assert_eq!(find(key).unwrap(), id);
        let (writes, reads) = (Attached::to(id, true).unwrap(), Attached::to(id, false).unwrap());
        remove(id).unwrap();
        assert!(writes.write(b"10.0.0.1:80") && !reads.write(b"no"));
        assert!(!writes.write(&[1; 65]));
        let mut found = [0; 128];
        assert_eq!((reads.bytes(), reads.read(&mut found)), (64, 64));
        assert_eq!(&found[..11], b"10.0.0.1:80");
        assert!(find(key).is_err(), "it is removed");
    }
}
