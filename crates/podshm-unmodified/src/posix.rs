//! POSIX objects: files on the domain's tmpfs, which members have as their /dev/shm or reach through the preload library.

use crate::peer::Peer;
use crate::permissions::Owned;
use crate::reaper::Shared;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, Uid, fcntl_getfl, fstat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The directory.
#[derive(Debug)]
pub struct Posix {
    directory: OwnedFd,
    device: u64,
    /// Told who had what made.
    reaper: Option<Shared>,
}

/// How full it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fill {
    /// Bytes in use.
    pub used: u64,
    /// Bytes at most.
    pub size: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Inodes at most.
    pub inodes: u64,
}

/// Of a tmpfs.
pub fn fill(directory: &Path) -> std::io::Result<Fill> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(Fill {
        used: (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        size: stat.f_blocks * stat.f_frsize,
        inodes_used: stat.f_files - stat.f_ffree,
        inodes: stat.f_files,
    })
}

impl Posix {
    /// Opens it.
    pub fn open(directory: &Path, reaper: Option<Shared>) -> rustix::io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        let device = fstat(&directory)?.st_dev;
        Ok(Posix { directory, device, reaper })
    }

    /// `ftruncate` to more: all of it is allocated here, at the daemon's charge, or nothing.
    pub fn grow(&self, file: &OwnedFd, size: u64) -> Result<(), Errno> {
        let stat = fstat(file)?;
        if stat.st_dev != self.device || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::XDEV);
        }
        if fcntl_getfl(file)? & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(Errno::INVAL);
        }
        let now = stat.st_size as u64;
        match size.checked_sub(now) {
            None | Some(0) => rustix::fs::ftruncate(file, size),
            Some(more) if i64::try_from(size).is_ok() => {
                rustix::fs::fallocate(file, FallocateFlags::empty(), now, more)
            }
            Some(_) => Err(Errno::FBIG),
        }
    }

    /// `shm_open` for a member whose /dev/shm is its own.
    pub fn open_object(&self, peer: &Peer, name: &str, flags: u32, mode: u32) -> Result<OwnedFd, Errno> {
        check(name)?;
        let asked = OFlags::from_bits_retain(flags);
        let access = asked & OFlags::ACCMODE;
        let open = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        loop {
            let stat = match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) if asked.contains(OFlags::CREATE) => {
                    let make = open | OFlags::CREATE | OFlags::EXCL;
                    match rustix::fs::openat(&self.directory, name, make, Mode::empty()) {
                        // Somebody was first: it is there now.
                        Err(Errno::EXIST) => continue,
                        made => return self.given_to(peer, made?, mode),
                    }
                }
                other => other?,
            };
            if asked.contains(OFlags::CREATE | OFlags::EXCL) {
                return Err(Errno::EXIST);
            }
            let owned = Owned {
                uid: stat.st_uid,
                gid: stat.st_gid,
                cuid: stat.st_uid,
                cgid: stat.st_gid,
                mode: stat.st_mode as u16 & 0o777,
            };
            let wanted = match access {
                OFlags::RDONLY => 0o444,
                OFlags::WRONLY => 0o222,
                _ => 0o666,
            };
            if peer.caller.uid != 0 && !owned.allows(&peer.in_full(), wanted) {
                return Err(Errno::ACCESS);
            }
            let file = rustix::fs::openat(&self.directory, name, open, Mode::empty())?;
            // From a directory of the daemon's mounts `..` leads out of the domain; members with a /dev/shm can make one.
            if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            if asked.contains(OFlags::TRUNC) && access != OFlags::RDONLY {
                rustix::fs::ftruncate(&file, 0)?;
            }
            return Ok(file);
        }
    }

    fn given_to(&self, peer: &Peer, file: OwnedFd, mode: u32) -> Result<OwnedFd, Errno> {
        let (uid, gid) = (Uid::from_raw(peer.caller.uid), Gid::from_raw(peer.caller.gid));
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777 & !peer.umask()))?;
        if let Some(reaper) = &self.reaper {
            reaper.made(fstat(&file)?.st_ino, peer.node_pid);
        }
        Ok(file)
    }

    /// `shm_unlink` for a member whose /dev/shm is its own; as in a sticky directory.
    pub fn unlink(&self, peer: &Peer, name: &str) -> Result<(), Errno> {
        check(name)?;
        let stat = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if peer.caller.uid != 0 && peer.caller.uid != stat.st_uid {
            return Err(Errno::ACCESS);
        }
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
    }
}

fn check(name: &str) -> Result<(), Errno> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." || name.contains('\0') {
        return Err(Errno::INVAL);
    }
    if name.len() > 255 { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}
