//! A broker in a process of its own that keeps its state, to be killed and started again on the same directory.

use crate::PATIENCE;
use crate::participant::send;
use podshm::steps::{Plan, VARIABLE};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Room for everything.
pub const ROOMY: u64 = 256 << 20;

/// A broker's place, and the broker while one runs there.
#[derive(Debug)]
pub struct Daemon {
    program: String,
    root: PathBuf,
    /// How long participants may take to come back.
    pub grace: Duration,
    /// The domain's budget.
    pub budget: u64,
    pods: Vec<String>,
    running: Option<Running>,
}

/// A broker that another one was started beside.
#[derive(Debug)]
pub struct Predecessor(Running);

impl Predecessor {
    /// Waits until it has given way and ended.
    pub fn await_giving_way(mut self) {
        let mut line = String::new();
        self.0.stdout.read_line(&mut line).expect("a line");
        assert_eq!(line, "gave way\n");
        assert!(self.0.child.wait().expect("its end").success());
    }

    /// Waits until it has been killed.
    pub fn await_kill(mut self) {
        let status = self.0.child.wait().expect("its end");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        self.0.child.try_wait().expect("its status").is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Daemon {
    /// A directory without a broker. `program` is `podshm-test-broker`.
    pub fn place(program: &str) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podshm-daemon-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("a directory");
        let (program, grace) = (program.to_owned(), Duration::from_secs(15));
        Daemon { program, root, grace, budget: ROOMY, pods: Vec::new(), running: None }
    }

    /// [`Daemon::place`] with a broker.
    pub fn start(program: &str) -> Daemon {
        let mut daemon = Daemon::place(program);
        daemon.restart();
        daemon
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it keeps its state.
    pub fn ledger(&self) -> PathBuf {
        self.root.join(".broker/ledger")
    }

    /// A pod's socket directory, also of the brokers to come.
    pub fn pod(&mut self, name: &str) -> PathBuf {
        if !self.pods.iter().any(|pod| pod == name) {
            self.pods.push(name.to_owned());
            if self.running.is_some() {
                assert_eq!(self.ask(&format!("pod {name}")), "added");
            }
        }
        self.root.join(name)
    }

    /// Starts a broker, which is to come up.
    pub fn restart(&mut self) {
        let first = self.start_with(None);
        assert_eq!(first, "ready");
    }

    /// Starts a broker that kills or stops itself as `plan` says; returns its first line, empty where it died before.
    pub fn start_with(&mut self, plan: Option<Plan>) -> String {
        assert!(self.running.is_none(), "one is running");
        let mut command = Command::new(&self.program);
        command.arg(&self.root).arg(self.grace.as_millis().to_string()).arg(self.budget.to_string()).args(&self.pods);
        if let Some(plan) = plan {
            command.env(VARIABLE, plan.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a broker");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        self.running = Some(Running { child, stdin, stdout });
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.running.as_mut().expect("a broker").stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.running.as_mut().expect("a broker").stdin, "{what}").expect("the broker listens");
        self.line()
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| running.child.try_wait().expect("its status").is_none())
    }

    /// Whether it ends within this time.
    pub fn dies_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while self.is_alive() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        !self.is_alive()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut running = self.running.take().expect("a broker");
        running.child.kill().expect("a signal");
        running.child.wait().expect("its end");
    }

    /// Its process's number.
    pub fn number(&self) -> u32 {
        self.running.as_ref().expect("a broker").child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        send(&self.running.as_ref().expect("a broker").child, signal);
    }

    /// Waits until it has killed itself at its step.
    pub fn await_death(&mut self) {
        let mut running = self.running.take().expect("a broker");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait().expect("its status") {
                assert_eq!(status.signal(), Some(libc::SIGKILL), "it was to die at its step: {status}");
                return;
            }
            assert!(Instant::now() < until, "it does not come to its step");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts another broker beside the one that runs, which is left to give way; see [`Predecessor`].
    pub fn start_successor(&mut self, plan: Option<Plan>) -> (Predecessor, String) {
        let old = Predecessor(self.running.take().expect("a broker"));
        let first = self.start_with(plan);
        (old, first)
    }

    /// Waits until it has ended because it could not start.
    pub fn await_failure(&mut self) {
        let mut running = self.running.take().expect("a broker");
        assert_eq!(running.child.wait().expect("its end").code(), Some(4));
    }

    /// Ends it in order.
    pub fn end(&mut self) {
        assert_eq!(self.ask("end"), "ended");
        let mut running = self.running.take().expect("a broker");
        assert!(running.child.wait().expect("its end").success());
    }

    /// Domain `d`, as `DomainStats` shows itself.
    pub fn stats(&mut self) -> Stats {
        let line = self.ask("stats");
        Stats(line.strip_prefix("stats ").unwrap_or_else(|| panic!("{line:?}")).to_owned())
    }

    /// Waits until the domain's numbers are as `good` says.
    pub fn settle(&mut self, what: &str, good: impl Fn(&Stats) -> bool) -> Stats {
        let until = Instant::now() + PATIENCE * 2;
        loop {
            let stats = self.stats();
            if good(&stats) {
                return stats;
            }
            assert!(Instant::now() < until, "{what} did not happen: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A domain's numbers from another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats(pub String);

impl Stats {
    /// A number by its field's name.
    pub fn number(&self, field: &str) -> u64 {
        let at = self.0.rfind(&format!(" {field}: ")).unwrap_or_else(|| panic!("no {field} in {}", self.0));
        let rest = &self.0[at + field.len() + 3..];
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().unwrap_or_else(|_| panic!("{field} is no number in {}", self.0))
    }

    /// Whether an agent serves.
    pub fn has_agent(&self) -> bool {
        self.0.contains(" agent: true")
    }

    /// Clients in the books.
    pub fn clients(&self) -> usize {
        self.0.matches("ClientStats {").count()
    }

    /// Clients that are connected.
    pub fn connected(&self) -> usize {
        self.0.matches("connected: true").count()
    }

    /// What a restart must not change, to the byte: clients and their members, epoch, layout, budget, bytes, regions, counters. How long
    /// somebody has been away or waiting is another number each time.
    pub fn books(&self) -> String {
        let left_out = ["region_bytes_peak", "inherited_bytes", "expected", "left_for", "successor_for"];
        let fields =
            self.0.split(", ").filter(|field| !left_out.iter().any(|out| field.starts_with(&format!("{out}: "))));
        fields.collect::<Vec<_>>().join(", ").trim_end_matches([' ', '}']).to_owned()
    }
}
