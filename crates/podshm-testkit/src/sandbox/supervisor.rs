//! `pod` and `enter`: start the stages, tell the library, watch, take down.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, Signal, getgid, getuid, kill_process, pidfd_open, set_child_subreaper};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::{Step, StepError, namespaces};
use crate::cgroup::Cgroup;
use crate::process::raw_pid;
use crate::spec::{Isolation, Spec};

/// How long the last processes may take to leave the cgroup.
const LEAVING: Duration = Duration::from_secs(5);

/// The control socket (our stdin) and the harness.
struct Harness {
    control: UnixStream,
    /// The harness itself, and for `enter` without walls the pod's helper: whichever ends, we end. One that died before
    /// we looked is missing here, and the socket's end says so too.
    processes: Vec<OwnedFd>,
}

struct Init {
    child: Child,
    /// Held open: its end tells init to go.
    _pipe: Option<ChildStdin>,
}

pub(super) fn refuse(reason: &str) -> ExitCode {
    let line = StepError::Failed(reason.to_owned()).line();
    let said = control().and_then(|mut control| control.write_all(line.as_bytes()));
    if said.is_err() {
        eprintln!("podshm-pod: {reason}");
    }
    ExitCode::FAILURE
}

pub(super) fn pod(spec: &Spec) -> ExitCode {
    let Ok(mut harness) = Harness::attach() else {
        return refuse("expected a socket as stdin");
    };
    let mut spec = spec.clone();
    let cgroup = match Cgroup::make(&spec.name, spec.memory_limit) {
        Ok(cgroup) => Some(cgroup),
        Err(why) => {
            harness.say(&format!("warn {}\n", why.replace('\n', " ")));
            None
        }
    };
    spec.cgroup = cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned());
    let mut init = None;
    let done = (|| {
        init = start_init(&spec)?;
        spec.init = init.as_ref().map(|init| init.child.id());
        let payload = start_payload(&spec)?;
        harness.watch(payload, &spec, init.as_ref())
    })();
    if let Err(error) = &done {
        harness.say(&error.line());
    }
    take_down(init, cgroup.as_ref());
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(super) fn enter(spec: &Spec) -> ExitCode {
    let Ok(mut harness) = Harness::attach() else {
        return refuse("expected a socket as stdin");
    };
    let done = (|| {
        match (spec.isolation, spec.init) {
            (Isolation::None, Some(helper)) => {
                let helper = raw_pid(helper).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                let helper = helper.ok_or_else(|| StepError::Failed("the pod has gone".into()))?;
                harness.processes.push(helper);
                set_child_subreaper(Some(rustix::process::getpid())).failed("becoming a reaper")?
            }
            (_, None) => return Err(StepError::Failed("expected --init".into())),
            (Isolation::Root, Some(init)) => namespaces::join(init, &[("pid", LinkNameSpaceType::ProcessID)])?,
            (Isolation::User, Some(init)) => {
                namespaces::join(init, &[("user", LinkNameSpaceType::User), ("pid", LinkNameSpaceType::ProcessID)])?
            }
        }
        let payload = start_payload(spec)?;
        harness.watch(payload, spec, None)
    })();
    if let Err(error) = &done {
        harness.say(&error.line());
    }
    if spec.isolation == Isolation::None {
        kill_descendants();
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Our later children live in the new pid namespace; the first is its init.
fn start_init(spec: &Spec) -> Result<Option<Init>, StepError> {
    match spec.isolation {
        Isolation::None => {
            set_child_subreaper(Some(rustix::process::getpid())).failed("becoming a reaper")?;
            return Ok(None);
        }
        Isolation::Root => namespaces::unshare(UnshareFlags::NEWPID, "making a pid namespace")?,
        Isolation::User => {
            let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
            namespaces::unshare(UnshareFlags::NEWUSER, "making a user namespace")?;
            namespaces::map_ids((0, uid), (0, gid))?;
            namespaces::unshare(UnshareFlags::NEWPID, "making a pid namespace")?;
        }
    }
    let mut command = own_verb("init", spec);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unavailable("starting the pod's init")?;
    let pipe = child.stdin.take();
    let mut line = String::new();
    let mut answer = child.stdout.take().expect("init's stdout is a pipe");
    // One line, then /dev/null: the end comes at once.
    let read = answer.read_to_string(&mut line);
    let init = Init { child, _pipe: pipe };
    match read {
        Ok(_) if line == "ready\n" => Ok(Some(init)),
        Ok(_) => {
            take_down(Some(init), None);
            Err(StepError::parse(&line))
        }
        Err(error) => {
            take_down(Some(init), None);
            Err(StepError::Failed(format!("waiting for the pod's init: {error}")))
        }
    }
}

fn start_payload(spec: &Spec) -> Result<Child, StepError> {
    let (mut ours, theirs) = UnixStream::pair().failed("making the report socket")?;
    let mut command = own_verb("stage", spec);
    let mut child = command.stdin(OwnedFd::from(theirs)).spawn().failed("starting the payload")?;
    drop(command);
    // Only the payload shall hold stdout, or its end would never be seen.
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    let mut report = String::new();
    let read = ours.read_to_string(&mut report);
    if read.is_ok() && report.is_empty() {
        return Ok(child);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(StepError::parse(&report))
}

fn own_verb(verb: &str, spec: &Spec) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(verb).args(spec.to_args());
    command
}

fn control() -> std::io::Result<UnixStream> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::net::sockopt::socket_type(&control)?;
    Ok(UnixStream::from(control))
}

impl Harness {
    fn attach() -> std::io::Result<Self> {
        let control = control()?;
        let null = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        let process = rustix::process::getppid().and_then(|parent| pidfd_open(parent, PidfdFlags::empty()).ok());
        Ok(Self { control, processes: process.into_iter().collect() })
    }

    fn say(&mut self, line: &str) {
        // A harness that has gone is noticed in `watch`.
        let _ = self.control.write_all(line.as_bytes());
    }

    /// Until the harness lets go of us or dies. The payload is reaped before this returns.
    fn watch(&mut self, mut payload: Child, spec: &Spec, init: Option<&Init>) -> Result<(), StepError> {
        let cgroup = spec.cgroup.as_ref().map_or("-".into(), |dir| dir.to_string_lossy());
        let init = init.map_or(0, |init| init.child.id());
        self.say(&format!("ready {} {init} {cgroup}\n", payload.id()));
        let mut go = [0; 3];
        if self.control.read_exact(&mut go).is_ok() {
            self.watch_both(&mut payload)?;
        }
        let _ = payload.kill();
        let _ = payload.wait();
        Ok(())
    }

    fn watch_both(&mut self, payload: &mut Child) -> Result<(), StepError> {
        let pid = raw_pid(payload.id()).expect("a child has a pid");
        let mut running = Some(pidfd_open(pid, PidfdFlags::empty()).failed("watching the payload")?);
        loop {
            let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
            fds.extend(self.processes.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
            let harness = fds.len();
            fds.extend(running.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.failed("watching the payload")?,
            };
            // Nobody writes after `go`: readable means closed, and a readable pidfd means dead.
            if fds[..harness].iter().any(|fd| !fd.revents().is_empty()) {
                return Ok(());
            }
            if fds[harness..].iter().any(|fd| !fd.revents().is_empty()) {
                running = None;
                let status = payload.wait().failed("reaping the payload")?;
                self.say(&format!("exit {}\n", status.into_raw()));
            }
        }
    }
}

/// Kills what is left, in the order that lets each be reaped, and removes the cgroup.
fn take_down(init: Option<Init>, cgroup: Option<&Cgroup>) {
    match init {
        Some(mut init) => {
            let _ = init.child.kill();
            // Returns when the whole pid namespace is empty.
            let _ = init.child.wait();
        }
        None => kill_descendants(),
    }
    let Some(cgroup) = cgroup else { return };
    for pid in cgroup.processes().into_iter().filter_map(raw_pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
    if !cgroup.remove(LEAVING) {
        eprintln!("podshm-pod: cgroup {} is still in use and was left behind", cgroup.dir().display());
    }
}

/// As a subreaper we are the parent of every orphan, so killing until no child is left kills all.
fn kill_descendants() {
    let own = std::process::id();
    loop {
        let all = descendants(own);
        for pid in all.into_iter().skip(1).filter_map(raw_pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
            return;
        }
    }
}

/// A process and all below it, by /proc.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", all[at])) else {
            all.remove(at);
            continue;
        };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    all
}
