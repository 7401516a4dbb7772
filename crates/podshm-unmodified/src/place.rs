//! Where a domain's memory is on the node, and what it is made of.
//!
//! ```text
//!  ROOT/domains/NAME/          root's alone
//!    domain.json               how it was set up
//!    shm/                      tmpfs: the members' /dev/shm            (posix)
//!    sysv/                     tmpfs: segments and their records       (sysv by preload)
//!    ipc                       a pinned IPC namespace                  (sysv native)
//!    lib/                      tmpfs: libpodshm-preload.so, for members to load
//!    members/MEMBER/shm.sock   the daemon's socket for that member
//!    runs/MEMBER               locked by each `podshm run` of that member
//!    control.sock              for `podshm run`, `ls` and `rm`
//!    events                    what somebody should hear of: `podshm events`
//!    daemon.lock               held by the one daemon that serves it
//! ```
//! All of it outlives the daemon; `podshm rm --domain NAME` ends it.

use crate::posix::{Fill, fill};
use crate::segments::{Limits, PAGE};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How System V calls get to the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Through `libpodshm-preload.so`.
    Preload,
    /// Through the kernel, in a pinned IPC namespace.
    Native,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Preload => "preload",
            Mode::Native => "native",
        })
    }
}

/// A domain for unmodified programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Resolved once for this domain on this node.
    pub mode: Mode,
    /// System V.
    pub limits: Limits,
    /// Bytes of /dev/shm.
    pub shm_size: u64,
    /// Files in /dev/shm.
    pub shm_inodes: u64,
    /// Whether what lies in /dev/shm may be executed.
    pub shm_exec: bool,
    /// How full /dev/shm may be, in percent, before the daemon warns.
    #[serde(default = "alert_percent")]
    pub shm_alert_percent: u8,
    /// After how many seconds a segment goes whose creator is gone and that nobody has attached; never, where it is not said.
    pub reap_after: Option<u64>,
}

/// Of a domain that was set up by a release without such a level, and of one that does not say.
fn alert_percent() -> u8 {
    90
}

impl Config {
    /// 256 MiB of each kind, 4,096 segments and files, a warning at 90 %.
    pub fn new(name: &str, mode: Mode) -> Self {
        let limits = Limits { shmmax: 256 << 20, shmall: (256 << 20) / PAGE, shmmni: 4096 };
        let (shm_size, shm_inodes) = (256 << 20, 4096);
        Config {
            name: name.to_owned(),
            mode,
            limits,
            shm_size,
            shm_inodes,
            shm_exec: false,
            shm_alert_percent: alert_percent(),
            reap_after: None,
        }
    }
}

/// What a domain has a tmpfs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The members' /dev/shm.
    Shm,
    /// Segments and their records.
    Sysv,
    /// The library.
    Lib,
}

/// One tmpfs of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSystem {
    /// For what.
    pub part: Part,
    /// Bytes.
    pub size: u64,
    /// Files.
    pub inodes: Option<u64>,
    /// Whether what lies in a /dev/shm may be executed.
    pub exec: bool,
}

impl Config {
    /// What is mounted for it.
    pub fn file_systems(&self) -> Vec<FileSystem> {
        let with = |part, size| FileSystem { part, size, inodes: None, exec: false };
        let shm = FileSystem { inodes: Some(self.shm_inodes), exec: self.shm_exec, ..with(Part::Shm, self.shm_size) };
        match self.mode {
            // Room for the records beside the segments.
            Mode::Preload => {
                let sysv = self.limits.shmall.saturating_mul(PAGE).saturating_add(16 << 20);
                vec![shm, with(Part::Sysv, sysv), with(Part::Lib, 1 << 20)]
            }
            Mode::Native => vec![shm],
        }
    }
}

/// Why a domain could not be set up or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The kernel or the file system said no.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// A name that can't be a directory.
    #[error("domain {found:?}: expected 1 to 63 letters, digits, '-', '_' or '.', not starting with '.'")]
    Name {
        /// The name.
        found: String,
    },
    /// Not here.
    #[error("no domain {name:?} at {root}; `podshm run` and `podshm broker --unmodified` make one", root = root.display())]
    Absent {
        /// Its name.
        name: String,
        /// The root.
        root: PathBuf,
    },
    /// One daemon at a time.
    #[error(
        "domain {name:?} is served by another daemon, pid {holder}, which has not ended for {waited} s; end that one first"
    )]
    Served {
        /// The domain.
        name: String,
        /// The pid that it has written down.
        holder: String,
        /// Seconds.
        waited: u64,
    },
    /// There, but otherwise.
    #[error(
        "domain {name:?} is there with {what} {found}, not {asked}; a live domain is not changed: end it with `podshm rm --domain {name}` first"
    )]
    Otherwise {
        /// Its name.
        name: String,
        /// Which setting.
        what: &'static str,
        /// As it is.
        found: String,
        /// As it was asked for.
        asked: String,
    },
    /// There, but its daemon would have to change.
    #[error(
        "domain {name:?} is there with {what} {found}, not {asked}: that is its daemon's; start `podshm domain` anew with it"
    )]
    Daemons {
        /// Its name.
        name: String,
        /// Which setting.
        what: &'static str,
        /// As it is.
        found: String,
        /// As it was asked for.
        asked: String,
    },
}

/// Adds what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, PlaceError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, PlaceError> {
        self.map_err(|source| PlaceError::System { what: what(), source: source.into() })
    }
}

/// A domain's directory.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

impl Place {
    /// Of a name below a root; nothing is made.
    pub fn of(root: &Path, name: &str) -> Result<Self, PlaceError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 63 || name.starts_with('.') || !name.chars().all(fine) {
            return Err(PlaceError::Name { found: name.to_owned() });
        }
        Ok(Place(root.join("domains").join(name)))
    }

    /// All below a root.
    pub fn all(root: &Path) -> Vec<Place> {
        let Ok(entries) = fs::read_dir(root.join("domains")) else { return Vec::new() };
        let mut all: Vec<Place> = entries.flatten().map(|entry| Place(entry.path())).collect();
        all.retain(|place| place.path("domain.json").exists());
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Something in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where a member's socket is.
    pub fn member(&self, member: &str) -> PathBuf {
        self.0.join("members").join(member)
    }

    /// How it was set up.
    pub fn config(&self) -> Result<Config, PlaceError> {
        let path = self.path("domain.json");
        let text = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => PlaceError::Absent {
                name: self.name(),
                root: self.0.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned(),
            },
            _ => PlaceError::System { what: format!("reading {}", path.display()), source },
        })?;
        serde_json::from_slice(&text).map_err(io::Error::from).doing(|| format!("reading {}", path.display()))
    }

    /// Makes what is not there; a domain that is there has to be as `config` says.
    pub fn set_up(&self, config: &Config) -> Result<(), PlaceError> {
        match self.config() {
            Ok(found) => differs(config, &found)?,
            Err(PlaceError::Absent { .. }) => {}
            Err(error) => return Err(error),
        }
        self.make_directories()?;
        for what in config.file_systems() {
            let path = self.path(what.part.name());
            if !is_mounted(&path) {
                what.mount(&path, None).doing(|| format!("mounting a tmpfs at {} (needs root)", path.display()))?;
            }
        }
        if config.mode == Mode::Preload {
            self.install_library()?;
        } else {
            self.pin_ipc(config)?;
        }
        let path = self.path("domain.json");
        let text = serde_json::to_vec_pretty(config).map_err(io::Error::from);
        text.and_then(|text| replace(&path, &text, 0o600)).doing(|| format!("writing {}", path.display()))
    }

    /// The directories alone: where somebody else mounts the file systems, they come first.
    pub fn make_directories(&self) -> Result<(), PlaceError> {
        make_directory(&self.0, 0o700)?;
        for (name, mode) in [("shm", 0o1777), ("sysv", 0o700), ("lib", 0o755), ("members", 0o755)] {
            make_directory(&self.path(name), mode)?;
        }
        Ok(())
    }

    fn install_library(&self) -> Result<(), PlaceError> {
        let path = self.path("lib").join(podshm_preload::FILE_NAME);
        // Replaced, not written over: members have it mapped.
        if fs::read(&path).is_ok_and(|found| found == podshm_preload::LIBRARY) {
            return Ok(());
        }
        replace(&path, podshm_preload::LIBRARY, 0o755).doing(|| format!("writing {}", path.display()))
    }

    /// How full /dev/shm is.
    pub fn fill(&self) -> io::Result<Fill> {
        fill(&self.path("shm"))
    }

    /// Ends the domain: nothing of it is left on the node but what its members still have mapped.
    pub fn tear_down(&self) -> Result<(), PlaceError> {
        for name in ["shm", "sysv", "lib", "ipc"] {
            let path = self.path(name);
            while is_mounted(&path) {
                unmount(&path, UnmountFlags::DETACH).doing(|| format!("unmounting {}", path.display()))?;
            }
        }
        fs::remove_dir_all(&self.0).doing(|| format!("removing {}", self.0.display()))
    }
}

/// What can't be changed while the domain is there has to be as it is.
pub fn differs(asked: &Config, found: &Config) -> Result<(), PlaceError> {
    let pairs = [
        ("mode", found.mode.to_string(), asked.mode.to_string()),
        ("shmmax", found.limits.shmmax.to_string(), asked.limits.shmmax.to_string()),
        ("shmall", found.limits.shmall.to_string(), asked.limits.shmall.to_string()),
        ("shmmni", found.limits.shmmni.to_string(), asked.limits.shmmni.to_string()),
        ("/dev/shm of bytes", found.shm_size.to_string(), asked.shm_size.to_string()),
        ("/dev/shm of files", found.shm_inodes.to_string(), asked.shm_inodes.to_string()),
        ("executable /dev/shm", found.shm_exec.to_string(), asked.shm_exec.to_string()),
    ];
    match pairs.into_iter().find(|(_, found, asked)| found != asked) {
        None => Ok(()),
        Some((what, was, wanted)) => {
            Err(PlaceError::Otherwise { name: asked.name.clone(), what, found: was, asked: wanted })
        }
    }
}

pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), PlaceError> {
    let made = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        _ => fs::DirBuilder::new().recursive(true).mode(mode).create(path),
    };
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .doing(|| format!("making {}", path.display()))
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, bytes)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(mode))?;
    fs::rename(&next, path)
}

/// Whether something is mounted there: it is on another device than its parent, or it is a namespace.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let (Ok(own), Some(Ok(parent))) = (fs::metadata(path), path.parent().map(fs::metadata)) else { return false };
    own.dev() != parent.dev()
}

impl Part {
    /// Its directory.
    pub fn name(self) -> &'static str {
        match self {
            Part::Shm => "shm",
            Part::Sysv => "sysv",
            Part::Lib => "lib",
        }
    }
}

impl FileSystem {
    /// Mounts it, for a user to write to where one is said.
    pub fn mount(&self, at: &Path, owner: Option<u32>) -> io::Result<()> {
        let base = MountFlags::NOSUID | MountFlags::NODEV;
        let (flags, mode) = match self.part {
            Part::Shm if self.exec => (base, 1777),
            Part::Shm => (base | MountFlags::NOEXEC, 1777),
            Part::Sysv => (base, 700),
            Part::Lib => (base, 755),
        };
        let mut options = format!("mode={mode},size={}", self.size);
        if let Some(inodes) = self.inodes {
            options.push_str(&format!(",nr_inodes={}", inodes.saturating_add(1)));
        }
        if let Some(owner) = owner {
            options.push_str(&format!(",uid={owner},gid={owner}"));
        }
        let try_with = |options: String| {
            let options = CString::new(options).expect("numbers and words have no NUL");
            mount("podshm", at, "tmpfs", flags, options.as_c_str())
        };
        // `noswap` since Linux 6.4: what is charged to the daemon stays in memory.
        Ok(try_with(format!("{options},noswap")).or_else(|_| try_with(options))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_of_a_release_without_alerts_is_taken_over() {
        let mut json = serde_json::to_value(Config::new("d", Mode::Preload)).unwrap();
        json.as_object_mut().unwrap().remove("shm_alert_percent").unwrap();
        assert_eq!(serde_json::from_value::<Config>(json).unwrap(), Config::new("d", Mode::Preload));
    }
}
