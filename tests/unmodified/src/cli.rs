//! Domains by the `podshm` command, as on a plain machine.

use crate::PATIENCE;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Instant;

/// The command, beside the tests.
pub fn podshm() -> PathBuf {
    let own = std::env::current_exe().expect("this test's path");
    let path = own.parent().and_then(Path::parent).expect("target/debug").join("podshm");
    assert!(path.exists(), "no {}: cargo build -p podshm-cli", path.display());
    path
}

/// A root of its own with domains in it; ended when dropped.
#[derive(Debug)]
pub struct Machine {
    root: PathBuf,
    daemons: Vec<(String, Child)>,
}

impl Machine {
    /// Of this name.
    pub fn new(name: &str) -> Self {
        let root = PathBuf::from(format!("/tmp/podshm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a root");
        Machine { root, daemons: Vec::new() }
    }

    /// A command of podshm for this root.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(podshm());
        command.arg(verb).arg("--root").arg(&self.root).env_remove("LD_PRELOAD");
        command
    }

    /// Starts a domain's daemon, in preload mode.
    pub fn serve(&mut self, domain: &str, options: &[&str]) {
        self.serve_in("preload", domain, options);
    }

    /// Starts a domain's daemon.
    pub fn serve_in(&mut self, mode: &str, domain: &str, options: &[&str]) {
        let mut command = self.command("domain");
        command.args(["--domain", domain, "--mode", mode]).args(options);
        self.serve_by(command, domain);
    }

    /// Starts a domain's daemon by a command.
    pub fn serve_by(&mut self, mut command: Command, domain: &str) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path(domain)).expect("a log");
        command.env("PODSHM_LOG", "info").env("NO_COLOR", "1").stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("podshm domain");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        assert!(line.starts_with("ready"), "{line}");
        self.daemons.push((domain.to_owned(), child));
    }

    fn log_path(&self, domain: &str) -> PathBuf {
        self.path(&format!("{domain}.log"))
    }

    /// What a domain's daemons have logged.
    pub fn log(&self, domain: &str) -> String {
        std::fs::read_to_string(self.log_path(domain)).expect("a log")
    }

    /// Pid of a domain's daemon.
    pub fn pid(&self, domain: &str) -> u32 {
        self.daemons.iter().find(|(name, _)| name == domain).expect("it runs").1.id()
    }

    /// kill -9 of a domain's daemon.
    pub fn kill9(&mut self, domain: &str) {
        let index = self.daemons.iter().position(|(name, _)| name == domain).expect("it runs");
        let (_, mut child) = self.daemons.remove(index);
        child.kill().and_then(|()| child.wait()).expect("it is killed");
    }

    /// Ends a domain's daemon in order, and starts the next without waiting for that.
    pub fn upgrade(&mut self, domain: &str) {
        let index = self.daemons.iter().position(|(name, _)| name == domain).expect("it runs");
        let (_, mut old) = self.daemons.remove(index);
        let pid = rustix::process::Pid::from_child(&old);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is told");
        self.serve(domain, &[]);
        assert!(old.wait().expect("it ends").success());
    }

    /// A file of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A program as a member.
    pub fn member(&self, domain: &str, options: &[&str], program: &Path) -> Command {
        let mut command = self.command("run");
        command.args(["--domain", domain]).args(options).arg("--").arg(program);
        command
    }

    /// What `podshm ls` says of a domain.
    pub fn ls(&self, domain: &str) -> String {
        crate::programs::run(self.command("ls").args(["--domain", domain]))
    }

    /// What `podshm events` says of a domain.
    pub fn events(&self, domain: &str) -> String {
        crate::programs::run(self.command("events").args(["--domain", domain]))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.daemons.iter().for_each(|(name, _)| eprintln!("log of {name}:\n{}", self.log(name)));
        }
        for (_, child) in &mut self.daemons {
            let _ = child.kill().and_then(|()| child.wait());
        }
        for domain in std::fs::read_dir(self.root.join("domains")).into_iter().flatten().flatten() {
            let name = domain.file_name();
            let _ = self.command("rm").arg("--force").arg("--domain").arg(name).status();
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// stdout of a command, whether it succeeded or not; stderr after it.
pub fn said(command: &mut Command) -> String {
    let Output { stdout, stderr, .. } = command.output().expect("it runs");
    format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
}

/// A program that is talked to line by line.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Talk {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("piped")));
        Talk { child, stdin, stdout }
    }

    /// Pid on this machine of a member's program: the child of its first process, which is the child of `podshm run`.
    pub fn member_pid(&self) -> u32 {
        let child = |pid: u32| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            std::fs::read_to_string(path).expect("children").trim().parse().expect("one child")
        };
        child(child(self.child.id()))
    }

    /// Its next line.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// One byte to it, and the line that it answers.
    pub fn ask(&mut self) -> String {
        self.stdin.as_mut().expect("open").write_all(b"?").expect("it listens");
        self.line()
    }

    /// Closes its input and waits for its end.
    pub fn end(mut self) -> String {
        self.stdin = None;
        let mut rest = String::new();
        let _ = self.stdout.read_to_string(&mut rest);
        let _ = self.child.wait();
        rest
    }

    /// kill -9 of `podshm run`, and with it of the member.
    pub fn kill9(mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("it is killed");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Waits until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
