//! More processes than the peer: this program again, with a task of a row. It says what it found in lines and ends when its
//! standard input does.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A started task; killed on drop if it hasn't ended.
#[derive(Debug)]
pub struct Task {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Task {
    /// Starts this program to do `row`'s task, on the core of the caller.
    pub fn start(row: &str, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .args(["task", "--row", row, "--"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a process for a task")?;
        let lines = BufReader::new(child.stdout.take().context("the task's standard output")?);
        Ok(Self { child, lines })
    }

    /// The next line that it says.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the process of a task ended without its answer");
        Ok(line.trim_end().to_owned())
    }

    /// Lets it end and waits for it.
    pub fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the process of a task failed: {status}");
        }
        Ok(())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// For the task: says a line.
pub fn say(line: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("whoever started this task is gone")
}

/// For the task: waits until whoever started it has had enough.
pub fn until_told() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
