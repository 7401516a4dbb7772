//! A pod's view of the file system.
//!
//! ```text
//!  /            the host's, read-only                 /proc  own        /sys  own network's, read-only
//!  /dev         own: null zero full random urandom tty, pts, shm (64 MiB), mqueue
//!  /run /tmp /var/tmp and every hidden path: empty tmpfs
//!  /run/podshm  the pod's socket directory             binds   where asked for
//!  the directories of the program and of the harness, read-only, where they were hidden
//! ```

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change, mount_remount,
    move_mount, open_tree,
};

use super::{Step, StepError};
use crate::spec::{Isolation, Spec};

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// A detached copy of a host path, to be attached after the host's own is hidden.
struct Detached {
    tree: OwnedFd,
    host: PathBuf,
    inside: PathBuf,
    is_dir: bool,
    read_only: bool,
}

pub(super) fn build(spec: &Spec) -> Result<(), StepError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .unavailable("making mounts private")?;

    let hidden = hidden_paths(spec);
    let exposed = exposed_paths(spec, &hidden)?;
    let devices = detach_all(
        DEVICES
            .iter()
            .map(|name| {
                let path = Path::new("/dev").join(name);
                (path.clone(), path, false)
            })
            .filter(|(path, ..)| path.exists()),
    )?;
    let exposures = detach_all(exposed.iter().map(|path| (path.clone(), path.clone(), true)))?;
    let binds = detach_all(spec.binds.iter().map(|bind| (bind.host.clone(), bind.inside.clone(), bind.read_only)))?;

    make_all_read_only()?;
    for path in &hidden {
        hide(path)?;
    }
    own_dev(spec, &devices)?;
    own_proc_and_sys(spec)?;
    for exposure in &exposures {
        attach(exposure)?;
        // An exposed directory may contain what has to stay hidden.
        for path in hidden.iter().chain(&spec.hide).filter(|path| path.starts_with(&exposure.inside) && path.exists()) {
            hide(path)?;
        }
    }
    binds.iter().try_for_each(attach)
}

/// Real paths, parents before children, none below another.
fn hidden_paths(spec: &Spec) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = spec.hide.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    all.sort();
    all.dedup();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in all {
        if !kept.iter().any(|above| path.starts_with(above)) {
            kept.push(path);
        }
    }
    kept
}

/// Directories to keep that would be hidden otherwise.
fn exposed_paths(spec: &Spec, hidden: &[PathBuf]) -> Result<Vec<PathBuf>, StepError> {
    let mut kept: Vec<PathBuf> = Vec::new();
    let real = |path: &PathBuf| fs::canonicalize(path).ok();
    let never: Vec<PathBuf> = spec.hide.iter().filter_map(real).collect();
    for path in spec.expose.iter().filter_map(real) {
        if !hidden.iter().any(|above| path.starts_with(above)) || kept.contains(&path) {
            continue;
        }
        if never.contains(&path) {
            return Err(StepError::Failed(format!(
                "{} holds a program that the pod needs, and has to be hidden too (is it /tmp, or the parent of the socket \
                 directories?); put the one elsewhere",
                path.display()
            )));
        }
        kept.push(path);
    }
    kept.sort();
    Ok(kept)
}

fn detach_all(paths: impl Iterator<Item = (PathBuf, PathBuf, bool)>) -> Result<Vec<Detached>, StepError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let detach = |(host, inside, read_only): (PathBuf, PathBuf, bool)| {
        let tree = open_tree(CWD, &host, flags).failed(format!("taking {} along", host.display()))?;
        Ok(Detached { tree, is_dir: host.is_dir(), host, inside, read_only })
    };
    paths.map(detach).collect()
}

fn attach(what: &Detached) -> Result<(), StepError> {
    let to = what.inside.display();
    let made = if what.is_dir {
        make_dirs(&what.inside)
    } else {
        make_dirs(what.inside.parent().unwrap_or(Path::new("/")))
            .and_then(|()| if what.inside.exists() { Ok(()) } else { File::create(&what.inside).map(drop) })
    };
    made.failed(format!("making {to} for {} (it has to exist, or lie on a tmpfs of the pod)", what.host.display()))?;
    move_mount(&what.tree, "", CWD, &what.inside, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .failed(format!("binding {} at {to}", what.host.display()))?;
    if what.read_only {
        let flags = current_flags(&what.inside);
        mount_remount(&what.inside, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
            .failed(format!("making {to} read-only"))?;
    }
    Ok(())
}

fn make_dirs(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o755).create(path) }
}

fn hide(path: &Path) -> Result<(), StepError> {
    let what = format!("hiding {}", path.display());
    if !path.is_dir() {
        return mount_bind("/dev/null", path).failed(what);
    }
    let shared = path.ends_with("tmp");
    tmpfs(path, if shared { "mode=1777,size=64m" } else { "mode=755,size=16m" }, MountFlags::empty(), what)
}

fn tmpfs(path: &Path, options: &str, flags: MountFlags, what: String) -> Result<(), StepError> {
    let options = CString::new(options).expect("mount options have no NUL");
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | flags, options.as_c_str()).failed(what)
}

fn own_dev(spec: &Spec, devices: &[Detached]) -> Result<(), StepError> {
    let dev = |name: &str| Path::new("/dev").join(name);
    // No NODEV here: the devices are binds with flags of their own, but pts needs its parent's blessing on some kernels.
    mount("tmpfs", "/dev", "tmpfs", MountFlags::NOSUID, c"mode=755,size=64k").failed("making /dev")?;
    devices.iter().try_for_each(attach)?;
    for name in ["shm", "pts"] {
        make_dirs(&dev(name)).failed("filling /dev")?;
    }
    let shm = format!("mode=1777,size={}", spec.shm_size);
    tmpfs(&dev("shm"), &shm, MountFlags::NOEXEC, "making /dev/shm".into())?;
    let pts = mount(
        "devpts",
        dev("pts"),
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=620",
    );
    pts.failed("making /dev/pts")?;
    // POSIX queues belong to the ipc namespace; without the file system they can be used all the same.
    if make_dirs(&dev("mqueue")).is_ok() {
        let _ =
            mount("mqueue", dev("mqueue"), "mqueue", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"");
    }
    let links =
        [("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")];
    for (target, name) in links {
        symlink(target, dev(name)).failed("filling /dev")?;
    }
    Ok(())
}

fn own_proc_and_sys(spec: &Spec) -> Result<(), StepError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, c"").unavailable("making /proc")?;
    // A fresh sysfs shows this network namespace and no cgroups; where it is refused, the host's stays, cgroups hidden.
    if mount("sysfs", "/sys", "sysfs", flags | MountFlags::RDONLY, c"").is_err() {
        hide(Path::new("/sys/fs/cgroup"))?;
    }
    if spec.is_root() && spec.isolation == Isolation::Root {
        // Root in a pod could reboot the machine through these by file permissions alone.
        for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"] {
            if Path::new(path).exists() {
                mount_bind(path, path).failed(format!("masking {path}"))?;
                mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
                    .failed(format!("masking {path}"))?;
            }
        }
        for path in
            ["/proc/kcore", "/proc/keys", "/proc/timer_list"].into_iter().filter(|path| Path::new(path).exists())
        {
            mount_bind("/dev/null", path).failed(format!("masking {path}"))?;
        }
    }
    Ok(())
}

/// Every mount that came with the host becomes read-only; what is writable in a pod is mounted afterwards.
fn make_all_read_only() -> Result<(), StepError> {
    for (point, flags) in mount_points()? {
        let done = mount_remount(&point, MountFlags::BIND | MountFlags::RDONLY | flags, c"");
        // Mounts that lie below another one, or that the kernel has locked, can't be named or changed: not reachable, or
        // not writable to a pod anyway. The root has to work.
        if point == Path::new("/") {
            done.unavailable("making / read-only")?;
        }
    }
    Ok(())
}

/// Mount points with the flags that a remount has to repeat.
fn mount_points() -> Result<Vec<(PathBuf, MountFlags)>, StepError> {
    let text = fs::read_to_string("/proc/self/mountinfo").failed("reading the mounts")?;
    let parse = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        Some((unescape(words.get(4)?), flags_of(words.get(5)?)))
    };
    Ok(text.lines().filter_map(parse).collect())
}

fn current_flags(path: &Path) -> MountFlags {
    let points = mount_points().unwrap_or_default();
    points.iter().rev().find(|(point, _)| point == path).map_or(MountFlags::empty(), |(_, flags)| *flags)
}

fn flags_of(options: &str) -> MountFlags {
    options.split(',').fold(MountFlags::empty(), |flags, option| {
        flags
            | match option {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            }
    })
}

/// mountinfo writes space, tab, newline and backslash as octal.
fn unescape(text: &str) -> PathBuf {
    let text = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    text.into()
}
