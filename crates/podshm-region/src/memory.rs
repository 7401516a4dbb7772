//! Making and checking the memory itself: memfd, allocation, seals.

use crate::fork::ProcessFd;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A failure of the kernel or of a check on a region.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// A system call failed.
    #[error("{call} on a region of {bytes} bytes failed: {source}")]
    System {
        /// Which call.
        call: &'static str,
        /// The region's size.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The descriptor is not the sealed memory that it should be.
    #[error(
        "region refused: {what} is {found:#x}, expected {expected:#x}; it did not come from a podshm broker, or its writer interfered"
    )]
    Refused {
        /// What was checked.
        what: &'static str,
        /// What a correct region has.
        expected: u64,
        /// What this one has.
        found: u64,
    },
    /// The broker has been started anew, and nobody has presented this region yet.
    #[error("region {id} is not here: nobody who holds it has presented it since the broker was started")]
    Absent {
        /// Its number.
        id: u64,
    },
    /// The header contradicts the broker.
    #[error(transparent)]
    Header(#[from] podshm_layout::HeaderError),
    /// The geometry can't be.
    #[error(transparent)]
    Geometry(#[from] podshm_layout::GeometryError),
}

impl RegionError {
    pub(crate) fn system(call: &'static str, bytes: u64) -> impl Fn(rustix::io::Errno) -> Self {
        move |e| RegionError::System { call, bytes, source: e.into() }
    }
}

/// What names a memfd for the ledger: the kernel's device and inode numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

const BEFORE_WRITER: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);
const SEALED: SealFlags = BEFORE_WRITER.union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);
/// The kernel sets F_SEAL_EXEC by itself on a memfd made with MFD_NOEXEC_SEAL, which the broker asks for where it exists.
const EXEC: u32 = 0x20;

/// A region's memory: an unnamed memfd of fixed size. A forked child does not keep it: it would pin the memory unseen.
#[derive(Debug)]
pub struct Memory {
    fd: ProcessFd,
    bytes: u64,
}

impl Memory {
    /// Makes `bytes` (whole pages) of zeroed memory, every page allocated and charged to the calling process's cgroup, closed to
    /// shrinking and growing. `name` shows in /proc.
    pub fn create(name: &str, bytes: u64) -> Result<Self, RegionError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Never executable, where the kernel has that (6.3).
        let fd = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create(name, flags))
            .map_err(RegionError::system("memfd_create", bytes))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(RegionError::system("ftruncate", bytes))?;
        let memory = Memory { fd: ProcessFd::new(fd), bytes };
        memory.fill_holes()?;
        fcntl_add_seals(&memory.fd, BEFORE_WRITER).map_err(RegionError::system("F_ADD_SEALS", bytes))?;
        Ok(memory)
    }

    /// Writes the first bytes, while nobody else has the memory. A mapping for that would cost more than making the memory.
    pub fn begin_with(&self, first: &[u8]) -> Result<(), RegionError> {
        let written = rustix::io::pwrite(&self.fd, first, 0).map_err(RegionError::system("pwrite", self.bytes))?;
        refuse_unless("what was written of its first bytes", first.len() as u64, written as u64)
    }

    /// Takes a descriptor that came from elsewhere, without trusting it.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, RegionError> {
        let stat = fstat(&fd).map_err(RegionError::system("fstat", 0))?;
        Ok(Memory { fd: ProcessFd::new(fd), bytes: u64::try_from(stat.st_size).unwrap_or(0) })
    }

    /// Closes the memory to every writer but those who have it mapped already, for good. Holes that the writer punched meanwhile
    /// are filled again at the caller's charge, and none can be made after.
    ///
    /// Call it after the writer has said that it mapped the region, and before any reader gets the descriptor.
    pub fn seal(&self) -> Result<(), RegionError> {
        fcntl_add_seals(&self.fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)
            .map_err(RegionError::system("F_ADD_SEALS of the writer's region", self.bytes))?;
        self.fill_holes()?;
        self.check(self.bytes)
    }

    /// Checks what a reader must know: exact seals, exact size, no holes. After this nobody can make it untrue.
    pub fn check(&self, bytes: u64) -> Result<(), RegionError> {
        let seals = fcntl_get_seals(&self.fd).map_err(RegionError::system("F_GET_SEALS", bytes))?.bits() & !EXEC;
        refuse_unless("its set of seals", SEALED.bits().into(), seals.into())?;
        let stat = fstat(&self.fd).map_err(RegionError::system("fstat", bytes))?;
        refuse_unless("its size", bytes, stat.st_size as u64)?;
        // More blocks than pages can be (the kernel may round up); fewer are holes that a touch would charge to the reader.
        if (stat.st_blocks as u64) < bytes / 512 {
            return Err(RegionError::Refused {
                what: "its allocated blocks",
                expected: bytes / 512,
                found: stat.st_blocks as u64,
            });
        }
        Ok(())
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The kernel's name for it.
    pub fn id(&self) -> Result<MemoryId, RegionError> {
        let stat = fstat(&self.fd).map_err(RegionError::system("fstat", self.bytes))?;
        Ok(MemoryId { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Another descriptor of the same memory.
    pub fn try_clone(&self) -> Result<Self, RegionError> {
        let fd = self.fd.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| RegionError::System { call: "dup", bytes: self.bytes, source })?;
        Ok(Memory { fd: ProcessFd::new(fd), bytes: self.bytes })
    }

    /// The descriptor, to be kept or passed on.
    ///
    /// # Panics
    /// In a forked child, which does not have it.
    pub fn into_fd(self) -> OwnedFd {
        self.fd.into_fd()
    }

    fn fill_holes(&self) -> Result<(), RegionError> {
        fallocate(&self.fd, FallocateFlags::empty(), 0, self.bytes)
            .map_err(RegionError::system("fallocate", self.bytes))
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn refuse_unless(what: &'static str, expected: u64, found: u64) -> Result<(), RegionError> {
    if expected == found { Ok(()) } else { Err(RegionError::Refused { what, expected, found }) }
}
