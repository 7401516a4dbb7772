//! A client pod: one process after another in it, each with a number and a log of its own.

use crate::entry::{Entry, now};
use crate::node::{PATIENCE, Place, program, text};
use crate::verdict::{Judge, Leaving};
use anyhow::Context;
use podshm_testkit::{Pod, PodProcess};
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

/// A client's memory limit. The logs are in memory, and so charged to who writes them: some 60 MiB in ten minutes.
const LIMIT: u64 = 256 << 20;

struct Running {
    process: PodProcess,
    has_joined: bool,
    is_squeezed: bool,
}

struct Past {
    sender: u32,
    log: PathBuf,
    leaving: Leaving,
}

/// A client pod.
pub struct ClientPod {
    number: u32,
    pod: Pod,
    pace: Duration,
    running: Option<Running>,
    /// The last is the one that runs.
    all: Vec<Past>,
    squeezed: u64,
}

impl ClientPod {
    /// Pod `number`, with nobody in it. `pace` is how long its threads rest between two rounds.
    pub fn new(place: &Place, number: u32, pace: Duration) -> anyhow::Result<ClientPod> {
        let pod = place.pod(&format!("client-{number}"), 20_001 + number, LIMIT)?;
        Ok(ClientPod { number, pod, pace, running: None, all: Vec::new(), squeezed: 0 })
    }

    /// Starts the next process in it.
    pub fn next(&mut self, place: &Place) -> anyhow::Result<()> {
        let sender = self.number << 16 | self.all.len() as u32;
        let log = place.log(&format!("client-{sender:x}"));
        let arguments = [
            "client".to_owned(),
            text(&log),
            sender.to_string(),
            text(&place.routes()),
            self.pace.as_micros().to_string(),
        ];
        let process = self.pod.exec(text(&program("podshm-chaos")?), &arguments)?;
        self.all.push(Past { sender, log, leaving: Leaving::Left });
        self.running = Some(Running { process, has_joined: false, is_squeezed: false });
        Ok(())
    }

    /// Whether it has joined.
    pub fn has_joined(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        running.has_joined |= running.process.stdout().ready().iter().any(|line| line == "joined");
        running.has_joined && !running.is_squeezed
    }

    /// Says how it ended, where it did by itself.
    pub fn has_ended(&mut self) -> anyhow::Result<Option<String>> {
        let Some(running) = self.running.as_mut().filter(|running| running.process.has_exited()) else {
            return Ok(None);
        };
        let status = running.process.wait()?;
        Ok(Some(format!("client {} ended by itself: {status}", self.number)))
    }

    /// A signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            let _ = running.process.signal(signal);
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut running) = self.running.take() {
            self.died(now());
            let _ = running.process.kill9();
            running.process.wait()?;
        }
        Ok(())
    }

    /// Lets it run into its memory limit. It does not end at once: see [`ClientPod::take_squeezed`].
    pub fn squeeze(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.process.signal(Signal::USR1);
            running.is_squeezed = true;
            self.squeezed += 1;
        }
    }

    /// Whether it has run into its memory limit, and the kernel has killed it; then nobody is in the pod.
    pub fn take_squeezed(&mut self) -> anyhow::Result<bool> {
        let squeezed = self.running.take_if(|running| running.is_squeezed && running.process.has_exited());
        let Some(mut running) = squeezed else { return Ok(false) };
        // It may have worked on until the kernel killed it.
        self.died(now());
        let status = running.process.wait()?;
        anyhow::ensure!(status.signal() == Some(Signal::KILL.as_raw()), "client {} leaked: {status}", self.number);
        Ok(true)
    }

    fn died(&mut self, at: u64) {
        if let Some(past) = self.all.last_mut() {
            past.leaving = Leaving::Died(at);
        }
    }

    /// Asks it to leave in order, and waits until it has.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.process.wait_within(PATIENCE)?.with_context(|| format!("client {} does not leave", self.number))?;
        Ok(())
    }

    /// Processes that were told to leak, and processes that the kernel has killed in their pod for memory.
    pub fn squeezed(&self) -> (u64, u64) {
        (self.squeezed, self.pod.oom_kills().unwrap_or(self.squeezed))
    }

    /// How many processes there were.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Tells the judge what each of its processes wrote down.
    pub fn tell(&self, judge: &mut Judge) -> anyhow::Result<()> {
        for past in &self.all {
            let mut failure = None;
            let entries = crate::entry::read(&past.log)
                .map_while(|result: std::io::Result<Entry>| result.map_err(|error| failure = Some(error)).ok());
            judge.client(past.sender, self.number, past.leaving, entries);
            if let Some(error) = failure {
                return Err(error).with_context(|| format!("reading {}", past.log.display()));
            }
        }
        Ok(())
    }
}
