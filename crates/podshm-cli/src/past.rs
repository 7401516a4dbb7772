//! Calls of a member that did not come through the preload library: refused by a filter that the member's first process sets up, and
//! told to the domain's daemon, once for each program and call.
//!
//! The member's own IPC namespace, which gives nothing, stays behind it: for kernels and members where there can be no such filter.

use podshm_region::seccomp::Listener;
use podshm_unmodified::control::{Question, Response, ask_within};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Of one member; a program with ever new names gets no further.
const TOLD_AT_MOST: usize = 64;
/// How long a caller may be kept waiting while the daemon is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// From here on, for this thread and what it starts. `directory` is the domain's, whose path is hidden from the member.
pub fn watch(member: String, directory: File) {
    let listener = match Listener::install() {
        Ok(listener) => listener,
        // The member is one of a container that has a listener of its own, say.
        Err(error) => {
            tracing::warn!(member, %error, "calls past the preload library are refused, and can't be told of here");
            return;
        }
    };
    std::thread::spawn(move || {
        let control = format!("/proc/self/fd/{}/control.sock", directory.as_raw_fd());
        let mut told = BTreeSet::new();
        while let Ok(refused) = listener.next_call() {
            let (call, program) = (refused.call, program_of(refused.tid));
            if told.len() >= TOLD_AT_MOST || told.contains(&(program.clone(), call)) {
                continue;
            }
            let question = Question::PastLibrary(member.clone(), program.clone(), call.to_owned());
            // Its caller waits for that: it may be the last that this member does. A daemon that is away is told next time.
            if matches!(ask_within(control.as_ref(), &question, PATIENCE), Ok(Response::Done)) {
                told.insert((program, call));
            }
        }
    });
}

/// Its executable; its name, where it has ended by now.
fn program_of(tid: u32) -> String {
    let process = format!("/proc/{tid}");
    let link = fs::read_link(format!("{process}/exe")).map(|path| path.to_string_lossy().into_owned());
    let name = || fs::read_to_string(format!("{process}/comm")).map(|name| name.trim().to_owned());
    link.or_else(|_| name()).unwrap_or_else(|_| "a program that has ended".to_owned())
}
