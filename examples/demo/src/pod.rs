//! A business pod: looks routes up, reports, calls; counts what it was promised and what it saw.

use crate::histogram::Histogram;
use anyhow::Context;
use podshm::{Client, ErrorKind, Key};
use podshm_testkit::numbered;
use route_client::report::{Outcome, Report};
use route_client::wire::Route;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a pod is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Its number.
    #[arg(long)]
    number: u32,
    /// Milliseconds at full speed.
    #[arg(long)]
    full_ms: u64,
    /// Milliseconds at a steady pace after that, while nothing happens to the agent.
    #[arg(long)]
    steady_ms: u64,
    /// Milliseconds at the same pace, while it is killed and upgraded.
    #[arg(long)]
    disturbed_ms: u64,
    /// File that says when to begin, in nanoseconds of the monotonic clock: all pods do at once.
    #[arg(long)]
    go: std::path::PathBuf,
    /// File with a route's name a line.
    #[arg(long)]
    routes: std::path::PathBuf,
}

/// How long something had to be waited for, at a steady pace.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Wait {
    /// 0 lookup, 1 report, 2 call.
    pub kind: usize,
    /// When it was there: nanoseconds of the monotonic clock.
    pub end: u64,
    /// How long that took since it was first tried, in nanoseconds.
    pub length: u64,
}

/// Shorter waits are not kept.
pub const SHORTEST_WAIT: u64 = 50_000;

/// What a pod saw.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Account {
    /// Its number: sender of its numbered records.
    pub number: u32,
    /// Lookups that found their route.
    pub lookups: u64,
    /// Nanoseconds spent in them.
    pub lookup_ns: u64,
    /// Lookups that did not find a route that is always there.
    pub missing: u64,
    /// Values with a wrong checksum.
    pub torn: u64,
    /// Values whose checksum was computed.
    pub checked: u64,
    /// Reports accepted: numbers 0 to this.
    pub accepted: u64,
    /// Reports that were refused because the ring was full, and sent later.
    pub full: u64,
    /// Calls answered.
    pub answered: u64,
    /// Calls answered with other bytes than were sent.
    pub wrong: u64,
    /// Calls not sent because no agent was there.
    pub away: u64,
    /// Calls whose outcome is unknown because the agent died.
    pub unknown: u64,
    /// Calls past their deadline.
    pub late: u64,
    /// Round trips of calls at a steady pace.
    pub call: Histogram,
    /// Round trips over a Unix socket pair, at the same pace.
    pub unix: Histogram,
    /// Waits of [`SHORTEST_WAIT`] or more.
    pub waits: Vec<Wait>,
}

fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The echo at the other end of the Unix socket pair.
pub fn unix_echo() -> anyhow::Result<()> {
    let stdin = rustix::io::dup(std::io::stdin())?;
    let mut socket = UnixStream::from(stdin);
    let mut buffer = [0; 64];
    while socket.read_exact(&mut buffer).is_ok() {
        socket.write_all(&buffer)?;
    }
    Ok(())
}

struct Pod {
    client: Client,
    account: Account,
    keys: Vec<Key>,
    /// Since when a call has been tried in vain.
    calling_since: Option<u64>,
    value: Vec<u8>,
    random: u64,
    due: u64,
}

/// Runs a pod's load and prints its account as one line of JSON.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let directory = std::env::var("PODSHM_SOCKET_DIR").context("PODSHM_SOCKET_DIR is not set: not in a pod")?;
    let client = Client::join(&directory, Duration::from_secs(30))?;
    let table = client.table("routes")?;
    let names = std::fs::read_to_string(&arguments.routes)?;
    let keys: Vec<Key> = names.lines().map(|name| table.key(name.as_bytes())).collect();
    anyhow::ensure!(!keys.is_empty(), "no routes in {}", arguments.routes.display());
    println!("joined");
    let start = begin(&arguments.go)?;
    let mut pod = Pod {
        client,
        account: Account { number: arguments.number, ..Account::default() },
        keys,
        calling_since: None,
        value: vec![0; 64 * 1024],
        random: 0x9e37_79b9 + u64::from(arguments.number),
        due: start + 500_000_000,
    };
    let steady = start + arguments.full_ms * 1_000_000;
    let disturbed = steady + arguments.steady_ms * 1_000_000;
    pod.full_speed(steady)?;
    pod.paced(disturbed, disturbed + arguments.disturbed_ms * 1_000_000)?;
    println!("account {}", serde_json::to_string(&pod.account)?);
    Ok(())
}

/// Waits for the time to begin.
fn begin(go: &std::path::Path) -> anyhow::Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // Whoever reads it half written finds no line's end.
        if let Some(start) = std::fs::read_to_string(go).ok().as_deref().and_then(|text| text.strip_suffix('\n')) {
            let start = start.parse()?;
            std::thread::sleep(Duration::from_nanos(start - now().min(start)));
            return Ok(start);
        }
        anyhow::ensure!(Instant::now() < deadline, "nobody said within 60 s when to begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Pod {
    fn full_speed(&mut self, until: u64) -> anyhow::Result<()> {
        let (reports, caller) = (self.client.queue("reports")?, self.client.call("explain")?);
        while now() < until {
            self.lookups(256);
            let mut batch = reports.batch()?;
            for _ in 0..32 {
                let seq = self.account.accepted;
                let report = self.report(seq);
                match batch.try_push(&report) {
                    Ok(_) => self.account.accepted += 1,
                    Err(e) if e.kind() == ErrorKind::Full => {
                        self.account.full += 1;
                        break;
                    }
                    Err(e) => return Err(e.into()),
                }
            }
            drop(batch);
            self.call(&caller)?;
            self.progress();
        }
        Ok(())
    }

    /// At a steady pace, so that there is CPU left for everybody and a wait is the agent's doing, not the scheduler's. Round trips
    /// are timed until `disturbed`.
    fn paced(&mut self, disturbed: u64, until: u64) -> anyhow::Result<()> {
        let (reports, caller) = (self.client.queue("reports")?, self.client.call("explain")?);
        let (mine, theirs) = UnixStream::pair()?;
        let mut echo = Command::new(std::env::current_exe()?)
            .arg("unix-echo")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("starting the echo of the Unix socket pair")?;
        let mut unix = mine;
        loop {
            let start = now();
            if start >= until {
                break;
            }
            self.lookups(8);
            self.waited(0, start);
            let report = self.report(self.account.accepted);
            let start = now();
            reports.push(&report, Duration::from_secs(10))?;
            self.account.accepted += 1;
            self.waited(1, start);
            let start = now();
            if self.call(&caller)? {
                let end = self.waited(2, self.calling_since.unwrap_or(start));
                self.calling_since = None;
                if end < disturbed {
                    self.account.call.add(end - start);
                }
            } else {
                self.calling_since.get_or_insert(start);
            }
            let mut bytes = [7; 64];
            let start = now();
            unix.write_all(&bytes)?;
            unix.read_exact(&mut bytes)?;
            let end = now();
            if end < disturbed {
                self.account.unix.add(end - start);
            }
            self.progress();
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(unix);
        echo.wait()?;
        Ok(())
    }

    fn lookups(&mut self, count: usize) {
        let start = Instant::now();
        for _ in 0..count {
            self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = (self.random >> 33) as usize % self.keys.len();
            match self.keys[key].get(&mut self.value) {
                Ok(Some(_)) => self.account.lookups += 1,
                _ => self.account.missing += 1,
            }
        }
        self.account.lookup_ns += start.elapsed().as_nanos() as u64;
        // The checksum of one of them: a torn value can't have the right one.
        let key = (self.random >> 33) as usize % self.keys.len();
        if let Ok(Some(len)) = self.keys[key].get(&mut self.value) {
            self.account.checked += 1;
            let mut bytes = &self.value[..len];
            if Route::decode(&mut bytes).is_err() {
                self.account.torn += 1;
            }
        }
    }

    /// Says whether the call was answered.
    fn call(&mut self, caller: &podshm::Caller) -> anyhow::Result<bool> {
        let mut request = *b"echo:...........................................................";
        request[8..16].copy_from_slice(&self.account.answered.to_le_bytes());
        let mut answer = [0; 64];
        match caller.call(&request, &mut answer, Duration::from_secs(5)) {
            Ok(64) if answer == request => {
                self.account.answered += 1;
                return Ok(true);
            }
            Ok(_) => self.account.wrong += 1,
            Err(e) => match e.kind() {
                ErrorKind::AgentAway => {
                    self.account.away += 1;
                    std::thread::sleep(Duration::from_micros(200));
                }
                ErrorKind::OutcomeUnknown => self.account.unknown += 1,
                ErrorKind::Deadline => self.account.late += 1,
                _ => return Err(e.into()),
            },
        }
        Ok(false)
    }

    /// A report about some endpoint, with a numbered and checksummed trailer.
    fn report(&self, seq: u64) -> Vec<u8> {
        let report = Report {
            route: seq % 97,
            endpoint: self.random % 1000,
            outcome: Outcome::Success,
            latency_ns: 100_000 + self.random % 1000,
            seq,
        };
        let mut bytes = report.encode().to_vec();
        bytes.extend(numbered::encode(self.account.number, seq, numbered::MIN_RECORD));
        bytes
    }

    /// What was first tried at `since` is done; returns when.
    fn waited(&mut self, kind: usize, since: u64) -> u64 {
        let end = now();
        let length = end - since;
        if length >= SHORTEST_WAIT && self.account.waits.len() < 100_000 {
            self.account.waits.push(Wait { kind, end, length });
        }
        end
    }

    fn progress(&mut self) {
        let now = now();
        if now >= self.due {
            self.due = now + 500_000_000;
            println!("progress {} {} {}", self.account.lookups, self.account.accepted, self.account.answered);
        }
    }
}
