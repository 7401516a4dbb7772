//! Mounting, by names and not by paths: the only thing that podshmd needs privileges for. Whoever asks names a pod's volume or a
//! domain; where that is, is said here, and every step of the way is taken beneath KUBELET_DIR/pods or ROOT, by descriptor, and never
//! through a symbolic link.
//!
//! ```text
//!  Publish      ROOT/volumes/VOLUME/socket  ──► KUBELET_DIR/pods/UID/volumes/kubernetes.io~csi/NAME/mount        read-only
//!               ROOT/domains/DOMAIN/shm     ──► …/mount/shm
//!               ROOT/domains/DOMAIN/lib     ──► …/mount/lib                                                   read-only, may be executed
//!  Unpublish    …/mount, with all that is mounted within it
//!  Withdraw     ROOT/volumes/VOLUME/socket/{shm,lib}, where the domain's come to be mounted too
//!  FileSystem   a tmpfs at ROOT/domains/DOMAIN/{shm,sysv,lib}
//!  Ipc          an IPC namespace at ROOT/domains/DOMAIN/ipc
//!  EndDomain    these three and that one are taken away
//!  Look         whether a pod's directory is there, and its volume mounted
//! ```
//! What is mounted below a directory that the node's kubelet sees (mount propagation Bidirectional) stays when this process ends.

mod domain;

use crate::DRIVER;
use podshm_unmodified::Limits;
use podshm_unmodified::place::{FileSystem, Part};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, mkdirat, openat, openat2, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A pod's volume, as the kubelet names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodVolume {
    /// The pod's UID.
    pub uid: String,
    /// The volume's name in the pod.
    pub name: String,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Ask {
    /// Mount a volume; done before is done.
    Publish {
        /// Its directory's name below ROOT/volumes.
        volume: String,
        /// Where.
        at: PodVolume,
        /// Whose /dev/shm is in it.
        shm_of: Option<String>,
        /// Whose preload library is in it.
        #[serde(default)]
        lib_of: Option<String>,
    },
    /// Take a volume away with all that is mounted within it, from pods too that go on; done before is done.
    Unpublish {
        /// Which.
        at: PodVolume,
    },
    /// Take away what came to be mounted within a volume's own directory; done before is done.
    Withdraw {
        /// Its directory's name.
        volume: String,
    },
    /// Make a domain's file system; done before is done.
    FileSystem {
        /// The domain.
        domain: String,
        /// Which, and how large.
        what: FileSystem,
    },
    /// Make a domain's IPC namespace; done before is done.
    Ipc {
        /// The domain.
        domain: String,
        /// Its kernel.shmmax, shmall and shmmni.
        limits: Limits,
    },
    /// Take a domain's file systems away, and its IPC namespace; done before is done.
    EndDomain {
        /// The domain.
        domain: String,
    },
    /// Say what is there.
    Look {
        /// Of which volume.
        at: PodVolume,
    },
}

/// What there is of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its pod's directory.
    pub pod: bool,
    /// It is mounted.
    pub mounted: bool,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// It is no name.
    #[error("{what} {found:?}: expected {expected}; a name, never a path")]
    Name {
        /// Of what.
        what: &'static str,
        /// As it was.
        found: String,
        /// As it should be.
        expected: &'static str,
    },
    /// The volume is another driver's.
    #[error("volume {name} of pod {uid} is of driver {found:?}, as the kubelet has written down; expected {DRIVER}")]
    Foreign {
        /// The pod.
        uid: String,
        /// The volume.
        name: String,
        /// Its driver.
        found: String,
    },
    /// A symbolic link.
    #[error("{}: a symbolic link is in the way; expected directories all the way", path.display())]
    Link {
        /// Where.
        path: PathBuf,
    },
    /// Nothing is mounted where a domain's file system should be.
    #[error("{}: expected the domain's file system, and nothing is mounted there", path.display())]
    NoFileSystem {
        /// Where.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("{what} {}: {source}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The mount helper can't be reached.
    #[error("the mount helper at {}: {source}; it is a container of podshmd's own pod, and started anew by itself", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount helper said no.
    #[error("the mount helper: {said}")]
    Helper {
        /// In its words.
        said: String,
    },
}

/// Where things are, and how much is taken on trust.
#[derive(Clone, Debug)]
pub struct Mounts {
    /// What volumes and domains are made of.
    pub root: PathBuf,
    /// KUBELET_DIR/pods.
    pub pods: PathBuf,
    /// An empty directory, for a moment at a time.
    pub stage: PathBuf,
    /// Who writes into a domain's file systems; this process's user, where it is none.
    pub owner: Option<u32>,
    /// Whether a volume has to be this driver's by the kubelet's own record, which is there before the kubelet calls a driver.
    pub is_strict: bool,
}

/// What has to be mounted: nothing in it can be executed, be a device, or be written but its sockets' queues.
const VOLUME: MountFlags = MountFlags::BIND
    .union(MountFlags::RDONLY)
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// What programs load code from: nobody can write to it.
const LIBRARY: MountFlags =
    MountFlags::BIND.union(MountFlags::RDONLY).union(MountFlags::NOSUID).union(MountFlags::NODEV);

impl Mounts {
    /// Of a daemon that is privileged itself, and takes its own word.
    pub fn of(root: &Path, kubelet_dir: &Path) -> Self {
        let (pods, stage) = (kubelet_dir.join("pods"), root.join(".stage"));
        Mounts { root: root.to_owned(), pods, stage, owner: None, is_strict: false }
    }

    /// Does what is asked.
    pub fn carry_out(&self, ask: &Ask) -> Result<Found, MountError> {
        match ask {
            Ask::Publish { volume, at, shm_of, lib_of } => {
                hash(volume)?;
                at.check()?;
                for name in [shm_of, lib_of].into_iter().flatten() {
                    domain(name)?;
                }
                self.publish(volume, at)?;
                if let Some(domain) = shm_of {
                    self.add(domain, Part::Shm, at)?;
                }
                if let Some(domain) = lib_of {
                    self.add(domain, Part::Lib, at)?;
                }
                Ok(Found::default())
            }
            Ask::Unpublish { at } => {
                at.check()?;
                self.unpublish(at).map(|()| Found::default())
            }
            Ask::Withdraw { volume } => {
                hash(volume)?;
                for part in [Part::Shm, Part::Lib] {
                    self.unmount_all(&self.root, &format!("volumes/{volume}/socket/{}", part.name()))?;
                }
                Ok(Found::default())
            }
            Ask::FileSystem { domain: name, what } => {
                domain(name)?;
                self.file_system(name, what).map(|()| Found::default())
            }
            Ask::Ipc { domain: name, limits } => {
                domain(name)?;
                self.ipc(name, *limits).map(|()| Found::default())
            }
            Ask::EndDomain { domain: name } => {
                domain(name)?;
                self.end_domain(name).map(|()| Found::default())
            }
            Ask::Look { at } => {
                at.check()?;
                let pod = beneath(&self.pods, &at.uid)?.is_some();
                let mounted = beneath(&self.pods, &at.mount())?.is_some_and(|target| is_mount(&target));
                Ok(Found { pod, mounted })
            }
        }
    }

    fn publish(&self, volume: &str, at: &PodVolume) -> Result<(), MountError> {
        let source = there(&self.root, &format!("volumes/{volume}/socket"))?;
        if !self.is_strict {
            // The kubelet makes it; others that speak CSI may not.
            let path = self.pods.join(at.directory());
            fs::create_dir_all(&path).map_err(|source| MountError::System { what: "making", path, source })?;
        }
        let directory = there(&self.pods, &at.directory())?;
        match self.driver(at, &directory)? {
            Some(found) if found == DRIVER => {}
            None if !self.is_strict => {}
            found => {
                let (uid, name) = (at.uid.clone(), at.name.clone());
                return Err(MountError::Foreign { uid, name, found: found.unwrap_or_default() });
            }
        }
        let path = self.pods.join(at.mount());
        match mkdirat(&directory, "mount", Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(system("making", &path, error)),
        }
        let target = there(&self.pods, &at.mount())?;
        self.bind(&source, &target, VOLUME, &path)
    }

    /// Mounts a domain's file system within a volume.
    fn add(&self, domain: &str, part: Part, at: &PodVolume) -> Result<(), MountError> {
        let from = format!("domains/{domain}/{}", part.name());
        let source = there(&self.root, &from)?;
        if !is_mount(&source) {
            return Err(MountError::NoFileSystem { path: self.root.join(from) });
        }
        let within = format!("{}/{}", at.mount(), part.name());
        let target = there(&self.pods, &within)?;
        let path = self.pods.join(within);
        if part == Part::Lib {
            return self.bind(&source, &target, LIBRARY, &path);
        }
        if !is_mount(&target) {
            mount_bind(named(&source), named(&target))
                .map_err(|error| system("mounting the domain's /dev/shm at", &path, error))?;
        }
        Ok(())
    }

    /// Mounts a directory with flags; done before is done.
    fn bind(&self, source: &OwnedFd, target: &OwnedFd, flags: MountFlags, path: &Path) -> Result<(), MountError> {
        if is_mount(target) {
            return Ok(());
        }
        // Flags that are set on a mount are not propagated, those that it is made with are: so it is made of one that has them.
        let stage = self.stage()?;
        mount_bind(named(source), named(&stage)).map_err(|error| system("staging", &self.stage, error))?;
        let staged = open(&self.stage).map_err(|error| system("opening", &self.stage, error))?;
        let mounted =
            mount_remount(named(&staged), flags, c"").and_then(|()| mount_bind(named(&staged), named(target)));
        let unmounted = unmount(named(&staged), UnmountFlags::DETACH);
        mounted.and(unmounted).map_err(|error| system("mounting", path, error))
    }

    fn unpublish(&self, at: &PodVolume) -> Result<(), MountError> {
        let Some(directory) = beneath(&self.pods, &at.directory())? else { return Ok(()) };
        // The kubelet removes its record after the volume: without one, there is nothing of another driver's either.
        match self.driver(at, &directory)? {
            Some(found) if found != DRIVER => {
                return Err(MountError::Foreign { uid: at.uid.clone(), name: at.name.clone(), found });
            }
            _ => {}
        }
        if !self.unmount_all(&self.pods, &at.mount())? {
            return Ok(());
        }
        match unlinkat(&directory, "mount", AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(system("removing", &self.pods.join(at.mount()), error)),
        }
    }

    /// The stage, with nothing mounted there.
    fn stage(&self) -> Result<OwnedFd, MountError> {
        match fs::create_dir(&self.stage) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::System { what: "making", path: self.stage.clone(), source: error });
            }
            _ => {}
        }
        loop {
            let stage = open(&self.stage).map_err(|error| system("opening", &self.stage, error))?;
            if !is_mount(&stage) {
                return Ok(stage);
            }
            // One that was killed in the midst has left it.
            unmount(named(&stage), UnmountFlags::DETACH).map_err(|error| system("unmounting", &self.stage, error))?;
        }
    }

    /// Whether the path is there.
    fn unmount_all(&self, base: &Path, path: &str) -> Result<bool, MountError> {
        while let Some(found) = beneath(base, path)? {
            if !is_mount(&found) {
                return Ok(true);
            }
            let unmounted = unmount(named(&found), UnmountFlags::DETACH);
            unmounted.map_err(|error| system("unmounting", &base.join(path), error))?;
        }
        Ok(false)
    }

    /// Whose volume it is, as the kubelet has written down beside it.
    fn driver(&self, at: &PodVolume, directory: &OwnedFd) -> Result<Option<String>, MountError> {
        #[derive(Deserialize)]
        struct Data {
            #[serde(rename = "driverName")]
            driver_name: String,
        }
        let path = self.pods.join(at.directory()).join("vol_data.json");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(directory, "vol_data.json", flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(system("reading", &path, error)),
        };
        let mut text = String::new();
        let read = file.take(64 << 10).read_to_string(&mut text);
        let found = read.and_then(|_| Ok(serde_json::from_str::<Data>(&text)?));
        found.map(|data| Some(data.driver_name)).map_err(|source| MountError::System { what: "reading", path, source })
    }
}

impl PodVolume {
    /// Of a path that ends in `UID/volumes/kubernetes.io~csi/NAME/mount`.
    pub fn of(target: &Path) -> Option<Self> {
        let mut parts = target.components().rev().map(|part| part.as_os_str().to_str());
        let mut next = || parts.next().flatten();
        let (mount, name, kind, volumes, uid) = (next()?, next()?, next()?, next()?, next()?);
        let is_shape = (mount, kind, volumes) == ("mount", "kubernetes.io~csi", "volumes");
        is_shape.then(|| PodVolume { uid: uid.to_owned(), name: name.to_owned() })
    }

    fn check(&self) -> Result<(), MountError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        for (what, found) in [("the pod's UID", &self.uid), ("the volume's name", &self.name)] {
            if !name(found, 253, fine) {
                let expected = "1 to 253 letters, digits, '-', '_' or '.', not starting with '.'";
                return Err(MountError::Name { what, found: clip(found), expected });
            }
        }
        Ok(())
    }

    fn directory(&self) -> String {
        format!("{}/volumes/kubernetes.io~csi/{}", self.uid, self.name)
    }

    fn mount(&self) -> String {
        format!("{}/mount", self.directory())
    }
}

fn name(found: &str, longest: usize, fine: impl Fn(char) -> bool) -> bool {
    (1..=longest).contains(&found.len()) && !found.starts_with('.') && found.chars().all(fine)
}

fn hash(volume: &str) -> Result<(), MountError> {
    if volume.len() == 32 && volume.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(());
    }
    Err(MountError::Name { what: "the volume's directory", found: clip(volume), expected: "32 hexadecimal digits" })
}

fn domain(found: &str) -> Result<(), MountError> {
    if name(found, 63, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Ok(());
    }
    let expected = "1 to 63 lower-case letters, digits or '-'";
    Err(MountError::Name { what: "the domain", found: clip(found), expected })
}

fn clip(found: &str) -> String {
    found.chars().take(80).collect()
}

fn system(what: &'static str, path: &Path, error: Errno) -> MountError {
    match error {
        Errno::LOOP => MountError::Link { path: path.to_owned() },
        error => MountError::System { what, path: path.to_owned(), source: error.into() },
    }
}

/// What a system call that takes a path is given for a descriptor: no name on the way can be changed in between.
fn named(found: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn open(base: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A directory beneath another; none where it is not there. The way there may cross mounts, but no link.
fn beneath(base: &Path, path: &str) -> Result<Option<OwnedFd>, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = open(base).and_then(|base| {
        loop {
            match openat2(&base, path, flags, Mode::empty(), resolve) {
                // Something was renamed meanwhile.
                Err(Errno::AGAIN) => {}
                other => break other,
            }
        }
    });
    match opened {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(system("opening", &base.join(path), error)),
    }
}

fn there(base: &Path, path: &str) -> Result<OwnedFd, MountError> {
    beneath(base, path)?.ok_or_else(|| system("opening", &base.join(path), Errno::NOENT))
}

/// Whether it is where something is mounted.
fn is_mount(found: &impl AsFd) -> bool {
    statx(found, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether something is mounted at a path.
pub fn is_mounted(path: &Path) -> bool {
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
