//! Programs that tests start and talk to line by line; those in C are compiled with the system's `cc` against the fork shim.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Compiles `tests/c/NAME.c` into `directory`.
pub fn compile(name: &str, directory: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    // Cargo puts the shim beside the tests that depend on it.
    let beside = std::env::current_exe().expect("this test's path").parent().expect("its directory").to_owned();
    assert!(beside.join("libpodshm_fork_shim.so").exists(), "no libpodshm_fork_shim.so in {}", beside.display());
    let program = directory.join(name);
    let status = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
        .arg(&program)
        .arg(sources.join(format!("{name}.c")))
        .arg("-L")
        .arg(&beside)
        .arg("-lpodshm_fork_shim")
        .arg(format!("-Wl,-rpath,{}", beside.display()))
        .status()
        .expect("cc; `make setup` installs it");
    assert!(status.success(), "cc: {status}");
    program
}

/// A program whose lines are read as they come. Killed when dropped.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    /// Kept apart: waiting for a child closes its input, and its children read that too.
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    /// Starts it.
    pub fn start(mut command: Command) -> Talk {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let out = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).all(|l| sender.send(l).is_ok()));
        let stdin = child.stdin.take().expect("piped");
        Talk { child, stdin, lines }
    }

    /// Its next line.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(crate::PATIENCE * 3) {
            Ok(line) => line,
            Err(error) => {
                std::thread::sleep(std::time::Duration::from_millis(300)); // for it to be reaped
                panic!("the program says nothing: {error}; it is {:?}", self.child.try_wait())
            }
        }
    }

    /// The rest of its next line that starts with `word`; others are passed over.
    pub fn find(&mut self, word: &str) -> String {
        loop {
            if let Some(rest) = self.line().strip_prefix(word) {
                return rest.to_owned();
            }
        }
    }

    /// Its next line, without `word` and a blank at its start.
    pub fn word(&mut self, word: &str) -> String {
        let line = self.line();
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("expected {word:?}, got {line:?}"));
        rest.trim_start().to_owned()
    }

    /// The number after `word` in its next line.
    pub fn number(&mut self, word: &str) -> u64 {
        self.word(word).parse().expect("a number")
    }

    /// Gives it a line, or all processes that share its input.
    pub fn tell(&mut self) {
        self.stdin.write_all(b"go\n").expect("the program listens");
    }

    /// Kills it; children of its that share its input and output live on.
    pub fn kill(&mut self) {
        self.child.kill().expect("the program runs");
        self.child.wait().expect("its end");
    }

    /// Waits for its end, which must be a good one.
    pub fn end(&mut self) {
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "the program ends with {status}");
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
