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
    /// Milliseconds at a steady pace after that.
    #[arg(long)]
    paced_ms: u64,
    /// File with a route's name a line.
    #[arg(long)]
    routes: std::path::PathBuf,
}

/// A time without service, longer than a millisecond.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// 0 lookup, 1 report, 2 call.
    pub kind: usize,
    /// When it ended: nanoseconds of the monotonic clock.
    pub end: u64,
    /// How long it was, in nanoseconds.
    pub length: u64,
}

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
    /// Times without service.
    pub gaps: Vec<Gap>,
    /// Longest time without service of each kind at all.
    pub longest: [u64; 3],
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
    last: [u64; 3],
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
    let start = now();
    let mut pod = Pod {
        client,
        account: Account { number: arguments.number, ..Account::default() },
        keys,
        last: [start; 3],
        value: vec![0; 64 * 1024],
        random: 0x9e37_79b9 + u64::from(arguments.number),
        due: start + 500_000_000,
    };
    pod.full_speed(Instant::now() + Duration::from_millis(arguments.full_ms))?;
    pod.paced(Instant::now() + Duration::from_millis(arguments.paced_ms))?;
    println!("account {}", serde_json::to_string(&pod.account)?);
    Ok(())
}

impl Pod {
    fn full_speed(&mut self, until: Instant) -> anyhow::Result<()> {
        let (reports, caller) = (self.client.queue("reports")?, self.client.call("explain")?);
        while Instant::now() < until {
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
            self.served(1);
            self.call(&caller, false)?;
            self.progress();
        }
        Ok(())
    }

    fn paced(&mut self, until: Instant) -> anyhow::Result<()> {
        let (reports, caller) = (self.client.queue("reports")?, self.client.call("explain")?);
        let (mine, theirs) = UnixStream::pair()?;
        let mut echo = Command::new(std::env::current_exe()?)
            .arg("unix-echo")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("starting the echo of the Unix socket pair")?;
        let mut unix = mine;
        while Instant::now() < until {
            self.lookups(8);
            let report = self.report(self.account.accepted);
            reports.push(&report, Duration::from_secs(10))?;
            self.account.accepted += 1;
            self.served(1);
            self.call(&caller, true)?;
            let mut bytes = [7; 64];
            let start = Instant::now();
            unix.write_all(&bytes)?;
            unix.read_exact(&mut bytes)?;
            self.account.unix.add(start.elapsed().as_nanos() as u64);
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
        self.served(0);
    }

    fn call(&mut self, caller: &podshm::Caller, timed: bool) -> anyhow::Result<()> {
        let mut request = *b"echo:...........................................................";
        request[8..16].copy_from_slice(&self.account.answered.to_le_bytes());
        let mut answer = [0; 64];
        let start = Instant::now();
        match caller.call(&request, &mut answer, Duration::from_secs(5)) {
            Ok(64) if answer == request => {
                if timed {
                    self.account.call.add(start.elapsed().as_nanos() as u64);
                }
                self.account.answered += 1;
                self.served(2);
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
        Ok(())
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

    fn served(&mut self, kind: usize) {
        let now = now();
        let length = now - self.last[kind];
        self.last[kind] = now;
        self.account.longest[kind] = self.account.longest[kind].max(length);
        if length > 1_000_000 && self.account.gaps.len() < 200_000 {
            self.account.gaps.push(Gap { kind, end: now, length });
        }
    }

    fn progress(&mut self) {
        let now = now();
        if now >= self.due {
            self.due = now + 500_000_000;
            println!("progress {} {} {}", self.account.lookups, self.account.accepted, self.account.answered);
        }
    }
}
