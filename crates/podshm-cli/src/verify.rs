//! `podshm verify`: a real round trip with the agent of this node, from inside a pod. What a rollout's verification pods run.

mod shared;

use anyhow::{Context, ensure};
use podshm::{Client, QueueSender};
use shared::Object;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest value and the longest answer that are looked at.
const ROOM: usize = 64 * 1024;
/// How often it is looked whether the agent has taken a record.
const LOOK: Duration = Duration::from_micros(100);

/// What `podshm verify` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the domain's volume is. It is joined where lookups, reports or calls are asked for, or nothing at all; a domain without mode
    /// channel has nobody who would let one join.
    #[arg(long, default_value = "/run/podshm")]
    volume: PathBuf,
    /// TABLE:KEY is in the table, or TABLE:KEY=VALUE with that value.
    #[arg(long, value_name = "TABLE:KEY[=VALUE]", value_parser = wanted)]
    lookup: Vec<Wanted>,
    /// The agent takes RECORD from QUEUE: it has handled it within --within.
    #[arg(long, value_name = "QUEUE:RECORD", value_parser = wanted)]
    report: Vec<Wanted>,
    /// CALL answers REQUEST, or with that very ANSWER.
    #[arg(long, value_name = "CALL:REQUEST[=ANSWER]", value_parser = wanted)]
    call: Vec<Wanted>,
    /// The domain's /dev/shm has an object of this name that can be mapped, of BYTES at least, or with TEXT at its beginning.
    #[arg(long, value_name = "NAME[,BYTES][=TEXT]", value_parser = shared::object)]
    posix: Vec<Object>,
    /// An object of this name, which nobody has, can be made in the domain's /dev/shm, written, read again by another mapping, and removed.
    #[arg(long, value_name = "NAME")]
    posix_write: Vec<String>,
    /// There is a System V segment of this key (decimal, or 0x…) that can be attached, of BYTES at least, or with TEXT at its beginning. In a
    /// domain whose System V memory comes by preload this has to be a program that takes LD_PRELOAD, which a static one does not.
    #[arg(long, value_name = "KEY[,BYTES][=TEXT]", value_parser = shared::object)]
    sysv: Vec<Object>,
    /// A segment of this key, which nobody has, can be made, written, read again by another attachment, and removed.
    #[arg(long, value_name = "KEY", value_parser = shared::key)]
    sysv_write: Vec<i32>,
    /// How often lookups, reports and calls are done.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// How long joining may take, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    join_within: u64,
    /// How long any one of the rest may take, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    within: u64,
}

/// A service, what is given to it, and what should come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    service: String,
    given: String,
    expected: Option<String>,
}

fn wanted(text: &str) -> Result<Wanted, String> {
    let (service, rest) = text.split_once(':').ok_or("expected SERVICE:WHAT, or SERVICE:WHAT=EXPECTED")?;
    let (given, expected) = match rest.split_once('=') {
        Some((given, expected)) => (given, Some(expected.to_owned())),
        None => (rest, None),
    };
    Ok(Wanted { service: service.into(), given: given.into(), expected })
}

/// Does each of it within its time, and knows how long the slowest took.
struct Timed {
    within: Duration,
    slowest: Duration,
}

impl Timed {
    fn does(&mut self, what: &str, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (begin, within) = (Instant::now(), self.within);
        work().with_context(|| what.to_owned())?;
        let took = begin.elapsed();
        ensure!(took <= within, "{what} took {} ms, {} expected at most", took.as_millis(), within.as_millis());
        self.slowest = self.slowest.max(took);
        Ok(())
    }
}

/// Does it, and says how long the slowest took.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut timed = Timed { within: Duration::from_millis(arguments.within), slowest: Duration::ZERO };
    let is_channel = !(arguments.lookup.is_empty() && arguments.report.is_empty() && arguments.call.is_empty());
    let is_memory = !(arguments.posix.is_empty()
        && arguments.posix_write.is_empty()
        && arguments.sysv.is_empty()
        && arguments.sysv_write.is_empty());
    let mut of = "shared memory".to_owned();
    if is_channel || !is_memory {
        let client = Client::join(&arguments.volume, Duration::from_millis(arguments.join_within))
            .with_context(|| format!("joining by {}", arguments.volume.display()))?;
        for _ in 0..arguments.rounds {
            round(&client, arguments, &mut timed)?;
        }
        of = format!("domain {}", client.domain());
    }
    for one in &arguments.posix {
        timed.does(&format!("/dev/shm/{}", one.name), || shared::posix(one))?;
    }
    for name in &arguments.posix_write {
        timed.does(&format!("making /dev/shm/{name}"), || shared::posix_write(name))?;
    }
    for one in &arguments.sysv {
        timed.does(&format!("System V segment {}", one.name), || shared::sysv(one))?;
    }
    for key in &arguments.sysv_write {
        timed.does(&format!("making System V segment {key:#x}"), || shared::sysv_write(*key))?;
    }
    let (rounds, slowest) = (arguments.rounds, timed.slowest.as_micros());
    println!("{of}: all as expected, {rounds} rounds, the slowest of all took {slowest} µs");
    Ok(())
}

fn round(client: &Client, arguments: &Arguments, timed: &mut Timed) -> anyhow::Result<()> {
    let within = timed.within;
    for one in &arguments.lookup {
        let table = client.table(&one.service).with_context(|| format!("table {}", one.service))?;
        timed.does(&format!("looking up {:?} in table {}", one.given, one.service), || {
            let mut value = vec![0; ROOM];
            let length = table.get(one.given.as_bytes(), &mut value)?.context("it is not there")?;
            is_expected(&value[..length.min(ROOM)], one.expected.as_deref())
        })?;
    }
    for one in &arguments.report {
        let queue = client.queue(&one.service).with_context(|| format!("queue {}", one.service))?;
        timed
            .does(&format!("reporting to queue {}", one.service), || is_taken(&queue, one.given.as_bytes(), within))?;
    }
    for one in &arguments.call {
        let call = client.call(&one.service).with_context(|| format!("call {}", one.service))?;
        timed.does(&format!("calling {}", one.service), || {
            let mut answer = vec![0; ROOM];
            let length = call.call(one.given.as_bytes(), &mut answer, within)?;
            is_expected(&answer[..length], one.expected.as_deref())
        })?;
    }
    Ok(())
}

/// That there is room for a record says nothing of the agent: it is to have handled it.
fn is_taken(queue: &QueueSender, record: &[u8], within: Duration) -> anyhow::Result<()> {
    let begin = Instant::now();
    let position = queue.push(record, within)?;
    while queue.taken()? <= position {
        ensure!(begin.elapsed() <= within, "the agent has not taken the record within {} ms", within.as_millis());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn is_expected(found: &[u8], expected: Option<&str>) -> anyhow::Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let text = String::from_utf8_lossy(&found[..found.len().min(200)]);
    ensure!(found == expected.as_bytes(), "expected {expected:?}, found {text:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podshm::{Agent, Handler, Progress};
    use podshm_broker::{Broker, DomainConfig, Identity, Rights};
    use std::sync::atomic::{AtomicBool, Ordering};

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn what_is_wanted_may_have_colons_and_equals_after_the_first() {
        let of = |service: &str, given: &str, expected: Option<&str>| Wanted {
            service: service.into(),
            given: given.into(),
            expected: expected.map(str::to_owned),
        };
        assert_eq!(wanted("routes:shop/cart:80"), Ok(of("routes", "shop/cart:80", None)));
        assert_eq!(wanted("values:greeting=a=b"), Ok(of("values", "greeting", Some("a=b"))));
        assert_eq!(wanted("tally:"), Ok(of("tally", "", None)));
        assert!(wanted("greeting").unwrap_err().contains("SERVICE:WHAT"));
    }

    struct Takes;

    impl Handler for Takes {
        fn record(&mut self, _: podshm::Record<'_>) {}
    }

    #[test]
    fn a_report_is_well_once_the_agent_has_taken_it_and_not_because_there_is_room() {
        let root = std::env::temp_dir().join(format!("podshm-verify-{}", std::process::id()));
        let broker = Broker::start().unwrap();
        broker.add_domain(DomainConfig { map_deadline: PATIENCE * 3, ..DomainConfig::new("d") }).unwrap();
        for (pod, serve) in [("agent", true), ("business", false)] {
            let directory = root.join(pod);
            std::fs::create_dir_all(&directory).unwrap();
            let (namespace, service_account) = ("test".into(), "default".into());
            let who = Identity { namespace, pod: pod.into(), uid: pod.into(), service_account };
            broker.add_socket("d", &directory, who, Rights { join: !serve, serve }).unwrap();
        }
        let (takes, stops) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut agent =
                    Agent::builder().queue("reports", 64 * 1024, 1024).connect(root.join("agent"), PATIENCE).unwrap();
                agent.ready().unwrap();
                while !stops.load(Ordering::Relaxed) {
                    if takes.load(Ordering::Relaxed) {
                        while let Progress::Handled(_) = agent.poll(&mut Takes).unwrap() {}
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let client = Client::join(root.join("business"), PATIENCE).unwrap();
            let queue = client.queue("reports").unwrap();
            let error = is_taken(&queue, b"hello", Duration::from_millis(50)).unwrap_err().to_string();
            assert!(error.contains("the agent has not taken the record within 50 ms"), "{error}");
            takes.store(true, Ordering::Relaxed);
            let ended = is_taken(&queue, b"hello", PATIENCE);
            stops.store(true, Ordering::Relaxed);
            ended.unwrap();
        });
        std::fs::remove_dir_all(&root).unwrap();
    }
}
