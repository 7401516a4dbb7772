//! What a domain has mounted on the node: file systems, and an IPC namespace.

use super::{MountError, Mounts, beneath, is_mount, named, system, there};
use podshm_unmodified::Limits;
use podshm_unmodified::place::{FileSystem, Part};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

impl Mounts {
    pub(super) fn ipc(&self, domain: &str, limits: Limits) -> Result<(), MountError> {
        let directory = there(&self.root, &format!("domains/{domain}"))?;
        let path = self.root.join(format!("domains/{domain}/ipc"));
        // A file, that podshmd has made: a namespace is mounted over it.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory, "ipc", flags, Mode::empty()).map_err(|error| system("opening", &path, error))?;
        if is_mount(&file) {
            return Ok(());
        }
        let pinned = podshm_unmodified::native::pin(limits, &named(&file));
        pinned.map_err(|source| MountError::System { what: "pinning an IPC namespace at", path, source })
    }

    pub(super) fn file_system(&self, domain: &str, what: &FileSystem) -> Result<(), MountError> {
        if what.size == 0 {
            let (what, found) = ("the file system's size", "0".to_owned());
            return Err(MountError::Name { what, found, expected: "one that bounds it" });
        }
        let part = format!("domains/{domain}/{}", what.part.name());
        let directory = there(&self.root, &part)?;
        if is_mount(&directory) {
            return Ok(());
        }
        let owner = self.owner.filter(|_| what.part != Part::Shm);
        // What lies in a /dev/shm is never executed.
        let mounted = FileSystem { exec: false, ..*what }.mount(&named(&directory), owner);
        mounted.map_err(|source| MountError::System { what: "mounting a tmpfs at", path: self.root.join(part), source })
    }

    pub(super) fn end_domain(&self, domain: &str) -> Result<(), MountError> {
        let Some(directory) = beneath(&self.root, &format!("domains/{domain}"))? else { return Ok(()) };
        for part in [Part::Shm, Part::Sysv, Part::Lib] {
            self.unmount_all(&self.root, &format!("domains/{domain}/{}", part.name()))?;
        }
        let path = self.root.join(format!("domains/{domain}/ipc"));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            match openat(&directory, "ipc", flags, Mode::empty()) {
                Ok(file) if is_mount(&file) => {}
                Ok(_) | Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(system("opening", &path, error)),
            }
            // Named as below the directory that was looked up: a namespace that is mounted there is no directory.
            let name = format!("{}/ipc", named(&directory).display());
            unmount(name.as_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|error| system("unmounting", &path, error))?;
        }
    }
}
