//! Each promise broken once, in logs by hand.

use super::*;
use crate::entry::What::*;

fn at(time: u64, what: What, sender: u32, number: u64) -> Entry {
    Entry { what, flags: 0, aux: 0, sender, number, time, extra: number * 100 }
}

fn marked(entry: Entry) -> Entry {
    Entry { flags: MARKED, ..entry }
}

fn call(entry: Entry, service: u16) -> Entry {
    Entry { aux: service, ..entry }
}

fn ended(time: u64, service: u16, number: u64, outcome: Outcome) -> Entry {
    Entry { aux: service, flags: outcome as u8, ..at(time, CallEnded, 1, number) }
}

/// Records 0 to here are delivered to one agent.
fn delivered(numbers: std::ops::Range<u64>) -> Vec<Entry> {
    numbers.map(|number| at(50, Delivered, 1, number)).collect()
}

/// What a client says that got so many accepted and left.
fn accepted(count: u64) -> Vec<Entry> {
    vec![at(10, Intends, 1, count), at(20, Accepted, 1, count), at(90, Left, 1, 0)]
}

const REACH: Reach = Reach { batch: 1000, ring: 3000 };

/// The verdict on domain `work` alone.
fn judged(generations: Vec<(End, Vec<Entry>)>, client: Vec<Entry>, leaving: Leaving) -> Verdict {
    let mut judge = Judge::new(Vec::new(), [REACH; 2]);
    for (end, entries) in generations {
        judge.generation(Domain::Work, end, true, entries.into_iter());
    }
    judge.client(1, 0, leaving, client.into_iter());
    judge.conclude(0)
}

#[track_caller]
fn breaks(verdict: &Verdict, words: &str) {
    assert!(verdict.broken.iter().any(|promise| promise.contains(words)), "{words:?} not in {:?}", verdict.broken);
    assert_eq!(verdict.broken.len(), 1, "{:?}", verdict.broken);
}

#[test]
fn what_is_accepted_and_delivered_is_well() {
    let verdict =
        judged(vec![(End::Died, delivered(0..5)), (End::Closed, delivered(5..8))], accepted(8), Leaving::Left);
    assert_eq!(verdict.broken, Vec::<String>::new());
    assert_eq!((verdict.accepted[0], verdict.delivered[0], verdict.lost[0]), (8, 8, 0));
}

#[test]
fn what_nobody_held_any_more_is_no_promise() {
    let fault = |kind, target, at| Fault { kind, target, at, until: at };
    let second = 1_000_000_000;
    let broker = fault(Kind::BrokerKill, Target::Broker, 10 * second);
    let agent = |at| fault(Kind::AgentKill, Target::Agent(Domain::Work), at);
    let lost = |faults, leaving| {
        let mut judge = Judge::new(faults, [REACH; 2]);
        judge.generation(Domain::Work, End::Died, true, delivered(0..3).into_iter());
        judge.client(1, 0, leaving, accepted(8).into_iter().take(2));
        let verdict = judge.conclude(0);
        (verdict.lost[0], verdict.buried[0])
    };
    let dead = Leaving::Died(9 * second);
    assert_eq!(lost(vec![broker.clone(), agent(11 * second)], dead), (0, 5));
    // Each of the three that lives holds it.
    assert_eq!(lost(vec![broker.clone(), agent(20 * second)], dead), (5, 0));
    assert_eq!(lost(vec![agent(11 * second)], dead), (5, 0));
    assert_eq!(lost(vec![broker.clone(), agent(11 * second)], Leaving::Died(20 * second)), (5, 0));
    assert_eq!(lost(vec![broker, agent(11 * second)], Leaving::Left), (5, 0));
}

#[test]
fn a_lost_record_is_found() {
    let some = [delivered(0..3), delivered(4..8)].concat();
    breaks(&judged(vec![(End::Closed, some)], accepted(8), Leaving::Left), "1 records of client 0x1 accepted and lost");
}

#[test]
fn what_a_client_had_in_hand_when_it_died_may_be_there_or_not() {
    let died = vec![at(10, Intends, 1, 8), at(20, Accepted, 1, 8), at(30, Intends, 1, 12)];
    for there in [8, 10, 12] {
        let verdict = judged(vec![(End::Closed, delivered(0..there))], died.clone(), Leaving::Died(40));
        assert_eq!(verdict.broken, Vec::<String>::new());
    }
    breaks(
        &judged(vec![(End::Closed, delivered(0..13))], died, Leaving::Died(40)),
        "1 records of client 0x1 never sent",
    );
}

#[test]
fn repeats_are_marked_and_within_a_batch_and_never_after_a_close() {
    let again = |numbers: std::ops::Range<u64>| delivered(numbers).into_iter().map(marked).collect::<Vec<_>>();
    let after = |end, repeats: Vec<Entry>| {
        let second = [repeats, delivered(20..25)].concat();
        judged(vec![(end, delivered(0..20)), (End::Closed, second)], accepted(25), Leaving::Left)
    };
    let verdict = after(End::Died, again(12..20));
    assert_eq!((verdict.broken.len(), verdict.marked[0]), (0, 8));
    breaks(&after(End::Died, delivered(19..20)), "again without a mark");
    breaks(&after(End::Died, again(5..20)), "again over 1400 bytes");
    breaks(&after(End::Closed, again(19..20)), "1 records again after a hand-over in order");
    let verdict = judged(vec![(End::Died, vec![]), (End::Closed, delivered(0..5))], accepted(5), Leaving::Left);
    let mut judge = Judge::new(Vec::new(), [REACH; 2]);
    judge.client(1, 0, Leaving::Left, accepted(0).into_iter());
    assert!(verdict.broken.is_empty());
    breaks(&judge.conclude(1), "0 marked repeats, expected 1");
}

#[test]
fn after_a_broker_that_died_all_that_a_ring_holds_may_come_again() {
    let second = 1_000_000_000;
    let after = |died: u64, end, repeats: std::ops::Range<u64>| {
        let fault = Fault { kind: Kind::BrokerKill, target: Target::Broker, at: died, until: died };
        let mut judge = Judge::new(vec![fault], [REACH; 2]);
        let late = |entry: Entry| Entry { time: 30 * second, ..entry };
        judge.generation(Domain::Work, end, true, delivered(0..60).into_iter());
        let repeats = delivered(repeats).into_iter().map(marked).map(late);
        judge.generation(Domain::Work, End::Closed, true, repeats);
        judge.client(1, 0, Leaving::Left, accepted(60).into_iter());
        judge.conclude(0)
    };
    assert_eq!(after(29 * second, End::Died, 30..60).broken, Vec::<String>::new());
    assert_eq!(after(29 * second, End::Closed, 30..60).broken, Vec::<String>::new());
    breaks(&after(29 * second, End::Died, 20..60), "again over 3900 bytes, expected 3000 at most");
    breaks(&after(20 * second, End::Died, 30..60), "again over 2900 bytes, expected 1000 at most");
    breaks(&after(20 * second, End::Closed, 59..60), "1 records again after a hand-over in order");
}

#[test]
fn what_nobody_wrote_is_found() {
    breaks(
        &judged(vec![(End::Closed, vec![at(5, Corrupt, 0, 0)])], accepted(0), Leaving::Left),
        "1 records that nobody wrote",
    );
    let stranger = vec![at(5, Delivered, 9, 0)];
    breaks(&judged(vec![(End::Closed, stranger)], accepted(0), Leaving::Left), "1 senders that never were");
    let turned = vec![at(5, Delivered, 1, 1), at(6, Delivered, 1, 0)];
    breaks(&judged(vec![(End::Closed, turned)], accepted(2), Leaving::Left), "out of order");
}

#[test]
fn calls_end_as_they_may() {
    let with = |handled: Vec<Entry>, mut client: Vec<Entry>, leaving| {
        client.push(at(99, Left, 1, 0));
        judged(vec![(End::Closed, handled)], client, leaving)
    };
    let begun = |service| call(at(10, CallBegins, 1, 0), service);
    let handled = |service| call(at(15, Handled, 1, 0), service);
    let left = Leaving::Left;
    let well = with(vec![handled(0)], vec![begun(0), ended(20, 0, 0, Outcome::Answered)], left);
    assert_eq!((well.broken.len(), well.calls[0][0]), (0, 1));
    breaks(&with(vec![], vec![begun(0), ended(20, 0, 0, Outcome::Answered)], left), "answered and never handled");
    breaks(
        &with(vec![handled(0)], vec![begun(0), ended(20, 0, 0, Outcome::Away)], left),
        "was \"not sent\" and was handled",
    );
    breaks(&with(vec![handled(0)], vec![begun(0), ended(20, 0, 0, Outcome::Wrong)], left), "another call's answer");
    breaks(
        &with(vec![handled(2), handled(2)], vec![begun(2), ended(20, 2, 0, Outcome::Unknown)], left),
        "handled 2 times",
    );
    assert!(
        with(vec![handled(1), handled(1)], vec![begun(1), ended(20, 1, 0, Outcome::Answered)], left).broken.is_empty()
    );
    breaks(&with(vec![], vec![begun(3)], left), "bulk 0 of client 0x1 never ended");
    let died = judged(vec![], vec![begun(3)], Leaving::Died(30));
    assert_eq!((died.broken.len(), died.calls[3][6]), (0, 1));
    breaks(&judged(vec![], vec![], left), "ended by itself");
}

#[test]
fn reads_that_may_not_be_are_found() {
    for (what, words) in [(Torn, "was torn"), (Missing, "was missing"), (Back, "went back"), (Odd, "error 7")] {
        let client = vec![Entry { number: 7, ..at(5, what, 1, 7) }, at(9, Left, 1, 0)];
        breaks(&judged(vec![], client, Leaving::Left), words);
    }
}

#[test]
fn a_cut_is_judged_by_what_was_in_flight() {
    let cut = |in_handler| Entry { number: in_handler, ..at(50, Cut, 0, 0) };
    let client = |half_until| {
        // In between, a call to another service that has the same number.
        let other = [call(at(41, CallBegins, 1, 3), 1), ended(42, 1, 3, Outcome::Unknown)];
        let half =
            [&[call(at(40, CallHalf, 1, 3), 3)], other.as_slice(), &[call(at(half_until, CallFull, 1, 3), 3)]].concat();
        let sends = [at(10, Intends, 1, 8), at(20, Accepted, 1, 8)];
        let tail = [at(60, Accepted, 1, 9), at(90, Left, 1, 0)];
        [sends.as_slice(), &half, &tail].concat()
    };
    let run = |in_handler, by_old, half_until| {
        let old = [delivered(0..by_old), vec![cut(in_handler)]].concat();
        let mut client = client(half_until);
        client.insert(0, at(5, Intends, 1, 9));
        client[1].number = 9;
        judged(vec![(End::Closed, old), (End::Closed, delivered(by_old..9))], client, Leaving::Left)
    };
    let well = run(1, 6, 55);
    assert_eq!(well.broken, Vec::<String>::new());
    assert_eq!((well.cuts[0].in_handler, well.cuts[0].half_sent, well.cuts[0].backlog), (1, 1, 2));
    for nothing in [run(0, 6, 55), run(1, 8, 55), run(1, 6, 45)] {
        breaks(&nothing, "without work in flight");
    }
}

#[test]
fn a_hand_over_without_work_in_flight_does_not_count_and_many_are_a_breach() {
    let run = |short: u64, all: u64| {
        let faults = (0..all).map(|n| Fault {
            kind: Kind::Surge,
            target: Target::Agent(Domain::Work),
            at: n * 100 + 45,
            until: n * 100 + 45,
        });
        let mut judge = Judge::new(faults.collect(), [REACH; 2]);
        let mut client = vec![at(1, Intends, 1, all + 1), at(2, Accepted, 1, all + 1)];
        for n in 0..all {
            let cut = Entry { number: u64::from(n >= short), ..at(n * 100 + 50, Cut, 0, 0) };
            judge.generation(
                Domain::Work,
                End::Closed,
                true,
                vec![Entry { time: n * 100 + 46, ..delivered(n..n + 1)[0] }, cut].into_iter(),
            );
            client.extend([
                call(at(n * 100 + 39, CallBegins, 1, n), 3),
                call(at(n * 100 + 40, CallHalf, 1, n), 3),
                call(at(n * 100 + 55, CallFull, 1, n), 3),
            ]);
            client.push(ended(n * 100 + 56, 3, n, Outcome::Unknown));
        }
        client.push(at(all * 100, Left, 1, 0));
        judge.generation(Domain::Work, End::Closed, false, delivered(all..all + 1).into_iter());
        judge.client(1, 0, Leaving::Left, client.into_iter());
        judge.conclude(0)
    };
    let one = run(1, 20);
    assert_eq!(one.broken, Vec::<String>::new());
    assert_eq!(one.faults[&Kind::Surge], (19, 20));
    breaks(&run(2, 20), "2 of 20 hand-overs");
}

#[test]
fn a_fault_counts_with_work_in_flight() {
    let fault = |target, at| Fault { kind: Kind::AgentKill, target, at, until: at };
    let faults = vec![
        fault(Target::Agent(Domain::Work), 15),
        fault(Target::Agent(Domain::Routes), 15),
        fault(Target::Agent(Domain::Work), 25),
        fault(Target::Client(0), 15),
        fault(Target::Client(7), 15),
        fault(Target::Broker, 19),
    ];
    let mut judge = Judge::new(faults, [REACH; 2]);
    judge.generation(Domain::Work, End::Closed, false, [at(15, Handled, 1, 0)].into_iter());
    let client = vec![at(10, CallBegins, 1, 0), ended(20, 0, 0, Outcome::Answered), at(90, Left, 1, 0)];
    judge.client(1, 0, Leaving::Left, client.into_iter());
    let verdict = judge.conclude(0);
    assert_eq!(verdict.faults[&Kind::AgentKill], (3, 6));
    assert_eq!(verdict.counted(), (3, 3));
}
