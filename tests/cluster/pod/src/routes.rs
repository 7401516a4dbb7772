//! Business pods that use routes.

use crate::counter::Counter;
use crate::told;
use anyhow::Context;
use route_client::{Outcome, Route, RouteClient, SmallRandom, Trailer};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

const SOCKETS: &str = "/run/podshm";
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest value that is looked at here.
const LONGEST: usize = 64 * 1024;

/// A route's endpoints as the table has them: those that take new work, sorted; `none` where there is no such route.
struct Lookup {
    // While it is there the pod is a client of its domain.
    _client: RouteClient,
    table: podshm::Table,
    buffer: Vec<u8>,
}

impl Lookup {
    fn join() -> anyhow::Result<Self> {
        let client = RouteClient::join(SOCKETS, PATIENCE).context("joining")?;
        Ok(Self { table: client.client().table("routes")?, _client: client, buffer: vec![0; LONGEST] })
    }

    fn ready(&mut self, key: &str) -> anyhow::Result<String> {
        let Some(length) = self.table.get(key.as_bytes(), &mut self.buffer)? else { return Ok("none".into()) };
        let route = Route::decode(&mut &self.buffer[..length])?;
        let ready = route.endpoints.iter().filter(|e| e.ready).map(|e| format!("{}:{}", e.address, e.port));
        Ok(ready.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(","))
    }
}

/// `join`: a client that does nothing.
pub fn join() -> anyhow::Result<()> {
    let _client = RouteClient::join(SOCKETS, PATIENCE).context("joining")?;
    println!("joined");
    crate::hold()
}

/// `lookup KEY`: what is there now.
pub fn lookup(key: &str) -> anyhow::Result<()> {
    println!("{}", Lookup::join()?.ready(key)?);
    Ok(())
}

/// `follow KEY`: a line for each value that is seen: when, in ns since 1970, and its endpoints. Until it is told to end.
pub fn follow(key: &str) -> anyhow::Result<()> {
    let told = told()?;
    let (mut lookup, mut last) = (Lookup::join()?, String::new());
    while !told.load(Ordering::Relaxed) {
        let seen = lookup.ready(key)?;
        if seen != last {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
            println!("{now} {seen}");
            last = seen;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// `load SENDER KEY`: picks and reports, at some pace, until it is told to end. A pick that fails ends it.
pub fn load(sender: u32, key: &str) -> anyhow::Result<()> {
    let (told, counter) = (told()?, Counter::start()?);
    let client = RouteClient::join(SOCKETS, PATIENCE).context("joining")?;
    let mut route = client.route(key)?;
    let mut random = SmallRandom::new(sender.into());
    let (mut count, mut oldest) = (0, Duration::ZERO);
    let mut longest = Duration::ZERO;
    while !told.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let picked = route.pick(&mut random).with_context(|| format!("pick {count}"))?;
        longest = longest.max(begin.elapsed());
        let what = (picked.record.id, Outcome::Success, Duration::from_millis(1));
        let trailer = Trailer { sender, seq: count };
        client.report_numbered(&route, what, trailer, PATIENCE).with_context(|| format!("report {count}"))?;
        count += 1;
        counter.is(count);
        if count % 64 == 0 {
            oldest = oldest.max(client.age()?);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let (longest, oldest) = (longest.as_micros(), oldest.as_millis());
    println!("{count} picks and reports, longest pick {longest} us, oldest routes {oldest} ms");
    Ok(())
}
