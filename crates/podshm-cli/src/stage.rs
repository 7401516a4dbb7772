//! Pid 1 of a member that `podshm run` starts: makes its namespaces and mounts, checks that nothing will run private, starts the
//! command, reaps what is left over.
//!
//! ```text
//!  /dev/shm             the domain's tmpfs
//!  /dev/mqueue          the IPC namespace's
//!  /run/podshm/member   the member's socket directory      (preload mode)
//!  /run/podshm/lib      the library, read-only             (preload mode)
//!  ROOT/domains         empty: no other domain, no other member
//! ```

use crate::past;
use anyhow::{Context, bail};
use podshm_preload::{FILE_NAME, POSIX_ENV, SOCKET_ENV};
use podshm_unmodified::control::{Question, ask_at};
use podshm_unmodified::server::SOCKET;
use podshm_unmodified::{Mode, Place, native, probe};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, wait};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The hidden verb that starts it.
pub const VERB: &str = "member-stage";

/// Where a member finds its own things.
const INSIDE: &str = "/run/podshm";
/// What root has in a container by default: no SYS_ADMIN, no PTRACE, no IPC_OWNER.
const CONTAINER_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// What it shall be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stage {
    /// Where domains are.
    pub root: PathBuf,
    /// The domain.
    pub domain: String,
    /// How System V calls reach it.
    pub mode: Mode,
    /// The member.
    pub member: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Another library than the domain's.
    pub library: Option<PathBuf>,
    /// The command.
    pub command: Vec<String>,
}

/// Runs the command to its end.
pub fn run(stage: &str) -> anyhow::Result<ExitCode> {
    let stage: Stage = serde_json::from_str(stage).context("this verb is for `podshm run` alone")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with `podshm run`")?;
    let mut signals = signal_hook::iterator::Signals::new([1, 2, 15]).context("watching for signals")?;
    // Deprecated for UnshareFlags::FILES, which is not among these.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUTS).context("making namespaces (needs root)")?;
    rustix::system::sethostname(stage.member.as_bytes()).context("setting the host name")?;
    let place = Place::of(&stage.root, &stage.domain)?;
    match stage.mode {
        Mode::Native => place.enter_ipc()?,
        Mode::Preload => {
            native::new_ipc_namespace().context("making an IPC namespace")?;
            // What the library can't reach gets an errno from the kernel, and nothing private.
            native::set_limits(&native::nothing()).context("setting the member's own System V limits to nothing")?;
        }
    }
    // Kept open: below, its path is hidden.
    let directory = fs::File::open(place.path("")).context("opening the domain's directory")?;
    let library = mounts(&stage, &place)?;
    let search = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
    let [program, arguments @ ..] = &stage.command[..] else { bail!("no command") };
    let program = probe::find(Path::new(program), &search)?;
    let mut command = Command::new(&program);
    command.args(arguments).env("PODSHM_DOMAIN", &stage.domain);
    if let Some(library) = library {
        let socket = Path::new(INSIDE).join("member").join(SOCKET);
        if let Err(why) = probe::hello(&socket).and_then(|()| probe::loads(&program, &library)) {
            let control = format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd());
            let _ = ask_at(control.as_ref(), &Question::NotStarted(stage.member, why.to_string()));
            return Err(why.into());
        }
        let mut preload = OsString::from(&library);
        if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
            preload.push(":");
            preload.push(others);
        }
        command.env("LD_PRELOAD", preload).env(SOCKET_ENV, socket).env(POSIX_ENV, "mounted");
    }
    drop_rights(stage.uid)?;
    if stage.mode == Mode::Preload {
        past::watch(stage.member, directory);
    }
    command.uid(stage.uid).gid(stage.gid);
    let child = command.spawn().with_context(|| format!("executing {} as uid {}", program.display(), stage.uid))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child has a pid")?;
    std::thread::spawn(move || {
        for signal in signals.forever().filter_map(Signal::from_named_raw) {
            let _ = kill_process(pid, signal);
        }
    });
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => {
                let code = status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0));
                return Ok(ExitCode::from(code as u8));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}

/// The member's view of the file system; the library, where it has one.
fn mounts(stage: &Stage, place: &Place) -> anyhow::Result<Option<PathBuf>> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    let take = |path: PathBuf| -> anyhow::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, &path, flags).with_context(|| format!("taking {} along", path.display()))
    };
    let shm = take(place.path("shm"))?;
    let own = match stage.mode {
        Mode::Native => None,
        Mode::Preload => Some((take(place.path("lib"))?, take(place.member(&stage.member))?)),
    };
    // Nothing of any domain is left below the root: not its mounts, not its sockets.
    let domains = fs::canonicalize(stage.root.join("domains")).context("the domains' directory")?;
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(&domains) {
            unmount(point, UnmountFlags::DETACH).with_context(|| format!("hiding {point}"))?;
        }
    }
    let empty = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("podshm", &domains, "tmpfs", empty | MountFlags::RDONLY, c"mode=755,size=0").context("hiding the domains")?;
    attach(&shm, Path::new("/dev/shm"))?;
    if Path::new("/dev/mqueue").exists() {
        mount("mqueue", "/dev/mqueue", "mqueue", empty, c"").context("making /dev/mqueue")?;
    }
    let library = match own {
        None => None,
        Some((lib, member)) => {
            fs::create_dir_all(INSIDE).with_context(|| format!("making {INSIDE}"))?;
            mount("podshm", INSIDE, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755,size=64k")
                .with_context(|| format!("making {INSIDE}"))?;
            for (tree, name) in [(&lib, "lib"), (&member, "member")] {
                let to = Path::new(INSIDE).join(name);
                fs::create_dir(&to).with_context(|| format!("making {}", to.display()))?;
                attach(tree, &to)?;
            }
            let lib = Path::new(INSIDE).join("lib");
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(&lib, flags, c"").context("making the library read-only")?;
            Some(stage.library.clone().unwrap_or_else(|| lib.join(FILE_NAME)))
        }
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, c"").context("making /proc")?;
    Ok(library)
}

fn attach(tree: &OwnedFd, to: &Path) -> anyhow::Result<()> {
    move_mount(tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mounting at {}", to.display()))
}

/// What a container would not have either. With no_new_privs setuid programs gain nothing, and so load the library too.
fn drop_rights(uid: u32) -> anyhow::Result<()> {
    let keep = if uid == 0 { CONTAINER_ROOT } else { CapabilitySet::empty() };
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Past the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.context("dropping a capability")?,
        }
    }
    clear_ambient_capability_set().context("clearing ambient capabilities")?;
    let mut sets = capabilities(None).context("reading capabilities")?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).context("clearing inheritable capabilities")?;
    set_no_new_privs(true).context("setting no_new_privs")
}
