//! What came of it all, from the participants' logs and the list of faults alone: pure, no I/O.
//!
//! ```text
//!  agents' logs, generation by generation ──► who got what, marked or not, in which order ─┐
//!  clients' logs ──► what was accepted, how calls ended, how long was waited ──────────────┼──► Verdict: numbers, promises broken
//!  the list of faults ──► which of them hit work in flight ────────────────────────────────┘
//! ```
//! Generations are told before clients, each in the order in which it was started: an old one that wakes up late counts as earlier, as
//! its marks would have it.

use crate::entry::{Entry, MARKED, Outcome, What};
use crate::gaps::{Gaps, Wait};
use crate::schedule::{Domain, Kind, Target};
use podshm_testkit::numbered::{Checker, Seen};
use std::collections::{BTreeMap, BTreeSet};

/// Calls, in the order of their numbers in logs.
pub const CALLS: [&str; 5] = ["decide", "again", "slow", "bulk", "explain"];
/// The call that may be handled twice and whose handling is logged.
pub const AGAIN: u16 = 1;
/// The call that the route agent answers, which logs no calls.
pub const EXPLAIN: u16 = 4;

/// A fault that was injected.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// When.
    pub at: u64,
    /// When whom it hit was at work again.
    pub until: u64,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order, for a successor or because it was asked to.
    Closed,
    /// In any other way.
    Died,
}

/// How a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// In order.
    Left,
    /// Killed at this moment, or a little later.
    Died(u64),
}

/// The moment at which an agent closed its first ring for a successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    at: u64,
    generation: usize,
    /// Calls that were in its handlers when it was asked to close.
    pub in_handler: u64,
    /// Calls of which a part was in a ring and another was not.
    pub half_sent: u64,
    /// Records that were accepted and that a successor got.
    pub backlog: u64,
}

impl Cut {
    /// Something was not in flight: such a hand-over proves little, and does not count.
    pub fn is_short(&self) -> bool {
        self.in_handler == 0 || self.half_sent == 0 || self.backlog == 0
    }
}

#[derive(Clone, Debug, Default)]
struct Sender {
    /// Numbers from here on were first given to this generation.
    first_by: Vec<(u64, usize)>,
    /// Who got it last, of those that were given more than once.
    again_by: BTreeMap<u64, usize>,
}

#[derive(Debug, Default)]
struct InDomain {
    checker: Checker,
    senders: BTreeMap<u32, Sender>,
    ends: Vec<End>,
    known: BTreeSet<u32>,
    /// The longest way, in bytes of a ring, between two records that one generation was given again, where it is too long; and what is not.
    too_wide: Option<(u64, u64)>,
    after_close: u64,
}

/// Of so many hand-overs one may have come where its workload paused: the machine stands still at times, and clients are killed all along.
const SHORT_CUTS: usize = 20;

/// How many bytes of a ring may be given again.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// After an agent that died: what it may have had in hand.
    pub batch: u64,
    /// After a broker that died with agents: whatever the ring can hold (SEMANTICS.md, "The broker's restart").
    pub ring: u64,
}

/// Collects, then judges.
#[derive(Debug)]
pub struct Judge {
    faults: Vec<Fault>,
    in_flight: Vec<u32>,
    /// Of each domain.
    reach: [Reach; 2],
    domains: [InDomain; 2],
    handled: BTreeMap<(u32, u16, u64), u32>,
    cuts: Vec<Cut>,
    waits: Vec<Wait>,
    verdict: Verdict,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Faults that hit work in flight, and all of them, by kind.
    pub faults: BTreeMap<Kind, (u64, u64)>,
    /// Records accepted, by domain.
    pub accepted: [u64; 2],
    /// Different records delivered.
    pub delivered: [u64; 2],
    /// Records delivered again, marked.
    pub marked: [u64; 2],
    /// Records delivered again without a mark.
    pub unmarked: [u64; 2],
    /// Records accepted and never delivered.
    pub lost: [u64; 2],
    /// Of dead clients whose agent and broker died together: nobody held their rings any more.
    pub buried: [u64; 2],
    /// Lookups that found their key.
    pub lookups: [u64; 2],
    /// Values with a wrong checksum, or another key's.
    pub torn: u64,
    /// Calls by service and outcome, and last those whose caller died meanwhile.
    pub calls: [[u64; 7]; 5],
    /// At each graceful hand-over.
    pub cuts: Vec<Cut>,
    /// The longest waits.
    pub gaps: Gaps,
    /// Promises that were broken, in words.
    pub broken: Vec<String>,
}

impl Judge {
    /// Of these faults.
    pub fn new(mut faults: Vec<Fault>, reach: [Reach; 2]) -> Judge {
        faults.sort_by_key(|fault| fault.at);
        Judge {
            in_flight: vec![0; faults.len()],
            faults,
            reach,
            domains: Default::default(),
            handled: BTreeMap::new(),
            cuts: Vec::new(),
            waits: Vec::new(),
            verdict: Verdict::default(),
        }
    }

    /// The next generation of a domain's agent. `hands_over` where it was replaced in order while everybody worked.
    pub fn generation(&mut self, domain: Domain, end: End, hands_over: bool, entries: impl Iterator<Item = Entry>) {
        let generation = self.domains[domain as usize].ends.len();
        self.domains[domain as usize].ends.push(end);
        let Reach { batch, ring } = self.reach[domain as usize];
        let mut again: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
        for entry in entries {
            match entry.what {
                What::Delivered => {
                    let is_wide = self.is_near_broker(entry.time);
                    let of = &mut self.domains[domain as usize];
                    if of.deliver(&entry, generation, is_wide) == Seen::Duplicate {
                        let at = entry.extra;
                        let (first, last, most) = again.entry(entry.sender).or_insert((at, at, batch));
                        (*first, *last) = (at.min(*first), at.max(*last));
                        *most = if is_wide { ring } else { *most };
                    }
                }
                What::Handled => *self.handled.entry((entry.sender, entry.aux, entry.number)).or_default() += 1,
                What::Corrupt => self.domains[domain as usize].checker.count_corrupt(),
                What::Cut if end == End::Closed && hands_over => {
                    self.cuts.push(Cut { at: entry.time, generation, in_handler: entry.number, ..Cut::default() });
                }
                _ => {}
            }
        }
        let ways = again.values().map(|(first, last, most)| (last - first, *most));
        let of = &mut self.domains[domain as usize];
        of.too_wide = ways.filter(|(way, most)| way > most).max().max(of.too_wide);
    }

    /// A client in pod `pod` that numbered its records as `sender`.
    pub fn client(&mut self, sender: u32, pod: u32, leaving: Leaving, entries: impl Iterator<Item = Entry>) {
        let mut client = OneClient { sender, pod, ..OneClient::default() };
        let end = match leaving {
            Leaving::Died(at) => at,
            Leaving::Left => u64::MAX,
        };
        for entry in entries {
            client.take(self, &entry);
        }
        client.ends(self, end);
        if leaving == Leaving::Left && !client.has_left {
            self.verdict.broken.push(format!("client {sender:#x} ended by itself"));
        }
    }

    /// How many agents were killed.
    pub fn kills_of_agents(&self) -> usize {
        let is_one = |fault: &&Fault| fault.kind.is_kill() && matches!(fault.target, Target::Agent(_));
        self.faults.iter().filter(is_one).count()
    }

    fn call_was_out(&mut self, service: u16, pod: u32, from: u64, to: u64) {
        let domain = if service == EXPLAIN { Domain::Routes } else { Domain::Work };
        let first = self.faults.partition_point(|fault| fault.at < from);
        for (fault, in_flight) in self.faults[first..].iter().zip(&mut self.in_flight[first..]) {
            if fault.at >= to {
                break;
            }
            let hits = match fault.target {
                Target::Agent(of) => of == domain,
                Target::Client(of) => of == pod,
                Target::Broker => true,
            };
            *in_flight += u32::from(hits);
        }
    }

    /// Whether nobody may have held the ring of a client that died then: its broker was killed, and its agent ended close to that, in order
    /// too, before the next one had been given its clients.
    fn was_buried(&self, domain: Domain, died: u64) -> bool {
        const CLOSE: u64 = 2_000_000_000;
        let ends_agent = |fault: &Fault| fault.target == Target::Agent(domain) && fault.kind != Kind::AgentStop;
        self.kills_of_the_broker().filter(|broker| died < broker.until + CLOSE).any(|broker| {
            let (from, to) = (broker.at.saturating_sub(CLOSE), broker.until + CLOSE);
            self.faults.iter().any(|fault| ends_agent(fault) && (from..to).contains(&fault.at))
        })
    }

    /// Whether the broker was killed a moment before: clients are on their way back, and who came late may be given again what its ring holds,
    /// all of it marked.
    fn is_near_broker(&self, at: u64) -> bool {
        const CLOSE: u64 = 5_000_000_000;
        self.kills_of_the_broker().any(|fault| (fault.at..fault.until + CLOSE).contains(&at))
    }

    fn kills_of_the_broker(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(|fault| fault.target == Target::Broker && fault.kind.is_kill())
    }

    fn was_half_sent(&mut self, from: u64, to: u64) {
        for cut in self.cuts.iter_mut().filter(|cut| (from..to).contains(&cut.at)) {
            cut.half_sent += 1;
        }
    }

    /// The verdict. `least_marked` repeated and marked records are expected at least.
    pub fn conclude(mut self, least_marked: u64) -> Verdict {
        let judged: Vec<Cut> = self.cuts.iter().filter(|cut| !self.is_near_broker(cut.at)).copied().collect();
        let verdict = &mut self.verdict;
        let mut broken = |is_so: bool, what: String| {
            if is_so {
                verdict.broken.push(what);
            }
        };
        for (domain, of) in Domain::ALL.iter().zip(&self.domains) {
            let name = domain.name();
            let (checker, known) = (&of.checker, &of.known);
            broken(checker.corrupt() > 0, format!("{name}: {} records that nobody wrote", checker.corrupt()));
            let strangers = checker.senders().filter(|sender| !known.contains(sender)).count();
            broken(strangers > 0, format!("{name}: records of {strangers} senders that never were"));
            broken(of.after_close > 0, format!("{name}: {} records again after a hand-over in order", of.after_close));
            let (widest, most) = of.too_wide.unwrap_or_default();
            broken(
                of.too_wide.is_some(),
                format!("{name}: records again over {widest} bytes, expected {most} at most"),
            );
        }
        let short: Vec<&Cut> = judged.iter().filter(|cut| cut.is_short()).collect();
        broken(short.len() * SHORT_CUTS > judged.len(), {
            let (short, all, first) = (short.len(), judged.len(), short.first());
            format!(
                "{short} of {all} hand-overs of work without work in flight prove little, expected one in {SHORT_CUTS} at most: {first:?}"
            )
        });
        for ((sender, service, number), times) in &self.handled {
            let what = format!("{} {number} of {sender:#x} was handled {times} times", CALLS[usize::from(*service)]);
            broken(*service != AGAIN && *times > 1, what);
        }
        let marked: u64 = verdict.marked.iter().sum();
        if marked < least_marked {
            verdict
                .broken
                .push(format!("{marked} marked repeats, expected {least_marked}: crashes hit no batch in hand"));
        }
        for cut in self.cuts.iter().filter(|cut| cut.is_short()) {
            let hands_over =
                |f: &Fault| f.kind.hands_over() && f.target == Target::Agent(Domain::Work) && f.at <= cut.at;
            if let Some(fault) = self.faults.iter().rposition(hands_over) {
                self.in_flight[fault] = 0;
            }
        }
        for (fault, in_flight) in self.faults.iter().zip(&self.in_flight) {
            let (counted, all) = verdict.faults.entry(fault.kind).or_default();
            *counted += u64::from(*in_flight > 0);
            *all += 1;
        }
        verdict.gaps = Gaps::of(&self.waits, &self.faults);
        verdict.cuts = self.cuts;
        self.verdict
    }
}

impl Verdict {
    /// Faults that hit work in flight, and how many of those were kills.
    pub fn counted(&self) -> (u64, u64) {
        let sum = |kills: bool| self.faults.iter().filter(|(k, _)| !kills || k.is_kill()).map(|(_, (n, _))| n).sum();
        (sum(false), sum(true))
    }
}

impl InDomain {
    fn deliver(&mut self, entry: &Entry, generation: usize, is_wide: bool) -> Seen {
        let seen = self.checker.observe(entry.sender, entry.number, entry.flags & MARKED != 0);
        let sender = self.senders.entry(entry.sender).or_default();
        if seen == Seen::New {
            if sender.first_by.last().is_none_or(|(_, by)| *by != generation) {
                sender.first_by.push((entry.number, generation));
            }
        } else {
            let by = sender.again_by.insert(entry.number, generation).or_else(|| sender.first_given_to(entry.number));
            let is_closed = by.is_some_and(|by| by != generation && self.ends[by] == End::Closed);
            self.after_close += u64::from(is_closed && !is_wide);
        }
        seen
    }

    /// How many of the sender's records generations up to this one were given.
    fn delivered_by(&self, sender: u32, generation: usize) -> u64 {
        let next = self.senders.get(&sender).and_then(|s| s.first_by.iter().find(|(_, by)| *by > generation));
        next.map_or_else(|| self.checker.next_sequence(sender), |(number, _)| *number)
    }
}

impl Sender {
    fn first_given_to(&self, number: u64) -> Option<usize> {
        self.first_by.iter().rev().find(|(first, _)| *first <= number).map(|(_, by)| *by)
    }
}

/// What is known of a client while its log is read.
#[derive(Debug, Default)]
struct OneClient {
    sender: u32,
    pod: u32,
    intended: [u64; 2],
    accepted: [u64; 2],
    lookups: [u64; 2],
    /// Calls that are out: since when.
    out: BTreeMap<(u16, u64), u64>,
    half: BTreeMap<u64, u64>,
    next_cut: usize,
    has_left: bool,
}

impl OneClient {
    fn take(&mut self, judge: &mut Judge, entry: &Entry) {
        let (sender, aux) = (self.sender, usize::from(entry.aux));
        let mut broken = |what: String| judge.verdict.broken.push(format!("client {sender:#x}: {what}"));
        match entry.what {
            What::Intends => self.intended[aux] = entry.number,
            What::Accepted => {
                if aux == Domain::Work as usize {
                    self.pass_cuts(judge, entry.time);
                }
                self.accepted[aux] = entry.number;
            }
            What::CallBegins => drop(self.out.insert((entry.aux, entry.number), entry.time)),
            What::CallHalf => drop(self.half.insert(entry.number, entry.time)),
            What::CallFull => {
                if let Some(since) = self.half.remove(&entry.number) {
                    judge.was_half_sent(since, entry.time);
                }
            }
            What::CallEnded => self.call_ended(judge, entry),
            What::Waited => {
                let (kind, from) = (entry.aux, entry.time - entry.number);
                judge.waits.push(Wait { pod: self.pod, kind, from, to: entry.time });
            }
            What::Looked => self.lookups[aux] = entry.number,
            What::Torn => {
                broken(format!("value {} was torn", entry.number));
                judge.verdict.torn += 1;
            }
            What::Missing => broken(format!("key {} was missing", entry.number)),
            What::Back => broken(format!("key {} went back from {} to {}", aux, entry.extra, entry.number)),
            What::Odd => broken(format!("error {} of operation {aux}", entry.number)),
            What::Left => self.has_left = true,
            _ => {}
        }
    }

    /// Until `time` nothing more was accepted: what lay in the ring at each cut before?
    fn pass_cuts(&mut self, judge: &mut Judge, time: u64) {
        let work = &judge.domains[Domain::Work as usize];
        for cut in &mut judge.cuts[self.next_cut..] {
            if cut.at >= time {
                break;
            }
            self.next_cut += 1;
            let accepted = self.accepted[Domain::Work as usize];
            cut.backlog += accepted.saturating_sub(work.delivered_by(self.sender, cut.generation));
        }
    }

    fn call_ended(&mut self, judge: &mut Judge, entry: &Entry) {
        let outcome = Outcome::ALL.get(usize::from(entry.flags)).copied().unwrap_or(Outcome::Wrong);
        let service = usize::from(entry.aux);
        // Only this service's calls go in parts; others have the same numbers.
        if CALLS[service] == "bulk"
            && let Some(since) = self.half.remove(&entry.number)
        {
            judge.was_half_sent(since, entry.time);
        }
        if let Some(since) = self.out.remove(&(entry.aux, entry.number)) {
            judge.call_was_out(entry.aux, self.pod, since, entry.time);
        }
        judge.verdict.calls[service][outcome as usize] += 1;
        let is_handled = judge.handled.contains_key(&(self.sender, entry.aux, entry.number));
        let is_known = entry.aux != EXPLAIN;
        let what = format!("{} {} of client {:#x}", CALLS[service], entry.number, self.sender);
        match outcome {
            Outcome::Answered if is_known && !is_handled => {
                judge.verdict.broken.push(format!("{what} was answered and never handled"));
            }
            Outcome::Away if is_handled => {
                judge.verdict.broken.push(format!("{what} was \"not sent\" and was handled"))
            }
            Outcome::Wrong => judge.verdict.broken.push(format!("{what} got another call's answer")),
            Outcome::Failed => judge.verdict.broken.push(format!("{what} failed")),
            _ => {}
        }
    }

    fn ends(&mut self, judge: &mut Judge, died: u64) {
        self.pass_cuts(judge, u64::MAX);
        for since in std::mem::take(&mut self.half).into_values() {
            judge.was_half_sent(since, died);
        }
        for ((service, number), since) in std::mem::take(&mut self.out) {
            judge.call_was_out(service, self.pod, since, died);
            judge.verdict.calls[usize::from(service)][Outcome::ALL.len()] += 1;
            if died == u64::MAX {
                let what = format!("{} {number} of client {:#x} never ended", CALLS[usize::from(service)], self.sender);
                judge.verdict.broken.push(what);
            }
        }
        let is_buried = Domain::ALL.map(|domain| judge.was_buried(domain, died));
        for domain in Domain::ALL {
            let (d, name) = (domain as usize, domain.name());
            let of = &mut judge.domains[d];
            of.known.insert(self.sender);
            let (accepted, intended) = (self.accepted[d], self.intended[d].max(self.accepted[d]));
            let (mut report, beyond) =
                (of.checker.report(self.sender, accepted), of.checker.report(self.sender, intended).beyond);
            if report.lost > 0 && is_buried[d] {
                judge.verdict.buried[d] += std::mem::take(&mut report.lost);
            }
            let verdict = &mut judge.verdict;
            verdict.accepted[d] += accepted;
            verdict.delivered[d] += report.delivered;
            verdict.marked[d] += report.duplicates_marked;
            verdict.unmarked[d] += report.duplicates_unmarked;
            verdict.lost[d] += report.lost;
            verdict.lookups[d] += self.lookups[d];
            let faults = [
                (report.lost, "accepted and lost"),
                (report.duplicates_unmarked, "again without a mark"),
                (report.out_of_order, "out of order"),
                (beyond, "never sent"),
            ];
            for (count, what) in faults.iter().filter(|(count, _)| *count > 0) {
                verdict.broken.push(format!("{name}: {count} records of client {:#x} {what}", self.sender));
            }
        }
    }
}

#[cfg(test)]
mod tests;
