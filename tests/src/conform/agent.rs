//! The agent's half.

use super::{PATIENCE, Participant, answer, bytes, check, in_child, key, number, say};
use podshm::{Agent, Answer, Error, Handler, Progress, Record, Request};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What it does with what comes.
struct Keep {
    how: String,
    /// Bytes that an answer has beyond its request's.
    more: usize,
    /// Records that were handled and that nobody has asked for yet.
    records: Vec<(String, Vec<u8>)>,
    /// A request that comes part by part.
    gathered: Vec<u8>,
    parts: usize,
    control: UnixStream,
}

/// An agent, once it is connected.
pub(super) struct Serving {
    directory: PathBuf,
    agent: Option<Agent>,
    keep: Keep,
    serves: bool,
    closed: bool,
    behind: Vec<u8>,
}

impl Handler for Keep {
    fn record(&mut self, record: Record<'_>) {
        self.records.push((record.service.to_owned(), record.bytes.to_vec()));
    }

    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        if self.how != "parts" {
            return false;
        }
        if offset == 0 {
            self.gathered.clear();
        }
        self.gathered.extend_from_slice(request.bytes);
        self.parts += 1;
        true
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let asked = if request.bytes.is_empty() { &self.gathered[..request.len] } else { request.bytes };
        let mut reversed: Vec<u8> = asked.iter().rev().copied().collect();
        reversed.resize(reversed.len() + self.more, 0);
        match self.how.as_str() {
            "at-once" | "parts" => answer.reply(&reversed),
            "in-place" => answer.reply_with(reversed.len(), move |offset, part| {
                part.copy_from_slice(&reversed[offset..offset + part.len()]);
            }),
            "later" => {
                let later = answer.defer();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    later.reply(reversed);
                });
            }
            how if how.starts_with("late-fail:") => {
                let (later, status) = (answer.defer(), number(&how["late-fail:".len()..]) as u32);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    later.fail(status);
                });
            }
            "nothing" => {}
            "hang" => {
                // In place of whoever reads the next command.
                writeln!(self.control, "ok").expect("the test listens");
                loop {
                    std::thread::park();
                }
            }
            other => answer.fail(number(other.strip_prefix("fail:").expect("a way to answer")) as u32),
        }
    }
}

impl Serving {
    pub(super) fn new(directory: PathBuf, control: UnixStream) -> Self {
        let (how, records, gathered, parts) = ("at-once".into(), Vec::new(), Vec::new(), 0);
        let keep = Keep { how, more: 0, records, gathered, parts, control };
        Serving { directory, agent: None, keep, serves: false, closed: false, behind: Vec::new() }
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("it is connected")
    }

    fn connect(&mut self, services: &[&str]) -> Result<String, Error> {
        let mut builder = Agent::builder();
        for service in services {
            let words: Vec<&str> = service.split(':').collect();
            let [name, kind, first, second] = words[..] else { panic!("{service}") };
            let (first, second) = (number(first), number(second));
            builder = match kind {
                "table" => builder.table(name, first, second),
                "queue" => builder.queue(name, first as u32, second as u32),
                "call" => builder.call(name, first as u32, second as u32),
                _ => builder.idempotent_call(name, first as u32, second as u32),
            };
        }
        self.agent = Some(builder.connect(&self.directory, PATIENCE)?);
        Ok("ok".into())
    }

    fn publish(&mut self, what: &str, words: &[&str]) -> Result<String, Error> {
        let mut table = self.agent().table(words[0])?;
        match (what, &words[1..]) {
            ("put", [name, len, seed]) => table.put(&key(name), &bytes(number(len), number(seed)))?,
            ("remove", [name]) if !table.remove(&key(name)) => return Ok("not found".into()),
            ("remove", _) => {}
            ("put-many", [count, len]) => {
                for n in 0..number(count) {
                    table.put(format!("key-{n}").as_bytes(), &bytes(number(len), n))?;
                }
            }
            (_, changes) => {
                let change = |c: &[&str]| (key(c[0]), Some(bytes(number(c[1]), number(c[2]))));
                table.publish(&changes.chunks(3).map(change).collect::<Vec<_>>())?;
            }
        }
        Ok("ok".into())
    }

    fn poll(&mut self) -> Result<(), Error> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        match agent.poll(&mut self.keep)? {
            Progress::Handled(_) => {}
            Progress::Idle => agent.wait(Duration::from_millis(1))?,
            Progress::CloseAsked => {
                agent.close(self.behind.clone())?;
                (self.serves, self.closed) = (false, true);
            }
        }
        Ok(())
    }

    /// Serves until something is so.
    fn until(&mut self, good: impl Fn(&Self) -> bool) -> bool {
        let until = Instant::now() + PATIENCE;
        while !good(self) {
            if Instant::now() > until || !self.round() {
                return good(self);
            }
        }
        true
    }

    /// Waits for so many more records of a queue, which follow one another.
    fn expect(&mut self, words: &[&str]) -> String {
        let [queue, count, len, seed] = words else { panic!("{words:?}") };
        let (count, len, seed) = (number(count) as usize, number(len), number(seed));
        let of = |this: &Self| this.keep.records.iter().filter(|(name, _)| name == queue).count();
        self.until(|this| of(this) >= count);
        if of(self) < count {
            return format!("{} records", of(self));
        }
        let (mut said, mut taken) = ("ok".to_owned(), 0);
        self.keep.records.retain(|(name, found)| {
            let takes = name == queue && taken < count;
            if takes && *found != bytes(len, seed + taken as u64) {
                said = format!("wrong bytes: {} of {len}", found.len());
            }
            taken += usize::from(takes);
            !takes
        });
        said
    }

    fn inherited(&mut self) -> String {
        match self.agent().inherited_state() {
            None => "not yet".into(),
            Some([]) => "nothing".into(),
            Some(state) => String::from_utf8_lossy(state).into_owned(),
        }
    }
}

impl Participant for Serving {
    fn follow(&mut self, words: &[&str]) -> String {
        let (what, rest) = words.split_first().expect("a command");
        let happened = |good: bool| if good { "ok".into() } else { "it did not happen".into() };
        match *what {
            "connect" => answer(self.connect(rest)),
            "put" | "remove" | "put-many" | "publish" => answer(self.publish(what, rest)),
            "ready" => say(self.agent().ready()),
            "serve" | "pause" => {
                self.serves = *what == "serve";
                "ok".into()
            }
            "expect" => self.expect(rest),
            "answer" => {
                let (how, more) = rest[0].split_once('+').unwrap_or((rest[0], "0"));
                (self.keep.how, self.keep.more) = (how.into(), number(more) as usize);
                "ok".into()
            }
            "parts" => if self.keep.parts > 1 { "several" } else { "none" }.into(),
            "hangs" => happened(self.until(|_| false)),
            "leave" => {
                self.behind = rest.join(" ").into_bytes();
                "ok".into()
            }
            "close" => {
                (self.serves, self.closed) = (false, true);
                say(self.agent().close(rest.join(" ").into_bytes()))
            }
            "close-with" => {
                let result = self.agent().close(bytes(number(rest[0]), number(rest[1])));
                (self.serves, self.closed) = (self.serves && result.is_err(), result.is_ok());
                say(result)
            }
            "epoch" => self.agent().epoch().to_string(),
            "inherited" => self.inherited(),
            "inherited-is" => match self.agent().inherited_state() {
                None => "not yet".into(),
                Some(state) => check(state, &bytes(number(rest[0]), number(rest[1]))),
            },
            "await-closed" => happened(self.until(|this| this.closed)),
            "await-serving" => happened(self.until(|this| this.agent.as_ref().is_some_and(|a| a.epoch() > 0))),
            "poll" => say(self.poll()),
            "fork" => in_child(|| {
                let answer = self.follow(rest);
                self.agent = None;
                answer
            }),
            _ => "no such command".into(),
        }
    }

    fn round(&mut self) -> bool {
        if self.serves {
            self.poll().unwrap_or_else(|error| panic!("serving: {error}"));
        }
        self.serves
    }
}
