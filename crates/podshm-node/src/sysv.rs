//! Mode `sysv`. By preload: a pod's volume has the library, and a socket at which the domain's server knows the pod. (By the kernel: see nri.)
//!
//! ```text
//!  ROOT/volumes/HASH/socket/shm.sock    the server listens here        DIR/shm.sock                     in the pod
//!                          /lib/        the domain's lib, read-only    DIR/lib/libpodshm-preload.so
//!  ROOT/domains/NAME/members/HASH ────► ../../../volumes/HASH/socket
//! ```
//! `LD_PRELOAD=DIR/lib/libpodshm-preload.so` is all that the pod's programs need: the library looks for the socket beside its `lib`. The
//! link is what a server that follows another finds its members by.

use crate::domains::{DomainSpec, Mode as DomainMode};
use podshm_api::Mechanism;
use podshm_unmodified::control::{Question, Response, ask};
use podshm_unmodified::segments::PAGE;
use podshm_unmodified::{Config, Limits, Mode, Place};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the library is in a volume.
pub const LIBRARY: &str = "lib";

/// Whether a domain's volumes have the library.
pub fn has_library(spec: &DomainSpec) -> bool {
    mechanism(spec) == Some(Mechanism::Preload)
}

/// Whether the container runtime has a domain's pods join its IPC namespace.
pub fn is_native(spec: &DomainSpec) -> bool {
    mechanism(spec) == Some(Mechanism::Native)
}

fn mechanism(spec: &DomainSpec) -> Option<Mechanism> {
    let is_sysv = spec.modes.contains(&DomainMode::Sysv);
    is_sysv.then(|| spec.sysv.as_ref().map(|sysv| sysv.mechanism).unwrap_or_default())
}

/// What of a domain's System V memory may be charged to the daemon on a node, at most; and, by programs with the library, of its /dev/shm.
pub fn charged(spec: &DomainSpec) -> u64 {
    match has_library(spec) {
        true => spec.sysv.clone().unwrap_or_default().shmall.0.saturating_add(spec.shm_bytes()),
        false => 0,
    }
}

/// A domain of the server for unmodified programs, as its description says.
pub fn config(name: &str, spec: &DomainSpec) -> Config {
    let sysv = spec.sysv.clone().unwrap_or_default();
    let limits = Limits { shmmax: sysv.shmmax.0, shmall: sysv.shmall.0.div_ceil(PAGE), shmmni: sysv.shmmni };
    let mode = if is_native(spec) { Mode::Native } else { Mode::Preload };
    Config { shm_size: spec.shm_bytes(), limits, ..Config::new(name, mode) }
}

/// Has the domain's server listen in a volume's socket directory; done before is done.
pub fn add(place: &Place, socket: &Path) -> io::Result<()> {
    let member = member_of(socket)?;
    match symlink(Path::new("../../..").join("volumes").join(member).join("socket"), place.member(member)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    match ask(place, &Question::AddMember(member.to_owned()))? {
        Response::Done => Ok(()),
        Response::Refused(why) => Err(io::Error::other(why)),
        other => Err(io::Error::other(format!("expected that it is done, found {other:?}"))),
    }
}

/// Ends that, whether a server is there or not; done before is done.
pub fn remove(place: &Place, socket: &Path) -> io::Result<()> {
    let member = member_of(socket)?;
    let link = place.member(member);
    if !is_link(&link) {
        return Ok(());
    }
    // It removes the link, too; where no server is, nobody listens.
    match ask(place, &Question::RemoveMember(member.to_owned())) {
        Ok(_) if !is_link(&link) => Ok(()),
        _ => fs::remove_file(link),
    }
}

/// Removes what leads to volumes that are gone, before a server looks for its members.
pub fn prune(place: &Place) {
    let links = fs::read_dir(place.path("members")).into_iter().flatten().flatten().map(|entry| entry.path());
    let gone: Vec<PathBuf> = links.filter(|link| is_link(link) && !link.is_dir()).collect();
    for link in gone {
        if let Err(error) = fs::remove_file(&link) {
            tracing::error!(link = %link.display(), %error, "what leads to a volume that is gone can't be removed");
        }
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// The volume's directory's name: a hash, since a member's name is part of paths.
fn member_of(socket: &Path) -> io::Result<&str> {
    let name = socket.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    name.ok_or_else(|| io::Error::other(format!("expected ROOT/volumes/HASH/socket, found {}", socket.display())))
}
