//! The last stage before the payload: into the cgroup, into the namespaces, out of all privileges, exec.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{Step, StepError, namespaces};
use crate::cgroup::Cgroup;
use crate::spec::{Isolation, Spec};

/// What container runtimes leave to root in a container.
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
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// stdin is the report pipe: closed without a word by a successful exec.
pub(super) fn run(spec: &Spec) -> ExitCode {
    let Ok(report) = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::FAILURE;
    };
    let error = match prepare(spec) {
        Err(error) => error,
        Ok(mut command) => {
            let error = command.exec();
            StepError::Failed(format!(
                "executing {:?} in the pod as uid {}: {error}; the path has to be visible in the pod (see PodBuilder::expose) \
                 and every directory on the way to it open to that uid",
                spec.program, spec.uid
            ))
        }
    };
    let _ = File::from(report).write_all(error.line().as_bytes());
    ExitCode::FAILURE
}

fn prepare(spec: &Spec) -> Result<Command, StepError> {
    let null = File::open("/dev/null").failed("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).failed("setting stdin")?;
    close_on_exec()?;
    if let Some(dir) = &spec.cgroup {
        Cgroup::open(dir).join().failed(format!("joining the cgroup {}", dir.display()))?;
    }
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear().envs(spec.env.iter().map(|(key, value)| (key, value)));
    if spec.isolation == Isolation::None {
        // The pod has no init here, so each process follows its helper by itself.
        set_parent_process_death_signal(Some(Signal::KILL)).failed("asking for the parent-death signal")?;
        return Ok(command);
    }
    let init = spec.init.ok_or_else(|| StepError::Failed("expected --init".into()))?;
    let spaces = [
        ("net", LinkNameSpaceType::Network),
        ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ("ipc", LinkNameSpaceType::InterProcessCommunication),
        ("mnt", LinkNameSpaceType::Mount),
    ];
    namespaces::join(init, &spaces)?;
    std::env::set_current_dir("/").failed("entering the pod's root")?;
    match (spec.isolation, spec.is_root()) {
        (Isolation::User, false) => {
            // We are uid 0 of the pod's user namespace. One more level turns that into the pod's uid; exec as that uid
            // then drops every capability.
            namespaces::unshare(UnshareFlags::NEWUSER, "making the inner user namespace")?;
            namespaces::map_ids((spec.uid, 0), (spec.gid, 0))?;
            drop_bounding(CapabilitySet::empty())?;
        }
        (Isolation::User, true) => drop_bounding(CONTAINER_ROOT)?,
        // From uid 0, std drops the supplementary groups too.
        (_, false) => {
            drop_bounding(CapabilitySet::empty())?;
            command.uid(spec.uid).gid(spec.gid);
        }
        (_, true) => {
            drop_bounding(CONTAINER_ROOT)?;
            command.uid(0).gid(spec.gid);
        }
    }
    if !spec.is_root() {
        set_no_new_privs(true).failed("setting no_new_privs")?;
    }
    Ok(command)
}

/// Whatever a sloppy harness leaked into us ends here: only stdin, stdout and stderr go on.
fn close_on_exec() -> Result<(), StepError> {
    for entry in fs::read_dir("/proc/self/fd").failed("listing descriptors")?.flatten() {
        let fd = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(fd) = fd.filter(|fd| *fd > 2) {
            set_close_on_exec(fd);
        }
    }
    Ok(())
}

fn set_close_on_exec(fd: i32) {
    #![allow(unsafe_code)]
    // SAFETY: the borrow lasts for one fcntl; the number came from /proc/self/fd of this single-threaded process, and
    // if the directory stream's own descriptor is the one, it lives until after the loop.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = fcntl_setfd(fd.as_fd(), FdFlags::CLOEXEC);
}

fn drop_bounding(keep: CapabilitySet) -> Result<(), StepError> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Past the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            other => other.failed("dropping a capability")?,
        }
    }
    clear_ambient_capability_set().failed("clearing ambient capabilities")?;
    let mut sets: CapabilitySets = rustix::thread::capabilities(None).failed("reading capabilities")?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).failed("clearing inheritable capabilities")
}
