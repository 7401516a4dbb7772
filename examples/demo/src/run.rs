//! Sets the node up, lets it run, disturbs the agent.

use crate::agents::Agents;
use crate::pod::Account;
use crate::verdict::{self, Event, Evidence};
use anyhow::Context;
use podshm_testkit::numbered::Checker;
use podshm_testkit::{Pod, Stdout};
use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What is to be run.
pub struct Plan {
    /// Seconds of load.
    pub seconds: u64,
    /// Business pods.
    pub pods: u32,
    /// Where the input is.
    pub data: PathBuf,
    /// Plain lines even on a terminal.
    pub plain: bool,
}

/// Part of the time in which pods work as fast as they can.
const FULL: f64 = 0.4;
/// Part of the time in which they work at a steady pace and nothing happens to the agent; in the rest of it something does.
const STEADY: f64 = 0.25;

impl Plan {
    /// A part of the time.
    fn nanos(&self, part: f64) -> u64 {
        (self.seconds as f64 * part * 1e9) as u64
    }
}

enum News {
    Joined,
    Progress(u32, [u64; 3]),
    Done(u32, Box<Account>, Option<u64>),
    Ended(u32, String),
}

/// Paths of one run; removed at its end.
pub struct Place {
    pub root: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let root = std::env::temp_dir().join(format!("podshm-demo-{}", std::process::id()));
        for part in ["sockets", "log", "input"] {
            fs::create_dir_all(root.join(part)).with_context(|| format!("making {}", root.join(part).display()))?;
        }
        fs::set_permissions(root.join("log"), fs::Permissions::from_mode(0o777))?;
        Ok(Place { root })
    }

    /// Tells the pods when to begin.
    fn go(&self) -> PathBuf {
        self.root.join("input/go")
    }

    /// The socket directory of a pod, made before it is mounted.
    pub fn socket_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.root.join("sockets").join(format!("demo_{name}"));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        Ok(directory)
    }
}

pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.exists(), "{} is missing; `make demo` builds it", path.display());
    Ok(path)
}

pub fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Runs the demo and prints its table; says whether everything is accounted for.
pub fn run(plan: &Plan) -> anyhow::Result<bool> {
    let place = Place::new()?;
    for file in ["endpointslices.json", "endpointslice-events.jsonl"] {
        let from = plan.data.join(file);
        fs::copy(&from, place.root.join("input").join(file)).with_context(|| {
            format!("reading {}: start the demo from the repository, or say --data", from.display())
        })?;
    }
    let log = place.root.join("log/delivered");
    fs::write(&log, "")?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
    let names: Vec<String> = (0..plan.pods).map(|n| format!("client-{n}")).collect();
    place.socket_dir("agent")?;
    for name in &names {
        place.socket_dir(name)?;
    }

    say("starting the broker");
    let sockets = place.root.join("sockets");
    let mut arguments =
        vec!["broker".to_owned(), "--root".into(), text(&sockets), "--agent".into(), "demo/agent".into()];
    for name in &names {
        arguments.extend(["--member".into(), format!("demo/{name}")]);
    }
    let mut broker = Pod::builder("broker")
        .root_in_container(true)
        .bind(&sockets, text(&sockets), false)
        .stdout(Stdout::Lines)
        .spawn(text(&program("podshm")?), &arguments)?;
    broker.stdout().wait_for("ready", Duration::from_secs(20)).context("the broker does not say ready within 20 s")?;
    let isolation = format!("{:?} isolation", broker.isolation());

    say("starting route agent v1");
    let mut agents = Agents::start(plan, &place)?;
    let routes = route_names(plan, &place)?;

    say(&format!("starting {} business pods", plan.pods));
    let (news, inbox) = channel();
    let mut threads = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let pod = business_pod(plan, &place, number as u32, name, &routes)?;
        let news = news.clone();
        threads.push(std::thread::spawn(move || follow(pod, number as u32, &news)));
    }
    drop(news);
    let mut watch = Watch::new(plan, inbox);
    watch.until_joined(plan.pods)?;

    let (start, begun) = (Instant::now(), now());
    fs::write(place.go(), format!("{begun}\n"))?;
    let at = |part: f64| start + Duration::from_secs_f64(plan.seconds as f64 * part);
    watch.until(at(0.08))?;
    agents.kill("at full speed")?;
    watch.until(at(0.22))?;
    let (_, quiet) = agents.upgrade("at full speed")?;
    watch.until(at(FULL + STEADY))?;
    let control = (quiet.max(begun + plan.nanos(FULL + 0.01)), now());
    watch.until(at(FULL + STEADY + 0.02))?;
    let killed = agents.kill("at a steady pace")?;
    watch.until(at(FULL + STEADY + 0.2))?;
    let upgraded = agents.upgrade("at a steady pace")?;
    watch.until_done(plan.pods)?;
    let seconds = start.elapsed().as_secs_f64();
    for thread in threads {
        let _ = thread.join();
    }
    // What the pods left is drained before the agent is asked to end.
    std::thread::sleep(Duration::from_millis(300));
    let broker_memory = broker.memory().map_or(0, |m| m.charged);
    agents.end()?;

    let event = |what, (from, to)| Event { what, from, to };
    let events = vec![
        event("control: nothing happens", control),
        event("kill -9, next version starts", (killed.0, killed.1.min(upgraded.0))),
        event("graceful upgrade", upgraded),
    ];
    let evidence = Evidence {
        accounts: watch.accounts.into_values().map(|a| *a).collect(),
        delivered: delivered(&log)?,
        events,
        pod_memory: watch.memory,
        broker_memory,
        seconds,
        isolation,
    };
    Ok(verdict::print(&evidence))
}

fn business_pod(plan: &Plan, place: &Place, number: u32, name: &str, routes: &Path) -> anyhow::Result<Pod> {
    let millis = |part: f64| (plan.nanos(part) / 1_000_000).to_string();
    let arguments = [
        "pod".to_owned(),
        "--number".into(),
        number.to_string(),
        "--full-ms".into(),
        millis(FULL),
        "--steady-ms".into(),
        millis(STEADY),
        "--disturbed-ms".into(),
        millis(1.0 - FULL - STEADY),
        "--go".into(),
        text(&place.go()),
        "--routes".into(),
        text(routes),
    ];
    let input = place.root.join("input");
    let pod = Pod::builder(name)
        .uid(20_001 + number)
        .memory_limit(64 << 20)
        .socket_dir(place.socket_dir(name)?)
        .bind(&input, text(&input), true)
        .stdout(Stdout::Lines)
        .spawn(text(&std::env::current_exe()?), &arguments)?;
    Ok(pod)
}

/// The routes that every state of the input has: pods look for nothing else.
fn route_names(plan: &Plan, place: &Place) -> anyhow::Result<PathBuf> {
    let mut store = route_agent::store::Store::new();
    let list = route_agent::slices::parse_list(fs::File::open(plan.data.join("endpointslices.json"))?);
    store.replace(list, &route_agent::store::FullWeights);
    let names: Vec<String> =
        store.values().map(|(key, _)| String::from_utf8_lossy(key.as_bytes()).into_owned()).collect();
    let path = place.root.join("input/routes");
    fs::write(&path, names.join("\n"))?;
    Ok(path)
}

/// Reads what a pod prints until it ends.
fn follow(mut pod: Pod, number: u32, news: &Sender<News>) {
    let mut memory = None;
    let mut done = false;
    while let Some(line) = pod.stdout().next() {
        let line = line.to_string();
        if let Some(m) = pod.memory() {
            memory = memory.max(Some(m.charged));
        }
        let _ = if line == "joined" {
            news.send(News::Joined)
        } else if let Some(counts) = line.strip_prefix("progress ") {
            let mut counts = counts.split(' ').map(|n| n.parse().unwrap_or(0));
            let mut next = || counts.next().unwrap_or(0);
            news.send(News::Progress(number, [next(), next(), next()]))
        } else if let Some(account) = line.strip_prefix("account ") {
            match serde_json::from_str(account) {
                Ok(account) => {
                    done = true;
                    news.send(News::Done(number, Box::new(account), memory))
                }
                Err(error) => news.send(News::Ended(number, error.to_string())),
            }
        } else {
            Ok(())
        };
    }
    let status = pod.wait();
    if !done {
        let _ = news.send(News::Ended(number, format!("{status:?}")));
    }
}

struct Watch {
    inbox: Receiver<News>,
    live: bool,
    start: Instant,
    shown: Instant,
    counts: BTreeMap<u32, [u64; 3]>,
    accounts: BTreeMap<u32, Box<Account>>,
    memory: Vec<u64>,
    joined: u32,
}

impl Watch {
    fn new(plan: &Plan, inbox: Receiver<News>) -> Self {
        Watch {
            inbox,
            live: !plan.plain && std::io::stdout().is_terminal(),
            start: Instant::now(),
            shown: Instant::now(),
            counts: BTreeMap::new(),
            accounts: BTreeMap::new(),
            memory: Vec::new(),
            joined: 0,
        }
    }

    fn until_joined(&mut self, pods: u32) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.joined < pods {
            anyhow::ensure!(Instant::now() < deadline, "only {} of {pods} pods joined within 30 s", self.joined);
            self.step(Duration::from_millis(100))?;
        }
        say(&format!("{pods} pods have joined"));
        self.start = Instant::now();
        Ok(())
    }

    fn until(&mut self, until: Instant) -> anyhow::Result<()> {
        while Instant::now() < until {
            self.step(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    fn until_done(&mut self, pods: u32) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while (self.accounts.len() as u32) < pods {
            anyhow::ensure!(Instant::now() < deadline, "{} of {pods} pods ended in time", self.accounts.len());
            self.step(Duration::from_millis(100))?;
        }
        if self.live {
            println!();
        }
        Ok(())
    }

    fn step(&mut self, wait: Duration) -> anyhow::Result<()> {
        match self.inbox.recv_timeout(wait) {
            Ok(News::Joined) => self.joined += 1,
            Ok(News::Progress(pod, counts)) => drop(self.counts.insert(pod, counts)),
            Ok(News::Done(pod, account, memory)) => {
                self.memory.extend(memory);
                self.accounts.insert(pod, account);
            }
            Ok(News::Ended(pod, how)) => anyhow::bail!("pod client-{pod} ended without its account: {how}"),
            Err(_) => {}
        }
        let every = Duration::from_millis(if self.live { 200 } else { 2000 });
        if self.shown.elapsed() > every && !self.counts.is_empty() {
            self.shown = Instant::now();
            let sum = |i: usize| self.counts.values().map(|c| c[i]).sum::<u64>();
            let line = format!(
                "{:5.1} s  {:>11} lookups  {:>10} reports  {:>9} calls",
                self.start.elapsed().as_secs_f64(),
                sum(0),
                sum(1),
                sum(2)
            );
            if self.live {
                print!("\r{line}");
                std::io::stdout().flush()?;
            } else {
                println!("{line}");
            }
        }
        Ok(())
    }
}

/// What the agents logged. An entry without a number had a trailer whose checksum was wrong.
fn delivered(log: &Path) -> anyhow::Result<Checker> {
    let mut checker = Checker::new();
    for entry in route_agent::delivered::read(std::io::BufReader::new(fs::File::open(log)?)) {
        let entry = entry.context("reading the agents' log")?;
        match entry.trailer {
            Some(trailer) => drop(checker.observe(trailer.sender, trailer.seq, entry.maybe_seen)),
            None => checker.count_corrupt(),
        }
    }
    Ok(checker)
}

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub fn say(what: &str) {
    println!("» {what}");
}
