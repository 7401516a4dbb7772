//! One run: the node is set up, left alone for a while, disturbed on schedule, and taken down; then the logs are judged.

mod inject;

use crate::agents::{Agents, Variant};
use crate::clients::ClientPod;
use crate::entry::now;
use crate::node::{BrokerPod, PATIENCE, Place, QuickMoves, Usage};
use crate::roles::agent::{RECORD, RING};
use crate::schedule::{Domain, Kind, Planned, Schedule, Target};
use crate::verdict::{Fault, Judge, Reach, Verdict};
use anyhow::Context;
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long faults are injected.
    pub duration: Duration,
    /// So many faults are to be injected: where that takes longer, on a machine that is busy, up to four times as long.
    pub enough: usize,
    /// How long nothing is, before.
    pub control: Duration,
    /// Of the schedule.
    pub seed: u64,
    /// Client pods.
    pub clients: u32,
    /// Between two faults, on average and at least.
    pub mean_gap: Duration,
    /// How long a client's threads rest between two rounds.
    pub pace: Duration,
    /// Where the route agent's input is.
    pub data: PathBuf,
    /// Whether the broker is killed and restarted, too.
    pub broker_restarts: bool,
    /// A bug of the agents of domain `work`, see [`crate::roles::agent::Bug`].
    pub bug: Option<String>,
    /// Only these kinds of faults, where there are any.
    pub only: Vec<Kind>,
    /// Whether the logs stay when all is well, too.
    pub keeps_logs: bool,
    /// Whether to say what is done.
    pub is_verbose: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// From the logs.
    pub verdict: Verdict,
    /// The broker before the first fault, after the last one with everybody there, and after everybody has left.
    pub usage: [Usage; 3],
    /// Agents of each domain, and client processes.
    pub processes: [usize; 3],
    /// How long faults were injected.
    pub took: Duration,
    /// How often this harness itself stood still for more than a second, and how long at most: while a process went into a pod, or the
    /// whole machine was. Whoever was to be continued or started again then waited for that.
    pub stood_still: (u32, Duration),
}

/// Somebody who is to be continued.
struct Stopped {
    due: u64,
    whom: Whom,
    fault: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// A generation of a domain's agents.
    Agent(Domain, usize),
    Client(u32),
    Broker,
}

/// Everything that runs, and what was done to it.
struct Run<'a> {
    plan: &'a Plan,
    broker: BrokerPod,
    agents: [Agents; 2],
    clients: Vec<ClientPod>,
    faults: Vec<Fault>,
    /// Faults whose victims are not back yet.
    open: Vec<usize>,
    stopped: Vec<Stopped>,
    began: Instant,
    /// When everybody was looked after last.
    looked: Instant,
    stood_still: (u32, Duration),
    /// Agents of each domain that the broker refused.
    refused: [u64; 2],
    /// Since when the current agent of each domain has been seen to serve.
    serving_since: [Option<Instant>; 2],
    broken: Vec<String>,
    _moves: QuickMoves,
    /// Last, so that nobody is there to write to it when it is removed.
    place: Place,
}

/// Faults whose victims are not back from their last one.
const MOST_WAITING: usize = 32;
/// How long an agent serves before its successor is started, where there is to be something to hand over.
const SETTLED: Duration = Duration::from_millis(100);

/// Runs it.
pub fn run(plan: &Plan) -> anyhow::Result<Report> {
    let mut run = Run::start(plan)?;
    match run.all() {
        Ok(report) => {
            // With a planted bug nobody looks for the reason.
            let is_odd = plan.bug.is_none() && !report.verdict.broken.is_empty();
            run.place.keep = plan.keeps_logs || is_odd;
            Ok(report)
        }
        Err(error) => {
            run.place.keep = true;
            Err(error.context(format!("seed {}; logs stay in {}", plan.seed, run.place.log("").display())))
        }
    }
}

impl<'a> Run<'a> {
    fn start(plan: &'a Plan) -> anyhow::Result<Run<'a>> {
        let place = Place::new(&plan.data)?;
        std::fs::write(place.log("stderr"), "")?;
        let moves = QuickMoves::start()?;
        let broker = BrokerPod::start(&place, plan.clients, 1)?;
        let agents = [Agents::new(&place, Domain::Work, plan.bug.clone())?, Agents::new(&place, Domain::Routes, None)?];
        let clients = (0..plan.clients).map(|n| ClientPod::new(&place, n, plan.pace)).collect::<Result<_, _>>()?;
        let mut run = Run {
            plan,
            _moves: moves,
            place,
            broker,
            agents,
            clients,
            faults: Vec::new(),
            open: Vec::new(),
            stopped: Vec::new(),
            began: Instant::now(),
            looked: Instant::now(),
            stood_still: (0, Duration::ZERO),
            serving_since: [None; 2],
            refused: [0; 2],
            broken: Vec::new(),
        };
        for domain in Domain::ALL {
            run.next_agent(domain, &Variant::default())?;
            run.await_ready(Target::Agent(domain))?;
        }
        for client in &mut run.clients {
            client.next(&run.place)?;
        }
        for number in 0..plan.clients {
            run.await_ready(Target::Client(number))?;
        }
        Ok(run)
    }

    fn all(&mut self) -> anyhow::Result<Report> {
        self.pass(self.plan.control)?;
        let before = self.broker.usage();
        let began = Instant::now();
        self.looked = began;
        self.disturb(began + self.plan.duration)?;
        let took = began.elapsed();
        let after = self.calm_down()?;
        self.take_down()?;
        let end = self.broker.usage();
        let verdict = self.judge(&before, &end)?;
        let client_processes = self.clients.iter().map(ClientPod::count).sum();
        let processes = [self.agents[0].count(), self.agents[1].count(), client_processes];
        let stood_still = self.stood_still;
        Ok(Report { verdict, usage: [before, after, end], processes, took, stood_still })
    }

    /// Faults come as the schedule says. Who is not back from his last one keeps nobody else waiting: everybody gets his own in order,
    /// which is what a seed replays.
    fn disturb(&mut self, until: Instant) -> anyhow::Result<()> {
        let plan = self.plan;
        let all = Schedule::new(plan.seed, plan.clients, plan.mean_gap, plan.broker_restarts);
        let mut all = all.filter(|planned| plan.only.is_empty() || plan.only.contains(&planned.kind));
        let mut waiting: Vec<Planned> = Vec::new();
        let mut next = Instant::now();
        let mut progress = next;
        let latest = until + plan.duration * 3;
        while Instant::now() < until || (self.faults.len() < plan.enough && Instant::now() < latest) {
            self.look_after()?;
            while waiting.len() < MOST_WAITING
                && Instant::now() >= next
                && let Some(planned) = all.next()
            {
                next += planned.gap;
                waiting.push(planned);
            }
            let mut held: Vec<Target> = Vec::new();
            let ready = waiting.iter().position(|planned| {
                let is_first = !held.contains(&planned.target);
                held.push(planned.target);
                is_first && self.is_ready_for(planned)
            });
            match ready {
                Some(at) => {
                    let planned = waiting.remove(at);
                    self.inject(&planned).with_context(|| format!("injecting {planned:?}"))?;
                    progress = Instant::now();
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            if waiting.is_empty() {
                progress = Instant::now();
            }
            anyhow::ensure!(progress.elapsed() < PATIENCE, "nobody is back: {waiting:?}; {:?}", self.broker.books());
        }
        Ok(())
    }

    fn is_ready_for(&mut self, planned: &Planned) -> bool {
        // Long enough at work to have something to hand over.
        let settled = match (planned.kind, planned.target) {
            (kind, Target::Agent(domain)) if kind.hands_over() => {
                let since = self.serving_since[domain as usize];
                since.is_some_and(|since| since.elapsed() > SETTLED)
            }
            _ => true,
        };
        settled && self.is_ready(planned.target)
    }

    /// Everybody comes back and works; the broker as it is then.
    fn calm_down(&mut self) -> anyhow::Result<Usage> {
        self.await_ready(Target::Broker)?;
        for domain in Domain::ALL {
            // The last one is what every release is: not on its way to a named step, and of today's layout.
            self.await_ready(Target::Agent(domain))?;
            self.next_agent(domain, &Variant::default())?;
            self.await_ready(Target::Agent(domain))?;
        }
        for number in 0..self.plan.clients {
            self.await_ready(Target::Client(number))?;
        }
        self.pass(Duration::from_millis(500))?;
        Ok(self.broker.usage())
    }

    /// Everybody leaves in order, and what they had is free.
    fn take_down(&mut self) -> anyhow::Result<()> {
        self.clients.iter().for_each(|client| client.signal(Signal::TERM));
        self.clients.iter_mut().try_for_each(ClientPod::leave)?;
        self.broker.await_books("all clients are drained", |books| books.iter().all(|b| b.clients == 0))?;
        for agents in &mut self.agents {
            agents.terminate();
            let until = Instant::now() + PATIENCE;
            while agents.take_ended()?.is_none() {
                anyhow::ensure!(Instant::now() < until, "the last agent of {} does not end", agents.domain.name());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // Whoever comes back to a broker after somebody else has served in its place is told so, which counts as a refusal.
        let (refused, may_be) = (self.refused, self.plan.broker_restarts);
        self.broker.await_books("everything but both tables is free, nothing was discarded, nobody refused", |books| {
            let free = books.iter().all(|b| b.agent == 0 && b.regions == 2 && b.discarded == 0);
            free && (may_be || books.iter().map(|b| b.refused).eq(refused))
        })
    }

    fn judge(&mut self, before: &Usage, end: &Usage) -> anyhow::Result<Verdict> {
        let work = Reach { batch: u64::from(RING / 4 + 2 * RECORD), ring: RING.into() };
        let routes = Reach { batch: 16 * 1024 + 512, ring: route_agent::serve::REPORT_RING.into() };
        let mut judge = Judge::new(std::mem::take(&mut self.faults), [work, routes]);
        self.agents.iter().try_for_each(|agents| agents.tell(&mut judge))?;
        self.clients.iter().try_for_each(|client| client.tell(&mut judge))?;
        let kills = judge.kills_of_agents();
        // A crash at a random moment finds a batch in hand about every other time.
        let mut verdict = judge.conclude(u64::from(kills >= 10));
        verdict.broken.append(&mut self.broken);
        let squeezed = self.agents.iter().map(Agents::squeezed).chain(self.clients.iter().map(ClientPod::squeezed));
        for (told, killed) in squeezed.chain([(0, self.broker.oom_kills())]) {
            // Within a pod the kernel chooses: it may take the process that only waits there, too.
            if (told == 0 && killed > 0) || killed < told {
                verdict
                    .broken
                    .push(format!("{told} processes of a pod were to be out of memory, {killed} were killed for it"));
            }
        }
        if end.descriptors > before.descriptors {
            let (before, end) = (before.descriptors, end.descriptors);
            verdict.broken.push(format!("the broker had {before} descriptors with everybody there, {end} with nobody"));
        }
        Ok(verdict)
    }

    fn next_agent(&mut self, domain: Domain, variant: &Variant) -> anyhow::Result<()> {
        self.agents[domain as usize].next(&self.place, &self.broker, variant)
    }

    /// Lets time pass, in which whoever was stopped is continued and whoever died of its own is replaced.
    fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        loop {
            self.look_after()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(2)));
        }
    }

    fn await_ready(&mut self, target: Target) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.is_ready(target) {
            anyhow::ensure!(
                Instant::now() < until,
                "{target:?} is not back within {PATIENCE:?}; {:?}",
                self.broker.books()
            );
            self.pass(Duration::from_millis(1))?;
        }
        Ok(())
    }

    fn is_ready(&mut self, target: Target) -> bool {
        let is_stopped = |whom: &dyn Fn(Whom) -> bool| self.stopped.iter().any(|stopped| whom(stopped.whom));
        match target {
            Target::Agent(domain) => {
                let agents = &self.agents[domain as usize];
                !agents.has_leaving()
                    && !is_stopped(&|whom| matches!(whom, Whom::Agent(of, _) if of == domain))
                    && agents.serves(&self.broker)
            }
            Target::Client(number) => {
                !is_stopped(&|whom| whom == Whom::Client(number)) && self.clients[number as usize].has_joined()
            }
            Target::Broker => !is_stopped(&|whom| whom == Whom::Broker),
        }
    }

    fn look_after(&mut self) -> anyhow::Result<()> {
        let now = now();
        let since_last = self.looked.elapsed();
        self.looked = Instant::now();
        if since_last > Duration::from_secs(1) {
            self.stood_still = (self.stood_still.0 + 1, self.stood_still.1.max(since_last));
        }
        for stopped in self.stopped.extract_if(.., |stopped| stopped.due <= now) {
            match stopped.whom {
                Whom::Agent(domain, generation) => {
                    self.agents[domain as usize].signal_generation(generation, Signal::CONT);
                }
                Whom::Client(number) => self.clients[number as usize].signal(Signal::CONT),
                Whom::Broker => self.broker.signal(Signal::CONT)?,
            }
            self.faults[stopped.fault].until = now;
        }
        for domain in Domain::ALL {
            let agents = &mut self.agents[domain as usize];
            let odd = agents.reap()?;
            let ended = agents.take_ended()?;
            for ended in odd.iter().chain(&ended) {
                if ended.is_at_step() {
                    self.note(Kind::StepKill, Target::Agent(domain), now);
                } else if ended.is_terminated {
                    // As it was to.
                } else if ended.is_squeezed {
                    self.note(Kind::AgentSqueeze, Target::Agent(domain), now);
                } else if !self.was_refused(domain) {
                    self.broken.push(format!("{}: an agent ended by itself: {ended:?}", domain.name()));
                }
            }
            if ended.is_some() {
                self.next_agent(domain, &Variant::default())?;
            }
            let since = &mut self.serving_since[domain as usize];
            *since = self.agents[domain as usize].serves(&self.broker).then(|| since.unwrap_or_else(Instant::now));
        }
        for number in 0..self.clients.len() {
            if self.clients[number].take_squeezed()? {
                self.note(Kind::ClientSqueeze, Target::Client(number as u32), now);
                self.clients[number].next(&self.place)?;
            }
            if let Some(how) = self.clients[number].has_ended()? {
                anyhow::bail!(how);
            }
        }
        for fault in std::mem::take(&mut self.open) {
            let target = self.faults[fault].target;
            match self.is_back(target) {
                true => self.faults[fault].until = now,
                false => self.open.push(fault),
            }
        }
        Ok(())
    }

    /// Whether the broker has refused an agent since this was asked last: one that comes while it has not noticed yet that the successor
    /// before has died. Whoever runs agents starts another one then, and so does this harness.
    fn was_refused(&mut self, domain: Domain) -> bool {
        let until = Instant::now() + Duration::from_secs(1);
        let known = self.refused[domain as usize];
        while self.broker.books()[domain as usize].refused == known && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_so = self.broker.books()[domain as usize].refused > known;
        self.refused[domain as usize] += u64::from(is_so);
        is_so
    }

    /// [`Run::is_ready`], whether or not a predecessor has ended by now.
    fn is_back(&mut self, target: Target) -> bool {
        match target {
            Target::Agent(domain) => self.agents[domain as usize].serves(&self.broker),
            other => self.is_ready(other),
        }
    }

    /// Writes a fault down whose victim comes back later.
    fn note(&mut self, kind: Kind, target: Target, at: u64) -> usize {
        if self.plan.is_verbose {
            let at = self.began.elapsed().as_secs_f64();
            println!("{at:>8.3} {:>6} {} {target:?}", self.faults.len(), kind.name());
        }
        let fault = self.faults.len();
        self.faults.push(Fault { kind, target, at, until: at });
        self.open.push(fault);
        fault
    }

    fn stop(&mut self, planned: &Planned, whom: Whom, length: Duration) {
        let at = now();
        let fault = self.note(planned.kind, planned.target, at);
        self.open.retain(|open| *open != fault);
        self.stopped.push(Stopped { due: at + length.as_nanos() as u64, whom, fault });
    }
}
