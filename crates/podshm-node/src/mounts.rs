//! Mounting a volume's parts where the kubelet wants them. What is mounted below a directory that the node's kubelet sees (mount
//! propagation Bidirectional) stays there when this daemon's pod ends.

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use std::fs;
use std::io;
use std::path::Path;

/// Whether something is mounted at a path.
pub fn is_mounted(path: &Path) -> bool {
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Mounts a directory read-only, with nothing in it that could be executed or be a device. Done before is done.
pub fn publish(directory: &Path, target: &Path) -> io::Result<()> {
    if !is_mounted(target) {
        fs::create_dir_all(target)?;
        mount_bind(directory, target)?;
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount_remount(target, flags, c"")?)
}

/// Mounts a part of a volume within it, as it is; its mount point is there.
pub fn add(part: &Path, within: &Path) -> io::Result<()> {
    if !is_mounted(within) {
        mount_bind(part, within)?;
    }
    Ok(())
}

/// Mounts a part of a volume within it that programs load code from: nobody can write to it.
pub fn add_library(part: &Path, within: &Path) -> io::Result<()> {
    add(part, within)?;
    Ok(mount_remount(within, MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV, c"")?)
}

/// Takes a volume away with all that is mounted within it, from pods too that go on; done before is done.
pub fn unpublish(target: &Path) -> io::Result<()> {
    while is_mounted(target) {
        unmount(target, UnmountFlags::DETACH)?;
    }
    match fs::remove_dir(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
