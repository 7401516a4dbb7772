//! Native mode: an IPC namespace that is pinned by a bind mount, with limits of its own. Whoever is started in it has the kernel's
//! own System V memory, semaphores and message queues, shared with the domain and nobody else.

use crate::place::{Config, Doing, Place, PlaceError, is_mounted};
use rustix::mount::mount_bind;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

/// Leaves the calling thread's IPC namespace for a new one. Threads differ by it only; nothing else is unshared.
pub fn new_ipc_namespace() -> io::Result<()> {
    // Deprecated for the one hazard of UnshareFlags::FILES, which is not among these.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWIPC)?;
    Ok(())
}

/// Sets the limits of the calling thread's IPC namespace.
pub fn set_limits(limits: &[(&str, String)]) -> io::Result<()> {
    limits.iter().try_for_each(|(name, value)| fs::write(format!("/proc/sys/{name}"), value))
}

/// Limits under which the kernel gives nobody anything: for members that get theirs through the preload library.
pub fn nothing() -> Vec<(&'static str, String)> {
    ["kernel/shmmni", "kernel/shmall", "kernel/msgmni", "fs/mqueue/queues_max"]
        .map(|name| (name, "0".to_owned()))
        .into_iter()
        .chain([("kernel/sem", "0 0 0 0".to_owned())])
        .collect()
}

impl Place {
    /// Makes the domain's namespace, if it is not there.
    pub(crate) fn pin_ipc(&self, config: &Config) -> Result<(), PlaceError> {
        let path = self.path("ipc");
        if is_mounted(&path) {
            return Ok(());
        }
        File::create(&path).doing(|| format!("making {}", path.display()))?;
        let limits = config.limits;
        // A thread of its own: it leaves this process's namespace and ends.
        let made = std::thread::scope(|scope| {
            let pin = || {
                new_ipc_namespace()?;
                set_limits(&[
                    ("kernel/shmmax", limits.shmmax.to_string()),
                    ("kernel/shmall", limits.shmall.to_string()),
                    ("kernel/shmmni", limits.shmmni.to_string()),
                ])?;
                mount_bind("/proc/thread-self/ns/ipc", &path)?;
                io::Result::Ok(())
            };
            scope.spawn(pin).join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it died")))
        });
        made.doing(|| format!("pinning an IPC namespace at {} (needs root)", path.display()))
    }

    /// Moves the calling thread into the domain's namespace.
    pub fn enter_ipc(&self) -> Result<(), PlaceError> {
        let path = self.path("ipc");
        let file = File::open(&path).doing(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))
            .doing(|| format!("joining the IPC namespace at {}", path.display()))
    }
}
