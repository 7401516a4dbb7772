//! One process in a pod, and the helper that watches it.
//!
//! The library starts the helper with a socket as its stdin. Over it the helper says `ready`, `unavailable` or `error`
//! once, and `exit STATUS` later; when the library's end closes (dropped, or the harness died), the helper takes
//! everything down.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::spec::{Isolation, Spec};
use crate::{HELPER_ENV, ISOLATION_ENV};

/// How long a helper may take to build a pod, and to take it down. Going over to a cgroup waits for the kernel's RCU, which on two cores
/// that are busy with much else was seen to take 20 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can go wrong with a pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodError {
    /// The helper binary isn't where it should be.
    #[error(
        "the helper podshm-pod was not found (looked at {looked:?}); build it with `cargo build -p podshm-testkit --bins` \
         (with the same profile and target directory), or name it in {HELPER_ENV}"
    )]
    NoHelper {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The program isn't in PATH or doesn't exist.
    #[error("pod {pod}: program {program:?} was not found")]
    NoProgram {
        /// The pod.
        pod: String,
        /// As asked for.
        program: String,
    },
    /// The helper could not build the pod or start the program.
    #[error("pod {pod}: {reason}")]
    Setup {
        /// The pod.
        pod: String,
        /// The step that failed, what was found, what to do.
        reason: String,
    },
    /// The forced isolation, or every one, was refused by the kernel.
    #[error("pod {pod}: isolation {isolation} is not possible here: {reason}")]
    Unavailable {
        /// The pod.
        pod: String,
        /// What was tried.
        isolation: Isolation,
        /// The step that was refused.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("pod {pod}: {reason}")]
    Invalid {
        /// The pod.
        pod: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The process isn't there any more.
    #[error("pod {pod}: the process has gone")]
    Gone {
        /// The pod.
        pod: String,
    },
    /// The system refused something.
    #[error("pod {pod}: {what}: {source}")]
    Io {
        /// The pod.
        pod: String,
        /// What was being done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Where a payload's stdout goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stdout {
    /// Collected line by line; see [`Lines`].
    #[default]
    Lines,
    /// The harness's own.
    Inherit,
    /// Nowhere.
    Null,
}

/// Where a payload's stderr goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stderr {
    /// The harness's own.
    #[default]
    Inherit,
    /// Appended to this file.
    File(PathBuf),
    /// Nowhere.
    Null,
}

/// A payload's stdout, line by line. A thread reads ahead without bound, so a payload never blocks on an idle harness.
#[derive(Debug)]
pub struct Lines {
    lines: Mutex<Receiver<String>>,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    // Nobody listens; keep draining, or the payload would get SIGPIPE.
                    let _ = io::copy(&mut stream, &mut io::sink());
                }
            }
        });
        Self { lines: Mutex::new(receiver) }
    }

    fn empty() -> Self {
        Self { lines: Mutex::new(channel().1) }
    }

    /// The next line; `None` at the end or when `timeout` has passed.
    pub fn next_within(&self, timeout: Duration) -> Option<String> {
        let lines = self.lines.lock().expect("no thread panics while it reads a line");
        lines.recv_timeout(timeout).ok()
    }

    /// Skips lines up to the first that starts with `prefix`, and returns its rest; `None` at the end or after `timeout`.
    pub fn wait_for(&self, prefix: &str, timeout: Duration) -> Option<String> {
        let end = Instant::now() + timeout;
        loop {
            let line = self.next_within(end.saturating_duration_since(Instant::now()))?;
            if let Some(rest) = line.strip_prefix(prefix) {
                return Some(rest.trim_start().to_owned());
            }
        }
    }

    /// What is there now, without waiting.
    pub fn ready(&self) -> Vec<String> {
        self.lines.lock().expect("no thread panics while it reads a line").try_iter().collect()
    }
}

/// Blocks for each line; ends when every process that holds the stdout has gone.
impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.lines.get_mut().expect("no thread panics while it reads a line").recv().ok()
    }
}

/// One payload process: the first of a pod, or one more from [`Pod::exec`](crate::Pod::exec). Dropping it kills it.
#[derive(Debug)]
pub struct PodProcess {
    pod: String,
    pid: u32,
    pidfd: OwnedFd,
    stdout: Lines,
    control: Control,
    helper: Child,
    status: Option<ExitStatus>,
}

/// What the helper said when it was ready.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    pub pid: u32,
    pub init: Option<u32>,
    pub cgroup: Option<PathBuf>,
    pub warnings: Vec<String>,
}

impl PodProcess {
    /// Starts a helper; `verb` is `pod` or `enter`.
    pub(crate) fn start(verb: &str, spec: &Spec, stdout: &Stdout, stderr: &Stderr) -> Result<(Self, Ready), PodError> {
        let pod = spec.name.clone();
        let io = |what| {
            let pod = pod.clone();
            move |source| PodError::Io { pod, what, source }
        };
        let (ours, theirs) = UnixStream::pair().map_err(io("making the control socket"))?;
        let mut command = Command::new(helper()?);
        // A group of its own, so that Ctrl-C on the harness's terminal lets the helper clean up.
        command.arg(verb).args(spec.to_args()).process_group(0).stdin(OwnedFd::from(theirs));
        match stdout {
            Stdout::Lines => command.stdout(Stdio::piped()),
            Stdout::Inherit => command.stdout(Stdio::inherit()),
            Stdout::Null => command.stdout(Stdio::null()),
        };
        match stderr {
            Stderr::Inherit => {}
            Stderr::Null => drop(command.stderr(Stdio::null())),
            Stderr::File(path) => {
                let file = File::options().create(true).append(true).open(path);
                command.stderr(file.map_err(io("opening the stderr file"))?);
            }
        }
        let mut helper = command.spawn().map_err(io("starting the helper podshm-pod"))?;
        // The command holds the helper's ends of socket and files: an end would never be seen.
        drop(command);
        let mut control = Control { stream: ours, pending: Vec::new() };
        match Self::greet(&pod, spec.isolation, &mut control) {
            Ok((pidfd, ready)) => {
                let stdout = helper.stdout.take().map_or_else(Lines::empty, Lines::of);
                Ok((Self { pod, pid: ready.pid, pidfd, stdout, control, helper, status: None }, ready))
            }
            Err(error) => {
                drop(control);
                reap(&mut helper);
                Err(error)
            }
        }
    }

    fn greet(pod: &str, isolation: Isolation, control: &mut Control) -> Result<(OwnedFd, Ready), PodError> {
        let setup = |reason: String| PodError::Setup { pod: pod.to_owned(), reason };
        let io = |what| move |source| PodError::Io { pod: pod.to_owned(), what, source };
        let mut warnings = Vec::new();
        loop {
            let line = control.line(Some(PATIENCE)).map_err(io("waiting for the helper"))?;
            let Some(line) = line else {
                return Err(setup(format!(
                    "expected the helper to be ready within {PATIENCE:?}, found it gone or silent"
                )));
            };
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "warn" => warnings.push(rest.to_owned()),
                "error" => return Err(setup(rest.to_owned())),
                "unavailable" => {
                    return Err(PodError::Unavailable { pod: pod.to_owned(), isolation, reason: rest.to_owned() });
                }
                "ready" => {
                    let mut words = rest.splitn(3, ' ');
                    let (pid, init) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
                    let cgroup = words.next().filter(|path| *path != "-").map(PathBuf::from);
                    let pid =
                        pid.parse().map_err(|_| setup(format!("expected a pid from the helper, found {pid:?}")))?;
                    // The helper doesn't reap before `go`: until then the pid can't be somebody else.
                    let pidfd = raw_pid(pid)
                        .ok_or(rustix::io::Errno::SRCH)
                        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
                    let pidfd = pidfd.map_err(|error| io("opening a pidfd of the payload")(error.into()))?;
                    control.stream.write_all(b"go\n").map_err(io("answering the helper"))?;
                    let init = init.parse().ok().filter(|init| *init != 0);
                    return Ok((pidfd, Ready { pid, init, cgroup, warnings }));
                }
                other => {
                    return Err(setup(format!("expected ready, found {other:?} from the helper")));
                }
            }
        }
    }

    /// Process id, as the harness counts.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn helper_pid(&self) -> u32 {
        self.helper.id()
    }

    /// A pidfd of the process: readable when it has exited.
    pub fn pidfd(&self) -> impl AsFd + '_ {
        &self.pidfd
    }

    /// Whether the process has exited, at the price of one system call; [`try_wait`](Self::try_wait) says how.
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(ready) if ready > 0)
    }

    /// Its stdout.
    pub fn stdout(&mut self) -> &mut Lines {
        &mut self.stdout
    }

    /// Takes its stdout out, for another thread to read.
    pub fn take_stdout(&mut self) -> Lines {
        std::mem::replace(&mut self.stdout, Lines::empty())
    }

    /// Sends a signal to this process alone; never to a successor of its pid.
    pub fn signal(&self, signal: Signal) -> Result<(), PodError> {
        pidfd_send_signal(&self.pidfd, signal).map_err(|error| match error {
            rustix::io::Errno::SRCH => PodError::Gone { pod: self.pod.clone() },
            other => PodError::Io { pod: self.pod.clone(), what: "sending a signal", source: other.into() },
        })
    }

    /// SIGKILL; no error if it has gone already.
    pub fn kill9(&self) -> Result<(), PodError> {
        match self.signal(Signal::KILL) {
            Err(PodError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> Result<ExitStatus, PodError> {
        self.wait_for(None)?.ok_or_else(|| PodError::Gone { pod: self.pod.clone() })
    }

    /// Waits at most `timeout`; `None` if it still runs.
    pub fn wait_within(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, PodError> {
        self.wait_for(Some(timeout))
    }

    /// `None` if it still runs.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, PodError> {
        self.wait_for(Some(Duration::ZERO))
    }

    fn wait_for(&mut self, timeout: Option<Duration>) -> Result<Option<ExitStatus>, PodError> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        let io = |source| PodError::Io { pod: self.pod.clone(), what: "waiting for the payload", source };
        let gone = || PodError::Gone { pod: self.pod.clone() };
        let line = match self.control.line(timeout) {
            Ok(Some(line)) => line,
            // Closed without a word: the helper was killed.
            Ok(None) => return Err(gone()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let status = line.strip_prefix("exit ").and_then(|status| status.parse().ok()).ok_or_else(gone)?;
        self.status = Some(ExitStatus::from_raw(status));
        Ok(self.status)
    }

    /// Lets go of the helper, which kills the process and, for a pod's first one, the pod.
    pub(crate) fn take_down(&mut self) {
        let _ = self.control.stream.shutdown(std::net::Shutdown::Both);
        reap(&mut self.helper);
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Waits for a helper whose control socket is closed; it takes everything down by itself.
fn reap(helper: &mut Child) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match helper.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            _ => return,
        }
    }
    // Its children die with it: the pod's init by its parent-death signal, the rest by their init.
    let _ = helper.kill();
    let _ = helper.wait();
}

#[derive(Debug)]
struct Control {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Control {
    /// One line; `None` when the other side has closed; `TimedOut` otherwise.
    fn line(&mut self, timeout: Option<Duration>) -> io::Result<Option<String>> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=at).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..at]).into_owned()));
            }
            // A zero timeout means "for ever" to the socket; half a millisecond polls.
            let left = end.map(|end| end.saturating_duration_since(Instant::now()).max(Duration::from_micros(500)));
            self.stream.set_read_timeout(left)?;
            let mut bytes = [0; 512];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(read) => self.pending.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if end.is_some_and(|end| Instant::now() >= end) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn raw_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The isolation that the environment forces.
pub(crate) fn forced_isolation(pod: &str) -> Result<Option<Isolation>, PodError> {
    let Some(text) = std::env::var_os(ISOLATION_ENV).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let parsed = text.to_string_lossy().parse();
    parsed
        .map(Some)
        .map_err(|reason| PodError::Invalid { pod: pod.to_owned(), reason: format!("{ISOLATION_ENV}: {reason}") })
}

/// Finds the helper: the environment, then beside the running program, then one up (tests live in `deps`).
fn helper() -> Result<PathBuf, PodError> {
    if let Some(path) = std::env::var_os(HELPER_ENV).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(PodError::NoHelper { looked: vec![path] }) };
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let looked: Vec<PathBuf> = exe.ancestors().skip(1).take(2).map(|dir| dir.join("podshm-pod")).collect();
    match looked.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(PodError::NoHelper { looked }),
    }
}

/// An absolute path for a program, through PATH when it has no slash.
pub(crate) fn program_path(pod: &str, program: &OsStr) -> Result<PathBuf, PodError> {
    let missing = || PodError::NoProgram { pod: pod.to_owned(), program: program.to_string_lossy().into_owned() };
    if program.as_encoded_bytes().contains(&b'/') {
        // Not canonical: busybox and its like look at the name by which they were called.
        let path = std::path::absolute(program).map_err(|_| missing())?;
        return if path.exists() { Ok(path) } else { Err(missing()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| is_program(path)).ok_or_else(missing)
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
