//! What pods of the test cluster run.
//!
//! ```text
//!  podshm-cluster-pod agent                     serves table `values`, queue `records`, call `tally`, until SIGTERM or a successor
//!  podshm-cluster-pod sidecar                   the same with a broker of its own, for the containers of its pod
//!  podshm-cluster-pod hold                      waits until it is told to end
//!  podshm-cluster-pod exchange SENDER COUNT     pushes COUNT numbered records, one by one; says what the agent has counted
//!  podshm-cluster-pod load SENDER               the same, at some pace and until it is told to end
//!  podshm-cluster-pod count                     how far this pod's load has come
//!  podshm-cluster-pod look                      looks up until it is told to end; says how often
//!  podshm-cluster-pod fill                      joins until it is refused; says how often, and why not once more; waits
//!  podshm-cluster-pod leak                      has this pod's agent take memory until it is killed
//!  podshm-cluster-pod stop                      tells this pod's first process to end
//!  podshm-cluster-pod routes lookup KEY         endpoints of a route of the route agent that take new work
//!  podshm-cluster-pod routes follow KEY         the same at each change, with the time
//!  podshm-cluster-pod routes load SENDER KEY    picks and reports, as `load` pushes
//!  podshm-cluster-pod routes join               joins, and holds that until it is told to end
//!  podshm-cluster-pod guard ask ACTION          what the guard agent says of this pod and ACTION
//!  podshm-cluster-pod guard load ACTION         asks until it is told to end; each has to be allowed
//!  podshm-cluster-pod routes verify KEY ADDRESSES     a lookup that has to be one of these, a report, a call
//!  podshm-cluster-pod business KEY ADDRESSES [ACTION] takes requests, each of which uses the agents
//!  podshm-cluster-pod bad-route-agent FAULT LOG       the route agent, with a fault
//!  podshm-cluster-pod within DOMAIN=DIRECTORY…        a broker for agents and business of this pod
//!  podshm-cluster-pod broker                    a broker of this pod's own: what an agent in each pod would have
//!  podshm-cluster-pod ready                     whether this pod's socket is answered
//! ```
//! An agent leaves its tally to its successor.
#![forbid(unsafe_code)]

mod bad;
mod business;
mod counter;
mod guard;
mod routes;

use anyhow::{Context, bail};
use counter::Counter;
use podshm::{Agent, Answer, Client, Handler, Progress, Record, Request};
use podshm_broker::{Broker, DomainConfig, Identity, Rights};
use podshm_testkit::numbered;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SOCKETS: &str = "/run/podshm";
const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &[u8] = b"greeting";
const VALUE: &[u8] = b"hello from the agent of this node";

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["agent"] => agent(),
        ["sidecar"] => sidecar(),
        ["hold"] => hold(),
        ["exchange", sender, count] => exchange(sender.parse()?, Some(count.parse()?)),
        ["load", sender] => exchange(sender.parse()?, None),
        ["count"] => counter::ask(),
        ["broker"] => broker(),
        ["routes", "join"] => routes::join(),
        ["look"] => look(),
        ["fill"] => fill(),
        ["leak"] => Ok(kill_process(Pid::INIT, Signal::USR1)?),
        ["routes", "lookup", key] => routes::lookup(key),
        ["routes", "follow", key] => routes::follow(key),
        ["routes", "load", sender, key] => routes::load(sender.parse()?, key),
        ["routes", "verify", key, addresses] => business::verify(key, addresses),
        ["business", key, addresses] => business::serve(key, addresses, None),
        ["business", key, addresses, action] => business::serve(key, addresses, Some(action)),
        ["bad-route-agent", fault, log] => bad::route_agent(fault, log),
        ["within", ref domains @ ..] => within(domains),
        ["guard", "ask", action] => guard::ask(action),
        ["guard", "load", action] => guard::load(action),
        ["stop"] => Ok(kill_process(Pid::INIT, Signal::TERM)?),
        ["ready"] => Client::join(SOCKETS, Duration::from_secs(2)).map(drop).context("joining"),
        _ => bail!(
            "expected agent, sidecar, broker, within, business, bad-route-agent, hold, ready, look, fill, leak, stop, count, guard, routes, load SENDER, or exchange SENDER COUNT, found {words:?}"
        ),
    }
}

fn told() -> anyhow::Result<Arc<AtomicBool>> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [2, 15] {
        signal_hook::flag::register(signal, Arc::clone(&told))?;
    }
    Ok(told)
}

fn hold() -> anyhow::Result<()> {
    let told = told()?;
    while !told.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn broker() -> anyhow::Result<()> {
    let broker = Broker::start()?;
    broker.add_domain(DomainConfig::new("own"))?;
    let name = |text: &str| text.to_owned();
    let who = Identity { namespace: name("own"), pod: name("agent"), uid: name("agent"), service_account: name("own") };
    broker.add_socket("own", Path::new(SOCKETS), who, Rights { join: false, serve: true })?;
    hold()
}

/// A broker of this pod's own: whoever can reach a directory is a container of the pod, and may join and serve.
fn within(domains: &[&str]) -> anyhow::Result<()> {
    let broker = Broker::start()?;
    let of = |name: &str| std::env::var(name).with_context(|| format!("{name}: expected it in the environment"));
    for domain in domains {
        let (name, directory) =
            domain.split_once('=').with_context(|| format!("{domain:?}: expected DOMAIN=DIRECTORY"))?;
        broker.add_domain(DomainConfig::new(name))?;
        let who = Identity {
            namespace: of("POD_NAMESPACE")?,
            pod: of("POD_NAME")?,
            uid: of("POD_NAME")?,
            service_account: "default".into(),
        };
        broker.add_socket(name, Path::new(directory), who, Rights { join: true, serve: true })?;
    }
    hold()
}

/// Joins as often as it may.
fn fill() -> anyhow::Result<()> {
    let told = told()?;
    let mut clients = Vec::new();
    let refused = loop {
        match Client::join(SOCKETS, PATIENCE) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
    };
    println!("{} clients, then: {refused}", clients.len());
    while !told.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Every lookup has to find the value, whatever becomes of the agent.
fn look() -> anyhow::Result<()> {
    let told = told()?;
    let client = Client::join(SOCKETS, PATIENCE).context("joining")?;
    let values = client.table("values")?;
    let (mut value, mut count) = ([0; 64], 0u64);
    while !told.load(Ordering::Relaxed) {
        let length = values.get(KEY, &mut value)?.with_context(|| format!("lookup {count}: the value is gone"))?;
        anyhow::ensure!(&value[..length] == VALUE, "lookup {count}: {:?}", &value[..length]);
        count += 1;
        if count % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if count == 64 {
            println!("begun");
        }
    }
    println!("{count} lookups, all found");
    Ok(())
}

/// What was counted of one sender.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// What this agent was given first: what came before went to its predecessor, which says so.
    first: u64,
    next: u64,
    lost: u64,
    repeated: u64,
}

impl Count {
    fn all_lost(&self) -> u64 {
        self.first + self.lost
    }
}

#[derive(Debug, Default)]
struct Tally {
    of: BTreeMap<u32, Count>,
    corrupt: u64,
}

impl Tally {
    fn bytes(&self) -> Vec<u8> {
        let line = |(sender, count): (&u32, &Count)| {
            format!("{sender} {} {} {}\n", count.next, count.all_lost(), count.repeated)
        };
        self.of.iter().map(line).collect::<String>().into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut of = BTreeMap::new();
        for line in std::str::from_utf8(bytes)?.lines() {
            let words: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let [sender, next, lost, repeated] = words[..] else { bail!("{line:?}: expected four numbers") };
            of.insert(u32::try_from(sender)?, Count { first: 0, next, lost, repeated });
        }
        Ok(Tally { of, corrupt: 0 })
    }

    /// Goes on from what a predecessor has counted.
    fn follow(&mut self, before: Tally) {
        for (sender, then) in before.of {
            let count =
                self.of.entry(sender).or_insert(Count { first: then.next, next: then.next, ..Count::default() });
            count.lost += then.lost + count.first.saturating_sub(then.next);
            count.repeated += then.repeated + then.next.saturating_sub(count.first);
            count.first = 0;
        }
    }
}

impl Handler for Tally {
    fn record(&mut self, record: Record<'_>) {
        let Ok(found) = numbered::decode(record.bytes) else {
            self.corrupt += 1;
            return;
        };
        let first = Count { first: found.sequence, next: found.sequence, ..Count::default() };
        let count = self.of.entry(found.sender).or_insert(first);
        if found.sequence < count.next {
            count.repeated += 1;
            return;
        }
        count.lost += found.sequence - count.next;
        count.next = found.sequence + 1;
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        let sender = <[u8; 4]>::try_from(request.bytes).map(u32::from_le_bytes).unwrap_or_default();
        let count = self.of.get(&sender).copied().unwrap_or_default();
        let text = format!("{} {} {} {}", count.next, count.all_lost(), count.repeated, self.corrupt);
        answer.reply_owned(text.into_bytes());
    }
}

fn agent() -> anyhow::Result<()> {
    let told = told()?;
    let services =
        Agent::builder().table("values", 100, 32 * 1024).queue("records", 64 * 1024, 256).call("tally", 4096, 256);
    let mut agent = services.connect(SOCKETS, PATIENCE).context("connecting to the broker")?;
    agent.table("values")?.put(KEY, VALUE)?;
    agent.ready()?;
    let mut tally = Tally::default();
    let mut has_inherited = false;
    let leaks = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(Signal::USR1.as_raw(), Arc::clone(&leaks))?;
    let mut leaked = Vec::new();
    println!("ready");
    loop {
        if leaks.load(Ordering::Relaxed) {
            leaked.push(vec![1u8; 1 << 20]);
        }
        match agent.poll(&mut tally)? {
            Progress::Handled(_) => {}
            Progress::Idle => agent.wait(Duration::from_millis(20))?,
            Progress::CloseAsked => break,
        }
        if !has_inherited && let Some(state) = agent.inherited_state() {
            has_inherited = true;
            tally.follow(Tally::from_bytes(state)?);
            println!("serving, epoch {}", agent.epoch());
        }
        if told.load(Ordering::Relaxed) {
            break;
        }
    }
    agent.close(tally.bytes())?;
    println!("closed");
    Ok(())
}

fn sidecar() -> anyhow::Result<()> {
    let broker = Broker::start()?;
    broker.add_domain(DomainConfig::new("sidecar"))?;
    // Whoever can reach the directory is a container of this pod.
    let who = |name: &str| name.to_owned();
    let pod = Identity { namespace: who("pod"), pod: who("pod"), uid: who("pod"), service_account: who("default") };
    broker.add_socket("sidecar", SOCKETS.as_ref(), pod, Rights { join: true, serve: true })?;
    agent()
}

/// Pushes so many, or at some pace until it is told to end.
fn exchange(sender: u32, all: Option<u64>) -> anyhow::Result<()> {
    let told = told()?;
    let counter = if all.is_none() { Some(Counter::start()?) } else { None };
    let client = Client::join(SOCKETS, PATIENCE).context("joining")?;
    let (values, records, tally) = (client.table("values")?, client.queue("records")?, client.call("tally")?);
    let mut value = [0; 64];
    let mut record = [0; 64];
    let mut count = 0;
    while all.map_or_else(|| !told.load(Ordering::Relaxed), |all| count < all) {
        numbered::encode_into(&mut record, sender, count);
        records.push(&record, PATIENCE).with_context(|| format!("record {count}"))?;
        count += 1;
        let Some(counter) = &counter else { continue };
        counter.is(count);
        if count % 64 == 0 {
            let length = values.get(KEY, &mut value)?.context("the agent's value is gone")?;
            anyhow::ensure!(&value[..length] == VALUE, "the agent's value is {:?}", &value[..length]);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let length = values.get(KEY, &mut value)?.context("the agent has published nothing")?;
    anyhow::ensure!(&value[..length] == VALUE, "the agent's value is {:?}", &value[..length]);
    let begin = Instant::now();
    loop {
        let mut answer = [0; 256];
        let length = tally.call(&sender.to_le_bytes(), &mut answer, Duration::from_secs(10));
        let said = length.map(|length| String::from_utf8_lossy(&answer[..length]).into_owned());
        match said {
            Ok(said) if said.split(' ').next() == Some(&count.to_string()) => {
                let words: Vec<&str> = said.split(' ').collect();
                println!("{} records, {} lost, {} repeated, {} corrupt", words[0], words[1], words[2], words[3]);
                return Ok(());
            }
            other if begin.elapsed() > PATIENCE => bail!("the agent has counted {other:?}, not {count}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
