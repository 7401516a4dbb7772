//! What `podshm run`, `ls` and `rm` ask of a domain's daemon: a line of JSON each way, over a socket that is root's alone.

use crate::place::{Config, Place};
use crate::posix::Fill;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a daemon that is being replaced may be away.
const REPLACED: Duration = Duration::from_secs(2);
/// Longest line.
pub const LONGEST: usize = 64 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// A socket for a member.
    AddMember(String),
    /// It is gone; its socket goes.
    RemoveMember(String),
    /// A `podshm run` is over: the sockets of members that have no other go. Without this, a second later.
    RunEnded,
    /// What there is.
    List,
    /// Remove a segment: the id, and whether attachments don't matter.
    Remove(i32, bool),
    /// What has neither creator nor user.
    Idle,
    /// A member could not be started, and why; for the daemon's log.
    NotStarted(String, String),
    /// A call in a member that did not come through the library was refused: the member, the program, the call.
    PastLibrary(String, String, String),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done.
    Done,
    /// What there is.
    Listing(Listing),
    /// Names of POSIX objects without creator and user, and for how many seconds; of the kernel's segments `sysv/ID`.
    Idle(Vec<(String, u64)>),
    /// It was not done, and why.
    Refused(String),
}

/// A domain as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// How it was set up.
    pub config: Config,
    /// How full /dev/shm is.
    pub fill: Option<Fill>,
    /// Pages of its System V segments.
    pub pages: u64,
    /// System V segments.
    pub segments: Vec<Listed>,
    /// Members that have a socket.
    pub members: Vec<String>,
}

/// A System V segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Id.
    pub id: i32,
    /// Key.
    pub key: i32,
    /// Bytes.
    pub size: u64,
    /// Owner's uid.
    pub uid: u32,
    /// Permission bits, and 0o1000 for one that goes with its last attachment.
    pub mode: u16,
    /// Attachments.
    pub attached: u64,
    /// Who made it: `member:pid`.
    pub creator: String,
    /// Whether that process is gone.
    pub creator_gone: bool,
    /// Seconds since it has had neither creator nor attachment.
    pub idle_seconds: Option<u64>,
}

/// Asks.
pub fn ask(place: &Place, question: &Question) -> io::Result<Response> {
    ask_at(&place.path("control.sock"), question)
}

/// Asks; waits a moment for a daemon that is being replaced.
pub fn ask_patiently(place: &Place, question: &Question) -> io::Result<Response> {
    let start = Instant::now();
    loop {
        match ask(place, question) {
            Err(error)
                if start.elapsed() < REPLACED
                    && matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Asks where the socket is known by another path.
pub fn ask_at(socket: &Path, question: &Question) -> io::Result<Response> {
    ask_within(socket, question, Duration::from_secs(60))
}

/// Asks, and waits no longer than this for the answer.
pub fn ask_within(socket: &Path, question: &Question, patience: Duration) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
