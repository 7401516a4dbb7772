//! Pid 1 of a pod: makes the namespaces and mounts, then holds them and reaps orphans.

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, wait};
use rustix::thread::UnshareFlags;

use super::{Step, StepError, mounts, namespaces};
use crate::spec::Spec;

/// How often orphans are reaped. A zombie or two in between harms nobody, and an idle pod should cost nothing.
const REAP_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// stdin is a pipe from the supervisor, whose end means ours; stdout takes one line: ready, or what went wrong.
pub(super) fn run(spec: &Spec) -> ExitCode {
    // The supervisor spawns us from its only thread, so "parent thread died" is "supervisor died". Should it have died
    // before this line, the pipe below has ended.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let result = build(spec);
    let line = match &result {
        Ok(()) => "ready\n".to_owned(),
        Err(error) => error.line(),
    };
    let mut stdout = std::io::stdout();
    if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() || result.is_err() {
        return ExitCode::FAILURE;
    }
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    hold();
    ExitCode::SUCCESS
}

fn build(spec: &Spec) -> Result<(), StepError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWNET;
    namespaces::unshare(flags, "making mount, ipc, uts and net namespaces")?;
    let host_name: String = spec.name.chars().take(63).collect();
    rustix::system::sethostname(host_name.as_bytes()).failed("setting the host name")?;
    namespaces::loopback_up()?;
    mounts::build(spec)
}

fn hold() {
    let stdin = rustix::stdio::stdin();
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut fds, Some(&REAP_EVERY)) {
            // The supervisor never writes: readable means closed.
            Ok(ready) if ready > 0 => return,
            _ => while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {},
        }
    }
}
