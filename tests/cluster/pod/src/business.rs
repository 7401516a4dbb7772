//! Business that takes requests: each one looks a route up, reports a record and calls an agent, and the answer says whether all of that was
//! right. The same program whether the agents are in its pod or on its node.
//!
//! ```text
//!  GET /work   200 FORM SENDER SEQ    the record that was reported for it; anything else is a request that failed, with the reason
//!  GET /ready  200 ready              once it has joined
//! ```

use crate::{PATIENCE, SOCKETS, told};
use anyhow::{Context, ensure};
use guard_client::{Decision, GuardClient, Question};
use route_client::{ClientError, ClientErrorKind, Outcome, RouteClient, SmallRandom, Trailer};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Where it takes requests.
const PORT: u16 = 8080;
/// How long an agent may be away: longer than it takes to be followed by the next.
const AWAY: Duration = Duration::from_secs(20);
/// How long somebody who has connected may take to ask: longer than anybody waits for an answer.
const IDLE: Duration = Duration::from_secs(60);
/// Where the guard's sockets are, where it is asked.
const GUARD: &str = "/run/guard";

struct Business {
    routes: RouteClient,
    guard: Option<GuardClient>,
    key: String,
    expected: BTreeSet<String>,
    form: String,
    sender: u32,
    next: AtomicU64,
    busy: AtomicU64,
}

/// `business KEY ADDRESSES [ACTION]`: a pick of KEY is one of ADDRESSES; with ACTION the guard is asked for it, and has to allow it; without, the
/// route agent is called.
pub fn serve(key: &str, addresses: &str, action: Option<&str>) -> anyhow::Result<()> {
    let told = told()?;
    let routes = RouteClient::join(SOCKETS, PATIENCE).context("joining")?;
    let guard = action.map(|_| GuardClient::join(GUARD, PATIENCE)).transpose().context("joining the guard's domain")?;
    let business = Arc::new(Business {
        routes,
        guard,
        key: key.to_owned(),
        expected: addresses.split(',').map(str::to_owned).collect(),
        form: std::env::var("FORM").unwrap_or_default(),
        sender: sender()?,
        next: AtomicU64::new(0),
        busy: AtomicU64::new(0),
    });
    // What is not right from the beginning is not to be sent any request.
    business.work(action).context("the first request, of its own")?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listening")?;
    println!("ready, {} as sender {}", business.form, business.sender);
    let (taking, action) = (Arc::clone(&business), action.map(str::to_owned));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (business, action) = (Arc::clone(&taking), action.clone());
            business.busy.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                // Whoever asked may be gone.
                let _ = business.answer(stream, action.as_deref());
                business.busy.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    while !told.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    business.end()
}

/// Of this process alone: a container that is started again is another.
fn sender() -> anyhow::Result<u32> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    let name = format!("{} {since}", std::env::var("POD_NAME").context("POD_NAME: expected this pod's name")?);
    // FNV-1a.
    Ok(name.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)))
}

/// While no agent is there a call is not sent, and says so: whoever can wait tries again.
fn patiently<T>(call: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let begin = Instant::now();
    loop {
        match call() {
            Err(error) if error.kind() == NOBODY_THERE && begin.elapsed() < AWAY => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

const NOBODY_THERE: ClientErrorKind = ClientErrorKind::Podshm(podshm::ErrorKind::AgentAway);

impl Business {
    /// Lookup, report, call. The number of the record that was reported.
    fn work(&self, action: Option<&str>) -> anyhow::Result<u64> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let mut route = self.routes.route(&self.key)?;
        let picked = route.pick(&mut SmallRandom::new(seq)).context("lookup")?;
        let address = picked.socket_addr().context("the route has a name in place of an address")?.to_string();
        ensure!(self.expected.contains(&address), "lookup: the route has {address}, expected {:?}", self.expected);
        let what = (picked.record.id, Outcome::Success, Duration::from_millis(1));
        let trailer = Trailer { sender: self.sender, seq };
        self.routes.report_numbered(&route, what, trailer, AWAY).context("report")?;
        match (&self.guard, action) {
            (Some(guard), Some(action)) => {
                // No principal is this pod, as the broker knows it.
                let question = Question { principal: "", action, resource: r#"Document::"plan""#, context: "" };
                let verdict = guard.ask(&question, AWAY).context("asking the guard")?;
                ensure!(verdict.decision == Decision::Allow, "the guard says {:?}", verdict.decision);
            }
            _ => self.echo(seq)?,
        }
        Ok(seq)
    }

    fn echo(&self, seq: u64) -> anyhow::Result<()> {
        let asked = format!("echo:{} {seq}", self.sender);
        let answer = patiently(|| self.routes.ask(asked.as_bytes(), AWAY)).context("calling the route agent")?;
        ensure!(answer == asked.as_bytes(), "the route agent answers {:?}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    fn answer(&self, mut stream: TcpStream, action: Option<&str>) -> anyhow::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        let mut request = Vec::new();
        let mut part = [0; 512];
        while !request.ends_with(b"\r\n\r\n") && request.len() < 4096 {
            match stream.read(&mut part)? {
                0 => break,
                length => request.extend_from_slice(&part[..length]),
            }
        }
        let (status, text) = if request.starts_with(b"GET /work ") {
            match self.work(action) {
                Ok(seq) => ("200 OK", format!("{} {} {seq}", self.form, self.sender)),
                Err(error) => ("500 Failed", format!("{} {}: {error:#}", self.form, self.sender)),
            }
        } else if request.starts_with(b"GET /ready ") {
            ("200 OK", "ready".into())
        } else {
            ("404 Not Found", "expected /work or /ready".into())
        };
        let length = text.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}")?;
        Ok(())
    }

    /// Answers what it has been asked, and goes once the agent has what was reported: an agent in this pod ends soon after.
    fn end(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while self.busy.load(Ordering::SeqCst) > 0 && begin.elapsed() < AWAY {
            std::thread::sleep(Duration::from_millis(20));
        }
        // An agent goes round by round, through records and calls: what it answers in the third comes after all records.
        (0..3).try_for_each(|round| self.echo(round))?;
        println!("ends after {} requests", self.next.load(Ordering::Relaxed));
        Ok(())
    }
}

/// `routes verify KEY ADDRESSES`: what a verification pod runs that knows what is right: a lookup, a report and a call, some times over.
pub fn verify(key: &str, addresses: &str) -> anyhow::Result<()> {
    let expected: BTreeSet<&str> = addresses.split(',').collect();
    let client = RouteClient::join(SOCKETS, PATIENCE).context("joining")?;
    let begin = Instant::now();
    for round in 0..3_u64 {
        let mut route = client.route(key)?;
        let picked = route.pick(&mut SmallRandom::new(round)).context("lookup")?;
        let address = picked.socket_addr().context("the route has a name in place of an address")?.to_string();
        ensure!(expected.contains(&address.as_str()), "lookup: {key} has {address}, expected one of {addresses}");
        client.report_wait(&route, picked.record.id, Outcome::Success, Duration::from_millis(1), AWAY)?;
        let answer = patiently(|| client.ask(b"echo:verified", AWAY)).context("call")?;
        ensure!(answer == b"echo:verified", "call: found {:?}", String::from_utf8_lossy(&answer));
    }
    println!("all as expected, in {} ms", begin.elapsed().as_millis());
    Ok(())
}
