//! Sets of namespaces, and what runs in one: its first process starts programs, starts them again when they end, and reaps.
//!
//! ```text
//!  podshm-cluster set a        makes the namespaces, writes the pid of the next, waits for it
//!  └─ podshm-cluster first a   pid 1 in there: mounts, then this loop
//!     ├─ containerd
//!     └─ kubelet
//! ```

use crate::place::Place;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::thread::UnshareFlags;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program that ended stays down, as a service manager would have it.
const PAUSE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(20);

/// A program of a set.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name: of its log, and for `restart`.
    pub name: String,
    /// Its path.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// PATH as it sees it.
    pub search_path: String,
}

struct Running {
    program: Program,
    pid: Option<Pid>,
    /// Not before; never, while it is stopped by request.
    start_at: Option<Instant>,
}

/// Makes the namespaces of a set and the first process in them; returns when that has ended.
pub fn set(place: &Place, name: &str) -> anyhow::Result<()> {
    rustix::process::setsid().context("leaving the session of whoever started this")?;
    let flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // Deprecated for UnshareFlags::FILES, which is not among these.
    #[allow(deprecated)]
    rustix::thread::unshare(flags).context("making namespaces (needs root)")?;
    let mut first = Command::new(std::env::current_exe()?).args(["first", name]).spawn()?;
    if let Err(error) = note(place, name, first.id()) {
        first.kill()?;
        return Err(error);
    }
    first.wait()?;
    Ok(())
}

/// Writes down which process a name is for, with when it started: numbers are used again.
pub fn note(place: &Place, name: &str, pid: u32) -> anyhow::Result<()> {
    let file = place.pid_file(name);
    let next = file.with_extension("next");
    fs::write(&next, format!("{pid} {}", started(pid).context("a process that has just been started")?))?;
    Ok(fs::rename(&next, &file)?)
}

/// The name of the process that makes a set's namespaces and waits for its first process.
pub fn outer(set: &str) -> String {
    format!("{set}-outer")
}

/// Waits until a set has its network: programs that come before their addresses would end. Before any mount, too: the process that
/// has made the namespaces shares them, and looks this one up in the /proc of outside.
pub fn wait_for_network(place: &Place, set: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !place.network_file(set).exists() {
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "nobody has given {set} its network");
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// The pid of a set's first process, or of its outer one, if it is alive: the same process, not another with its number.
pub fn alive(place: &Place, set: &str) -> Option<u32> {
    let text = fs::read_to_string(place.pid_file(set)).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let (pid, start): (u32, u64) = (pid.parse().ok()?, start.parse().ok()?);
    (started(pid)? == start).then_some(pid)
}

/// When a process started, in ticks since boot.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let state = rest.chars().next()?;
    (state != 'Z').then(|| rest.split(' ').nth(19)?.parse().ok())?
}

/// Runs programs for as long as this process lives; requests come over a socket.
pub fn run(place: &Place, set: &str, programs: Vec<Program>) -> anyhow::Result<()> {
    let socket = socket(place, set);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening at {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    let now = Instant::now();
    let mut all: Vec<Running> =
        programs.into_iter().map(|program| Running { program, pid: None, start_at: Some(now) }).collect();
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(ended) = all.iter_mut().find(|running| running.pid == Some(pid)) {
                println!("{}: ended with {status:?}", ended.program.name);
                ended.pid = None;
                ended.start_at = ended.start_at.map(|_| Instant::now() + PAUSE);
            }
        }
        for running in &mut all {
            if running.pid.is_none() && running.start_at.is_some_and(|at| at <= Instant::now()) {
                running.start(place, set)?;
            }
        }
        if let Ok((stream, _)) = listener.accept() {
            let answer = match request(&stream, &mut all) {
                Ok(()) => "done\n".to_owned(),
                Err(error) => format!("{error:#}\n"),
            };
            let _ = (&stream).write_all(answer.as_bytes());
        }
        std::thread::sleep(TICK);
    }
}

/// Asks a set: `restart NAME` (killed, started again), `stop NAME`, `start NAME`.
pub fn ask(place: &Place, set: &str, request: &str) -> anyhow::Result<()> {
    let socket = socket(place, set);
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", socket.display()))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim() {
        "done" => Ok(()),
        other => bail!("{set}: {request}: {other}"),
    }
}

fn socket(place: &Place, set: &str) -> PathBuf {
    place.path(&format!("{set}.sock"))
}

fn request(stream: &UnixStream, all: &mut [Running]) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let (verb, name) = line.trim().split_once(' ').context("expected VERB PROGRAM")?;
    let names: Vec<String> = all.iter().map(|running| running.program.name.clone()).collect();
    let running = all.iter_mut().find(|running| running.program.name == name);
    let running = running.with_context(|| format!("no program {name:?}; there are {names:?}"))?;
    let starts = match verb {
        "restart" | "start" => Some(Instant::now()),
        "stop" => None,
        other => bail!("expected restart, stop or start, found {other:?}"),
    };
    running.start_at = starts;
    if verb != "start"
        && let Some(pid) = running.pid.take()
    {
        kill_process(pid, Signal::KILL)?;
    }
    Ok(())
}

impl Running {
    fn start(&mut self, place: &Place, set: &str) -> anyhow::Result<()> {
        let path = place.log(&format!("{set}-{}", self.program.name));
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        let child = Command::new(&self.program.path)
            .args(&self.program.arguments)
            .env("PATH", &self.program.search_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.path.display()))?;
        self.pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(())
    }
}
