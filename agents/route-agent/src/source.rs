//! Where slices come from: one upstream connection, whatever the number of pods.
//!
//! [`FileSource`] reads what `kubectl` printed, `KubernetesSource` watches a live API server; nothing else knows which it is.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use podshm::AgentWaker;

use crate::slices::{List, SliceError, WatchEvent, WatchLines, parse_list};

/// What a source has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceEvent {
    /// A list: for [`Store::replace`](crate::Store::replace). Its bad items are in it.
    Snapshot(List),
    /// A change: for [`Store::apply`](crate::Store::apply).
    Event(WatchEvent),
    /// Something that can't be used; the source goes on.
    Bad(SliceError),
    /// What is upstream can't be asked now; the source goes on trying. What is known stays in use.
    Away {
        /// Why.
        found: String,
    },
    /// There will be nothing more. What is known stays in use.
    End,
}

/// A source of slices that is asked, and never blocks for long. Time is monotonic nanoseconds.
pub trait Source {
    /// The next event if there is one by now.
    fn poll(&mut self, now_ns: u64) -> Option<SourceEvent>;

    /// When to ask again: `None` if at once, or if nothing more comes.
    fn next_due_ns(&self) -> Option<u64>;

    /// How often a list was begun upstream: once, unless it broke off and could not be gone on from.
    fn connections(&self) -> u64;

    /// Whether what it last said is still so, as far as it knows: not while what is upstream can't be asked.
    fn is_current(&self) -> bool {
        true
    }

    /// What to wake the agent by when there is something to poll for; without it, it is asked every 20 ms.
    fn wake_by(&mut self, _: AgentWaker) {}
}

/// How events of a file are spread in time, from the first poll on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as they are asked for.
    Unpaced,
    /// One every so many nanoseconds.
    Every(u64),
    /// All of them evenly over so many nanoseconds.
    Over(u64),
}

/// A list, and events after it, out of files.
#[derive(Debug)]
pub struct FileSource {
    list: PathBuf,
    events: Option<PathBuf>,
    pace: Pace,
    state: State,
    connections: u64,
}

#[derive(Debug)]
enum State {
    Start,
    Events { lines: Box<WatchLines<BufReader<File>>>, started_ns: u64, step_ns: u64, sent: u64 },
    Ended,
}

impl FileSource {
    /// A source that reads `list` once and then replays `events` at a pace.
    pub fn new(list: impl Into<PathBuf>, events: Option<PathBuf>, pace: Pace) -> Self {
        Self { list: list.into(), events, pace, state: State::Start, connections: 0 }
    }

    fn start(&mut self, now_ns: u64) -> SourceEvent {
        self.connections += 1;
        self.state = State::Ended;
        if let Some(path) = &self.events {
            match open(path) {
                Ok(file) => {
                    let step_ns = match self.pace {
                        Pace::Unpaced => 0,
                        Pace::Every(ns) => ns,
                        Pace::Over(ns) => ns / count_lines(path).max(1),
                    };
                    let lines = Box::new(WatchLines::new(BufReader::new(file), path.display().to_string()));
                    self.state = State::Events { lines, started_ns: now_ns, step_ns, sent: 0 };
                }
                // The list is still worth having; say so first, then read it.
                Err(error) => {
                    self.events = None;
                    self.state = State::Start;
                    self.connections = 0;
                    return SourceEvent::Bad(error);
                }
            }
        }
        match open(&self.list) {
            Ok(file) => SourceEvent::Snapshot(parse_list(file)),
            Err(error) => SourceEvent::Bad(error),
        }
    }
}

impl Source for FileSource {
    fn poll(&mut self, now_ns: u64) -> Option<SourceEvent> {
        match &mut self.state {
            State::Start => return Some(self.start(now_ns)),
            State::Events { lines, started_ns, step_ns, sent } => {
                if now_ns < due_ns(*started_ns, *step_ns, *sent) {
                    return None;
                }
                *sent += 1;
                match lines.next() {
                    Some(Ok(event)) => return Some(SourceEvent::Event(event)),
                    Some(Err(error)) => return Some(SourceEvent::Bad(error)),
                    None => {}
                }
            }
            State::Ended => {}
        }
        self.state = State::Ended;
        Some(SourceEvent::End)
    }

    fn next_due_ns(&self) -> Option<u64> {
        match &self.state {
            State::Events { started_ns, step_ns, sent, .. } => Some(due_ns(*started_ns, *step_ns, *sent)),
            State::Start | State::Ended => None,
        }
    }

    fn connections(&self) -> u64 {
        self.connections
    }
}

/// When the event after `sent` others is due.
fn due_ns(started_ns: u64, step_ns: u64, sent: u64) -> u64 {
    started_ns.saturating_add(step_ns.saturating_mul(sent.saturating_add(1)))
}

fn open(path: &Path) -> Result<File, SliceError> {
    File::open(path).map_err(|e| SliceError::Input { what: path.display().to_string(), found: e.to_string() })
}

/// How many lines a file has, holding none of them.
fn count_lines(path: &Path) -> u64 {
    use std::io::BufRead;
    let Ok(mut file) = File::open(path).map(BufReader::new) else {
        return 0;
    };
    let mut lines = 0;
    while file.skip_until(b'\n').is_ok_and(|n| n > 0) {
        lines += 1;
    }
    lines
}
