//! `podshm verify`: a real round trip with the agent of this node, from inside a pod. What a rollout's verification pods run.

use anyhow::{Context, ensure};
use podshm::Client;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest value and the longest answer that are looked at.
const ROOM: usize = 64 * 1024;

/// What `podshm verify` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the domain's volume is.
    #[arg(long, default_value = "/run/podshm")]
    volume: PathBuf,
    /// TABLE:KEY is in the table, or TABLE:KEY=VALUE with that value.
    #[arg(long, value_name = "TABLE:KEY[=VALUE]", value_parser = wanted)]
    lookup: Vec<Wanted>,
    /// The agent takes RECORD from QUEUE.
    #[arg(long, value_name = "QUEUE:RECORD", value_parser = wanted)]
    report: Vec<Wanted>,
    /// CALL answers REQUEST, or with that very ANSWER.
    #[arg(long, value_name = "CALL:REQUEST[=ANSWER]", value_parser = wanted)]
    call: Vec<Wanted>,
    /// The domain's /dev/shm has an object of this name, or NAME=TEXT with this text in it.
    #[arg(long, value_name = "NAME[=TEXT]")]
    posix: Vec<String>,
    /// How often all of it is done.
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

/// Does it, and says how long the slowest took.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let within = Duration::from_millis(arguments.within);
    let client = Client::join(&arguments.volume, Duration::from_millis(arguments.join_within))
        .with_context(|| format!("joining by {}", arguments.volume.display()))?;
    let mut slowest = Duration::ZERO;
    let mut timed = |what: &str, done: &mut dyn FnMut() -> anyhow::Result<()>| {
        let begin = Instant::now();
        done().with_context(|| what.to_owned())?;
        let took = begin.elapsed();
        ensure!(took <= within, "{what} took {} ms, {} expected at most", took.as_millis(), within.as_millis());
        slowest = slowest.max(took);
        anyhow::Ok(())
    };
    for _ in 0..arguments.rounds {
        for one in &arguments.lookup {
            let table = client.table(&one.service).with_context(|| format!("table {}", one.service))?;
            timed(&format!("looking up {:?} in table {}", one.given, one.service), &mut || {
                let mut value = vec![0; ROOM];
                let length = table.get(one.given.as_bytes(), &mut value)?.context("it is not there")?;
                is_expected(&value[..length.min(ROOM)], one.expected.as_deref())
            })?;
        }
        for one in &arguments.report {
            let queue = client.queue(&one.service).with_context(|| format!("queue {}", one.service))?;
            timed(&format!("reporting to queue {}", one.service), &mut || {
                queue.push(one.given.as_bytes(), within)?;
                Ok(())
            })?;
        }
        for one in &arguments.call {
            let call = client.call(&one.service).with_context(|| format!("call {}", one.service))?;
            timed(&format!("calling {}", one.service), &mut || {
                let mut answer = vec![0; ROOM];
                let length = call.call(one.given.as_bytes(), &mut answer, within)?;
                is_expected(&answer[..length], one.expected.as_deref())
            })?;
        }
    }
    for one in &arguments.posix {
        let (name, expected) = one.split_once('=').map_or((one.as_str(), None), |(name, text)| (name, Some(text)));
        timed(&format!("/dev/shm/{name}"), &mut || {
            ensure!(!name.contains('/'), "expected a name, found a path");
            let found = std::fs::read(PathBuf::from("/dev/shm").join(name))?;
            is_expected(&found[..found.len().min(expected.map_or(0, str::len))], expected)
        })?;
    }
    let (domain, rounds) = (client.domain(), arguments.rounds);
    println!("domain {domain}: all as expected, {rounds} rounds, the slowest of all took {} µs", slowest.as_micros());
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
}
