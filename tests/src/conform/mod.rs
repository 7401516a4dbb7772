//! A participant of the conformance suite in Rust: what the C one (`tests/c/conform*.c`) does over the C ABI, by the library itself. See
//! `tests/conformance/cases.txt`.

mod agent;
mod client;

use podshm::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a participant does with commands.
trait Participant {
    /// The answer to one.
    fn follow(&mut self, words: &[&str]) -> String;

    /// A round of serving; whether it serves.
    fn round(&mut self) -> bool;
}

/// Runs one in role `role` until the test hangs up.
pub fn run(role: &str) {
    let directory = PathBuf::from(std::env::var_os("PODSHM_SOCKET_DIR").expect("a pod has a socket directory"));
    let mut control = UnixStream::connect(directory.join("control.sock")).expect("the test listens");
    let mut participant: Box<dyn Participant> = match role {
        "agent" | "successor" => Box::new(agent::Serving::new(directory, control.try_clone().expect("a descriptor"))),
        _ => Box::new(client::Joined::new(directory)),
    };
    let mut line = Vec::new();
    loop {
        while participant.round() && !comes(&control, Duration::ZERO) {}
        let mut byte = [0];
        match control.read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => {
                let command = String::from_utf8(std::mem::take(&mut line)).expect("a command is text");
                let words: Vec<&str> = command.split(' ').collect();
                let answer = match command.strip_prefix("because ") {
                    Some(words) => because(words),
                    None => participant.follow(&words),
                };
                writeln!(control, "{answer}").expect("the test listens");
            }
            Ok(1) => line.push(byte[0]),
            _ => return,
        }
    }
}

/// Whether there is something to read, now or within `patience`.
fn comes(from: &impl AsFd, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).expect("a few seconds");
    poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}

/// What a result is called in an answer.
fn say(result: Result<(), Error>) -> String {
    match result {
        Ok(()) => "ok".into(),
        Err(error) => {
            eprintln!("conform: {error}");
            said(&error)
        }
    }
}

/// What the last error said of itself.
static REASON: Mutex<String> = Mutex::new(String::new());

/// Whether the last error gave these words for its reason: several reasons have one kind.
fn because(words: &str) -> String {
    let reason = REASON.lock().unwrap_or_else(PoisonError::into_inner);
    if reason.contains(words) { "ok".into() } else { format!("because {reason}") }
}

fn said(error: &Error) -> String {
    *REASON.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
    let mut name = String::new();
    for letter in format!("{:?}", error.kind()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    match (error, error.needed()) {
        (Error::Failed { status }, _) => format!("error {name} {status}"),
        (_, Some(needed)) => format!("error {name} {needed}"),
        _ => format!("error {name}"),
    }
}

/// The answer to a command, an error among them.
fn answer(result: Result<String, Error>) -> String {
    result.unwrap_or_else(|error| say(Err(error)))
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

fn millis(word: &str) -> Duration {
    Duration::from_millis(number(word))
}

fn byte(at: usize, seed: u64) -> u8 {
    (seed as usize).wrapping_add(at * 7).wrapping_add(at >> 8) as u8
}

/// The bytes of this length and seed.
fn bytes(len: u64, seed: u64) -> Vec<u8> {
    (0..len as usize).map(|at| byte(at, seed)).collect()
}

fn check(found: &[u8], expected: &[u8]) -> String {
    if found == expected { "ok".into() } else { format!("wrong bytes: {} of {}", found.len(), expected.len()) }
}

/// A key as the suite writes it.
fn key(written: &str) -> Vec<u8> {
    match written.split_once('*') {
        _ if written == "-" => Vec::new(),
        Some((letter, count)) => letter.repeat(number(count) as usize).into_bytes(),
        None => written.into(),
    }
}

/// Runs `work` in a forked child, and returns its answer.
fn in_child(work: impl FnOnce() -> String) -> String {
    begin(work).answer()
}

/// Runs `work` in so many children at once, as a prefork server does; what they all answer.
fn in_children(count: u64, mut work: impl FnMut() -> String) -> String {
    let children: Vec<Working> = (0..count).map(|_| begin(&mut work)).collect();
    let mut answers: Vec<String> = children.into_iter().map(Working::answer).collect();
    answers.dedup();
    if answers.len() == 1 { answers.remove(0) } else { format!("the children do not agree: {answers:?}") }
}

/// A child that was forked and will answer.
struct Working {
    child: libc::pid_t,
    answers: UnixStream,
}

fn begin(work: impl FnOnce() -> String) -> Working {
    let (answers, mut childs) = UnixStream::pair().expect("a pair of sockets");
    // SAFETY: the child runs this process's code on its own copy of the memory, as a C program does after fork, and leaves by _exit. The
    // client's library thread is not there, nor any lock of its own that the library would wait for: that is what is tested.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a child that hangs is ended by the kernel.
        unsafe { libc::alarm(60) };
        let written = childs.write_all(work().as_bytes());
        // SAFETY: ends the child without running its parent's destructors.
        unsafe { libc::_exit(i32::from(written.is_err())) };
    }
    Working { child, answers }
}

impl Working {
    /// What it says in the end.
    fn answer(mut self) -> String {
        let mut answer = String::new();
        let read = self.answers.read_to_string(&mut answer);
        let mut status = 0;
        // SAFETY: waits for the child that `begin` made.
        let waited = unsafe { libc::waitpid(self.child, &raw mut status, 0) };
        if read.is_err() || waited != self.child || status != 0 || answer.is_empty() {
            return "the child ended badly".into();
        }
        answer
    }
}

/// A kind that is not an error's: whatever says it has ended.
const ENDED: &str = "error ENDED";
