//! A shared mapping of a memfd, for the rows that share memory by hand.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Shared memory, mapped and touched; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that belongs to the process and not to the thread that made
// it; whoever reads and writes through `at` answers for synchronising.
unsafe impl Send for Mapping {}

impl Mapping {
    /// New zeroed shared memory of `len` bytes, and the descriptor to hand to the peer.
    pub fn create(len: usize) -> Result<(Self, OwnedFd)> {
        let fd = memfd_create("podshm-bench", MemfdFlags::CLOEXEC).context("memfd_create")?;
        ftruncate(&fd, len as u64).with_context(|| format!("ftruncate to {len} bytes"))?;
        Ok((Self::open(&fd, len)?, fd))
    }

    /// Maps `len` bytes of memory that [`Mapping::create`] made.
    pub fn open(fd: impl AsFd, len: usize) -> Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel picks overlaps nothing that exists.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                fd,
                0,
            )
        }
        .with_context(|| format!("mmap of {len} bytes"))?;
        let base = NonNull::new(base.cast()).context("mmap returned address 0")?;
        Ok(Self { base, len })
    }

    /// The address `offset` bytes in, where a `T` lies that is inside the mapping and aligned.
    pub fn at<T>(&self, offset: usize) -> *mut T {
        assert!(
            offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.len,
            "offset {offset} is not a place for {} bytes in {}",
            size_of::<T>(),
            self.len,
        );
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what mmap returned, and the pointers that `at` gave out
        // are only used by owners of the mapping.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
