//! The route agent as a version that nobody should have let out: the agent's own library, and one fault.

use crate::{SOCKETS, told};
use anyhow::{Context, bail};
use podshm::AgentWaker;
use route_agent::slices::List;
use route_agent::{Config, KubernetesSource, Phase, Probes, Server, Slice, Source, SourceEvent, Step, WatchEvent};
use route_client::wire::Address;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Where the kubelet asks: as the chart has it.
const PROBES: u16 = 9479;
/// How long all is well: what is verified when it comes passes.
const WELL: Duration = Duration::from_secs(18);
/// How long a slow one takes for a round: less than the 5 s that an agent is given to close, or its successor goes on without it, and calls that it
/// had taken are not answered.
const SLOW: Duration = Duration::from_secs(4);
/// What a leaking one takes of its domain's /dev/shm, each second.
const LEAK: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Crashes,
    Leaks,
    AnswersWrongly,
    GetsSlow,
}

/// `bad-route-agent FAULT LOG`: serves as `route-agent --kubernetes --linger --probes` does, and writes down what it is given.
pub fn route_agent(fault: &str, log: &str) -> anyhow::Result<()> {
    let fault = match fault {
        "crashes" => Fault::Crashes,
        "leaks" => Fault::Leaks,
        "answers-wrongly" => Fault::AnswersWrongly,
        "gets-slow" => Fault::GetsSlow,
        other => bail!("expected crashes, leaks, answers-wrongly or gets-slow, found {other:?}"),
    };
    let told = told()?;
    let stop = || told.load(Ordering::Relaxed);
    let probes = Probes::default();
    probes.listen((Ipv4Addr::UNSPECIFIED, PROBES).into()).context("listening for probes")?;
    let source = KubernetesSource::start()?;
    if !source.wait_for_list(stop) {
        return Ok(());
    }
    let mut config = Config::new(SOCKETS);
    (config.version, config.log_delivered) = ("bad".into(), Some(PathBuf::from(log)));
    let mut server = Server::start(config, Wrapped { source, fault })?;
    let (mut serves_since, mut leaked) = (None, 0);
    while !stop() && server.step()? == Step::Serving {
        let phase = if server.stats().epoch > 0 { Phase::Serving } else { Phase::Starting };
        probes.at(phase);
        if phase != Phase::Serving {
            continue;
        }
        let since = serves_since.get_or_insert_with(Instant::now).elapsed();
        match fault {
            Fault::Crashes if since > WELL => std::process::abort(),
            Fault::GetsSlow if since > WELL => std::thread::sleep(SLOW),
            Fault::Leaks if since.as_secs() > leaked => {
                leaked = since.as_secs();
                leak(leaked);
            }
            _ => {}
        }
    }
    server.close()?;
    probes.at(Phase::HandedOver);
    while !stop() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One more object that nobody will ever look at. A full /dev/shm is no reason to end.
fn leak(number: u64) {
    let grown =
        fs::File::create(format!("/dev/shm/leaked-{number}")).and_then(|mut file| file.write_all(&vec![1; LEAK]));
    if let Err(error) = grown {
        println!("leak {number}: {error}");
    }
}

/// The cluster's slices, with addresses of nobody where the fault is that.
struct Wrapped {
    source: KubernetesSource,
    fault: Fault,
}

impl Source for Wrapped {
    fn poll(&mut self, now_ns: u64) -> Option<SourceEvent> {
        let event = self.source.poll(now_ns)?;
        if self.fault != Fault::AnswersWrongly {
            return Some(event);
        }
        Some(match event {
            SourceEvent::Snapshot(list) => {
                SourceEvent::Snapshot(List { slices: list.slices.into_iter().map(wrong).collect(), ..list })
            }
            SourceEvent::Event(WatchEvent::Applied(slice)) => SourceEvent::Event(WatchEvent::Applied(wrong(slice))),
            other => other,
        })
    }

    fn next_due_ns(&self) -> Option<u64> {
        self.source.next_due_ns()
    }

    fn connections(&self) -> u64 {
        self.source.connections()
    }

    fn is_current(&self) -> bool {
        self.source.is_current()
    }

    fn wake_by(&mut self, waker: AgentWaker) {
        self.source.wake_by(waker);
    }
}

fn wrong(mut slice: Slice) -> Slice {
    for (number, endpoint) in (1..).zip(&mut slice.endpoints) {
        endpoint.address = Address::V4(Ipv4Addr::new(192, 0, 2, number));
    }
    slice
}
