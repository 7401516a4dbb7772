//! Agents and clients in processes of their own, which can be stopped and killed.

use crate::PATIENCE;
use crate::roles::LAYOUTS;
use podshm::steps::{Plan, VARIABLE};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Sends a child that has not been reaped a signal.
pub(crate) fn send(child: &Child, signal: i32) {
    let signal = Signal::from_named_raw(signal).expect("a signal with a name");
    kill_process(Pid::from_child(child), signal).expect("a child");
}

/// Exit status of a participant that the broker has refused.
pub const REFUSED: u8 = 3;

/// A process of `podshm-test-participant`; killed when dropped.
#[derive(Debug)]
pub struct Participant {
    child: Child,
    what: String,
}

impl Participant {
    /// Agent number `index` on `directory`, which writes its deliveries to `file`.
    pub fn agent(program: &str, directory: &Path, file: &Path, index: u32, plan: Option<Plan>) -> Participant {
        Self::start(program, "agent", directory, file, index, plan)
    }

    /// [`Participant::agent`] that fills its table over and over, so that it grows.
    pub fn growing_agent(program: &str, directory: &Path, file: &Path, index: u32, plan: Option<Plan>) -> Participant {
        Self::start(program, "growing-agent", directory, file, index, plan)
    }

    /// [`Participant::agent`] that offers so many more queues.
    pub fn larger_agent(
        program: &str,
        directory: &Path,
        file: &Path,
        index: u32,
        more: u32,
        plan: Option<Plan>,
    ) -> Participant {
        Self::start(program, &format!("agent+{more}"), directory, file, index, plan)
    }

    /// [`Participant::agent`] of a release that speaks memory layout 1 only.
    pub fn old_agent(program: &str, directory: &Path, file: &Path, index: u32) -> Participant {
        Self::speaking(program, true, "agent", directory, file, index)
    }

    /// A participant in any role, of a release that speaks memory layout 1 only if told so.
    pub fn speaking(
        program: &str,
        layout_1: bool,
        role: &str,
        directory: &Path,
        file: &Path,
        number: u32,
    ) -> Participant {
        let mut command = Command::new(program);
        if layout_1 {
            command.env(LAYOUTS, "1");
        }
        Self::run(command, role, directory, file, number, None)
    }

    /// A client that sends as number `sender` and writes what was accepted to `file`.
    pub fn client(program: &str, directory: &Path, file: &Path, sender: u32, plan: Option<Plan>) -> Participant {
        Self::start(program, "client", directory, file, sender, plan)
    }

    fn start(program: &str, role: &str, directory: &Path, file: &Path, number: u32, plan: Option<Plan>) -> Participant {
        Self::run(Command::new(program), role, directory, file, number, plan)
    }

    fn run(
        mut command: Command,
        role: &str,
        directory: &Path,
        file: &Path,
        number: u32,
        plan: Option<Plan>,
    ) -> Participant {
        command.arg(role).arg(directory).arg(file).arg(number.to_string());
        let mut what = format!("{role} {number}");
        if let Some(plan) = plan {
            command.env(VARIABLE, plan.to_string());
            what = format!("{what} ({plan})");
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Participant { child, what }
    }

    /// What it is, for messages.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        send(&self.child, signal);
    }

    /// Kills it and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// [`Participant::kill`], for the place of one that may live.
    pub fn kill_and_none(self) -> Option<Participant> {
        self.kill();
        None
    }

    /// Waits until it has killed itself at its step.
    pub fn await_death(mut self) {
        let status = self.await_end_of();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{} was to die at its step: {status}", self.what);
    }

    /// Waits until it has stopped itself at its step, or was stopped.
    pub fn await_stop(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.is_stopped() {
            assert!(Instant::now() < until, "{} does not come to its step", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it has stopped since this was asked last; fails where it has ended.
    pub fn is_stopped(&mut self) -> bool {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        let changed = waitpid(Some(Pid::from_child(&self.child)), options).expect("it is a child");
        let Some((_, status)) = changed else { return false };
        assert!(status.stopped(), "{} ended and was to stop: {}", self.what, ExitStatus::from_raw(status.as_raw()));
        true
    }

    /// Waits until it ends in order.
    pub fn await_end(mut self) {
        let status = self.await_end_of();
        assert!(status.success(), "{} was to end in order: {status}", self.what);
    }

    /// Waits until it ends because the broker has refused it.
    pub fn await_refusal(mut self) {
        let status = self.await_end_of();
        assert_eq!(status.code(), Some(REFUSED.into()), "{} was to be refused: {status}", self.what);
    }

    fn await_end_of(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "{} does not end", self.what);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
