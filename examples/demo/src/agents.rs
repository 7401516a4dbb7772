//! The route agent and its successors, one after another.

use crate::run::{Place, Plan, now, program, say, text};
use anyhow::Context;
use podshm_testkit::{Pod, Stdout};
use std::time::Duration;

/// A disturbance: from when to when, in nanoseconds of the monotonic clock.
pub type Span = (u64, u64);

/// The agent that serves, and how to replace it.
pub struct Agents<'a> {
    plan: &'a Plan,
    place: &'a Place,
    serving: Pod,
    started: u32,
}

impl<'a> Agents<'a> {
    /// Starts the first one.
    pub fn start(plan: &'a Plan, place: &'a Place) -> anyhow::Result<Self> {
        Ok(Agents { plan, place, serving: agent(plan, place, 1)?, started: 1 })
    }

    /// Kills the one that serves and starts the next.
    pub fn kill(&mut self, when: &str) -> anyhow::Result<Span> {
        say(&format!("killing v{} with -9 {when}, and starting v{}", self.started, self.started + 1));
        let killed = now();
        self.serving.main().kill9()?;
        self.serving = self.next()?;
        Ok((killed, killed + 2_000_000_000))
    }

    /// Starts the next one beside the one that serves, which ends once it has handed over.
    pub fn upgrade(&mut self, when: &str) -> anyhow::Result<Span> {
        say(&format!("upgrading v{} to v{} {when}", self.started, self.started + 1));
        let begun = now();
        let next = self.next()?;
        let mut old = std::mem::replace(&mut self.serving, next);
        old.main()
            .wait_within(Duration::from_secs(15))
            .context("an agent does not end after its successor took over")?;
        Ok((begun, now() + 200_000_000))
    }

    /// Asks the last one to end.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.serving.signal(rustix::process::Signal::TERM)?;
        self.serving.wait_within(Duration::from_secs(15)).context("the last agent does not end on SIGTERM")?;
        Ok(())
    }

    fn next(&mut self) -> anyhow::Result<Pod> {
        self.started += 1;
        agent(self.plan, self.place, self.started)
    }
}

fn agent(plan: &Plan, place: &Place, version: u32) -> anyhow::Result<Pod> {
    let input = place.root.join("input");
    let arguments = [
        "--socket-dir".to_owned(),
        podshm_testkit::SOCKET_DIR.into(),
        "--endpointslices".into(),
        text(&input.join("endpointslices.json")),
        "--events".into(),
        text(&input.join("endpointslice-events.jsonl")),
        "--events-over".into(),
        plan.seconds.to_string(),
        "--agent-version".into(),
        format!("v{version}"),
        "--log-delivered".into(),
        text(&place.root.join("log/delivered")),
    ];
    let pod = Pod::builder(format!("agent-v{version}"))
        .uid(10_000 + version)
        .socket_dir(place.socket_dir("agent")?)
        .bind(&input, text(&input), true)
        .bind(place.root.join("log"), text(&place.root.join("log")), false)
        .stdout(Stdout::Null)
        .spawn(text(&program("route-agent")?), &arguments)?;
    Ok(pod)
}
