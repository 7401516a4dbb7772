//! The agents of one domain, one after another.

use crate::entry::{Entry, now};
use crate::node::{BrokerPod, Place, program, text};
use crate::roles::agent::{BUG, LAYOUTS, SUPERSEDED};
use crate::schedule::Domain;
use crate::verdict::{End, Judge};
use anyhow::Context;
use podshm_testkit::{Pod, PodProcess};
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

/// An agent's memory limit. The logs are in memory, and so charged to who writes them: some 300 MiB in ten minutes.
const LIMIT: u64 = 768 << 20;

/// What an agent is started with beside the usual.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    /// It speaks memory layout 1 only.
    pub is_old: bool,
    /// It is killed at a named step.
    pub step: Option<String>,
}

struct Running {
    process: PodProcess,
    generation: usize,
    /// It is to die at a named step.
    is_armed: bool,
    /// It was told to leak.
    is_squeezed: bool,
    /// It was asked to end, with no successor there.
    is_terminated: bool,
    /// When it was started.
    started: u64,
}

/// An agent that has ended without being killed by this harness.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Which.
    pub generation: usize,
    /// It was to die at a named step.
    pub is_armed: bool,
    /// It ran into its memory limit, and was told to.
    pub is_squeezed: bool,
    /// It was asked to end, and did in order.
    pub is_terminated: bool,
    /// How.
    pub status: ExitStatus,
}

impl Ended {
    fn of(running: &Running, status: ExitStatus) -> Ended {
        let Running { generation, is_armed, is_squeezed, is_terminated, .. } = *running;
        let is_terminated = is_terminated && status.success();
        let is_squeezed = is_squeezed && status.signal() == Some(Signal::KILL.as_raw());
        Ended { generation, is_armed, is_squeezed, is_terminated, status }
    }

    /// It died of what it was told to die of.
    pub fn is_at_step(&self) -> bool {
        self.is_armed && !self.is_squeezed && self.status.signal() == Some(Signal::KILL.as_raw())
    }

    /// In order, or because another one serves. The route agent has no status of its own for that.
    fn is_well(&self, domain: Domain) -> bool {
        let superseded = if domain == Domain::Work { SUPERSEDED.into() } else { 1 };
        self.status.success() || self.status.code() == Some(superseded)
    }
}

struct Generation {
    log: PathBuf,
    end: End,
    /// It hands over to a successor while everybody works.
    hands_over: bool,
}

/// All agents of a domain so far.
pub struct Agents {
    /// Of which.
    pub domain: Domain,
    pod: Pod,
    bug: Option<String>,
    generations: Vec<Generation>,
    /// The one that serves or is about to.
    current: Option<Running>,
    /// Those that were replaced and have not ended yet.
    leaving: Vec<Running>,
    /// The epoch above which the current one serves.
    above: u64,
    squeezed: u64,
}

impl Agents {
    /// A pod for them.
    pub fn new(place: &Place, domain: Domain, bug: Option<String>) -> anyhow::Result<Agents> {
        let pod = place.pod(&format!("agent-{}", domain.name()), 10_001 + domain as u32, LIMIT)?;
        Ok(Agents {
            domain,
            pod,
            bug,
            generations: Vec::new(),
            current: None,
            leaving: Vec::new(),
            above: 0,
            squeezed: 0,
        })
    }

    /// Starts the next one; the one before, if it lives, is to leave.
    pub fn next(&mut self, place: &Place, broker: &BrokerPod, variant: &Variant) -> anyhow::Result<()> {
        let generation = self.generations.len();
        let log = place.log(&format!("{}-{generation}", self.domain.name()));
        let mut environment = Vec::new();
        if variant.is_old {
            environment.push((LAYOUTS, "1".to_owned()));
        }
        if let Some(step) = &variant.step {
            environment.push((podshm::steps::VARIABLE, step.clone()));
        }
        if let Some(bug) = &self.bug {
            environment.push((BUG, bug.clone()));
        }
        let (name, arguments) = match self.domain {
            Domain::Work => ("podshm-chaos", vec!["agent".to_owned(), text(&log), (generation + 1).to_string()]),
            Domain::Routes => (
                "route-agent",
                vec![
                    "--socket-dir".into(),
                    format!("{}/{}", podshm_testkit::SOCKET_DIR, self.domain.name()),
                    "--endpointslices".into(),
                    text(&place.slices()),
                    "--agent-version".into(),
                    format!("v{generation}"),
                    "--log-delivered".into(),
                    text(&log),
                ],
            ),
        };
        self.above = broker.books()[self.domain as usize].epoch;
        let started = now();
        let process = self.pod.exec_with_env(text(&program(name)?), &arguments, environment)?;
        self.generations.push(Generation { log, end: End::Died, hands_over: false });
        self.leaving.extend(self.current.replace(Running {
            process,
            generation,
            is_armed: variant.step.is_some(),
            is_squeezed: false,
            is_terminated: false,
            started,
        }));
        Ok(())
    }

    /// Whether the current one serves, by the broker's books.
    pub fn serves(&self, broker: &BrokerPod) -> bool {
        let (at, books) = broker.books_at();
        let books = books[self.domain as usize];
        // What the broker wrote down before is of a predecessor.
        let is_there = |current: &Running| !current.is_squeezed && !current.is_terminated && at > current.started;
        self.current.as_ref().is_some_and(is_there) && books.agent == 1 && books.epoch > self.above
    }

    /// How the current one has ended by itself, if it has: then there is none until the next is started.
    pub fn take_ended(&mut self) -> anyhow::Result<Option<Ended>> {
        let Some(mut current) = self.current.take_if(|current| current.process.has_exited()) else { return Ok(None) };
        let status = current.process.wait()?;
        let ended = Ended::of(&current, status);
        self.generations[current.generation].end = if status.success() { End::Closed } else { End::Died };
        Ok(Some(ended))
    }

    /// The current generation's number.
    pub fn generation(&self) -> usize {
        self.current.as_ref().map_or(self.generations.len(), |running| running.generation)
    }

    /// The current one is about to be replaced in order, with work in flight.
    pub fn is_to_hand_over(&mut self) {
        if let Some(current) = &self.current {
            self.generations[current.generation].hands_over = true;
        }
    }

    /// A signal to the current one; it may have ended meanwhile.
    pub fn signal(&self, signal: Signal) {
        if let Some(current) = &self.current {
            let _ = current.process.signal(signal);
        }
    }

    /// A signal to this generation, whether it is the current one or leaving.
    pub fn signal_generation(&self, generation: usize, signal: Signal) {
        for running in self.leaving.iter().chain(&self.current).filter(|running| running.generation == generation) {
            let _ = running.process.signal(signal);
        }
    }

    /// Kills the current one.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut current) = self.current.take() {
            let _ = current.process.kill9();
            let status = current.process.wait()?;
            self.generations[current.generation].end = if status.success() { End::Closed } else { End::Died };
        }
        Ok(())
    }

    /// Asks the current one to end. It does not at once: see [`Agents::take_ended`].
    pub fn terminate(&mut self) {
        if let Some(current) = &mut self.current {
            let _ = current.process.signal(Signal::TERM);
            current.is_terminated = true;
        }
    }

    /// Lets the current one run into its memory limit. It does not end at once: see [`Ended::is_squeezed`].
    pub fn squeeze(&mut self) {
        if let Some(current) = &mut self.current {
            let _ = current.process.signal(Signal::USR1);
            current.is_squeezed = true;
            // One that is to die at a named step may do that first.
            self.squeezed += u64::from(!current.is_armed);
        }
    }

    /// Those of the leaving ones that have ended by now, where they were to die or ended as they must not.
    pub fn reap(&mut self) -> anyhow::Result<Vec<Ended>> {
        let mut odd = Vec::new();
        for mut running in self.leaving.extract_if(.., |running| running.process.has_exited()) {
            let status = running.process.wait()?;
            let ended = Ended::of(&running, status);
            self.generations[running.generation].end = if status.success() { End::Closed } else { End::Died };
            odd.extend((!ended.is_well(self.domain)).then_some(ended));
        }
        Ok(odd)
    }

    /// Whether one that was replaced has not ended yet.
    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Processes that were told to leak and had no other reason to die, and processes that the kernel has killed in their pod for memory.
    pub fn squeezed(&self) -> (u64, u64) {
        (self.squeezed, self.pod.oom_kills().unwrap_or(self.squeezed))
    }

    /// The current one's log.
    pub fn log(&self) -> PathBuf {
        self.generations.last().map_or_else(PathBuf::new, |generation| generation.log.clone())
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.generations.len()
    }

    /// Tells the judge what each of them wrote down.
    pub fn tell(&self, judge: &mut Judge) -> anyhow::Result<()> {
        for generation in &self.generations {
            let mut failure = None;
            let mut stop_at = |result: std::io::Result<Entry>| result.map_err(|e| failure = Some(e)).ok();
            match self.domain {
                Domain::Work => {
                    let entries = crate::entry::read(&generation.log).map_while(&mut stop_at);
                    judge.generation(self.domain, generation.end, generation.hands_over, entries);
                }
                Domain::Routes => {
                    let file = std::fs::File::open(&generation.log).ok();
                    let entries = file.into_iter().flat_map(route_agent::delivered::read);
                    let entries = entries.map(|entry| entry.map(Entry::of_route_agent)).map_while(&mut stop_at);
                    judge.generation(self.domain, generation.end, generation.hands_over, entries);
                }
            }
            if let Some(error) = failure {
                return Err(error).with_context(|| format!("reading {}", generation.log.display()));
            }
        }
        Ok(())
    }
}

impl Entry {
    /// A line of the route agent's own log. A number that is missing had a wrong checksum.
    fn of_route_agent(delivered: route_agent::delivered::Delivered) -> Entry {
        use crate::entry::{MARKED, What};
        let flags = if delivered.maybe_seen { MARKED } else { 0 };
        let (what, sender, number) = match delivered.trailer {
            Some(trailer) => (What::Delivered, trailer.sender, trailer.seq),
            None => (What::Corrupt, 0, 0),
        };
        Entry { what, flags, aux: 0, sender, number, time: 0, extra: delivered.position }
    }
}
