//! What a person reads.

use crate::gaps::{Longest, WAITS};
use crate::run::{Plan, Report};
use crate::schedule::{Domain, Kind};
use crate::verdict::CALLS;

/// Most broken promises that are printed in full.
const MOST: usize = 20;

/// Prints the report. Says whether every promise was kept and at least `least` faults hit work in flight, a third of them kills.
pub fn print(plan: &Plan, report: &Report, least: u64) -> bool {
    let verdict = &report.verdict;
    let row = |name: &str, value: String| println!("  {name:<38} {value}");
    let [work, routes, clients] = report.processes;
    println!("\nchaos: {} client pods, {:.1} s of faults, seed {}", plan.clients, report.took.as_secs_f64(), plan.seed);
    row("processes", format!("{work} agents of work, {routes} route agents, {clients} clients, 1 broker"));
    let (times, longest) = report.stood_still;
    row(
        "harness stood still",
        format!("{times} times, for {:.1} s at most: waits below include that", longest.as_secs_f64()),
    );
    let (counted, kills) = verdict.counted();
    let injected: u64 = verdict.faults.values().map(|(_, all)| all).sum();
    println!("\nfaults: {injected} injected, {counted} with work in flight, {kills} of those kills");
    for (kind, (counted, all)) in &verdict.faults {
        row(kind.name(), format!("{counted:>6} of {all:>6}"));
    }
    println!("\nrecords {:>41} {:>12}", "work", "routes");
    for (name, counts) in [
        ("accepted", verdict.accepted),
        ("delivered", verdict.delivered),
        ("again, marked", verdict.marked),
        ("again, not marked", verdict.unmarked),
        ("lost", verdict.lost),
        ("lost with all who held them", verdict.buried),
        ("lookups that found their key", verdict.lookups),
    ] {
        row(name, format!("{:>10} {:>12}", counts[0], counts[1]));
    }
    row("torn reads", format!("{:>10}", verdict.torn));
    println!(
        "\ncalls {:>46} {:>9} {:>9} {:>9} {:>6} {:>7} {:>11}",
        "answered", "not sent", "unknown", "deadline", "wrong", "failed", "caller died"
    );
    for (name, counts) in CALLS.iter().zip(&verdict.calls) {
        let [answered, away, unknown, deadline, wrong, failed, died] = counts;
        row(name, format!("{answered:>11} {away:>9} {unknown:>9} {deadline:>9} {wrong:>6} {failed:>7} {died:>11}"));
    }
    let (short, full): (Vec<_>, Vec<_>) = verdict.cuts.iter().partition(|cut| cut.is_short());
    let least_of = |of: fn(&crate::verdict::Cut) -> u64| full.iter().copied().map(of).min().unwrap_or(0);
    let cut = format!(
        "{}, with at least {} calls in handlers, {} half sent, {} records not delivered; {} more without, not counted",
        full.len(),
        least_of(|cut| cut.in_handler),
        least_of(|cut| cut.half_sent),
        least_of(|cut| cut.backlog),
        short.len()
    );
    println!();
    row("hand-overs of work in order", cut);
    print_gaps(report);
    println!("\nbroker {:>43} {:>12} {:>12}", "before", "after", "at the end");
    let [before, after, end] = &report.usage;
    let three =
        |of: &dyn Fn(&crate::node::Usage) -> u64| format!("{:>11} {:>12} {:>12}", of(before), of(after), of(end));
    row("resident KiB, regions included", three(&|usage| usage.resident / 1024));
    row("region KiB", three(&|usage| usage.books[0].region_bytes / 1024));
    row("regions", three(&|usage| usage.books[0].regions));
    row("descriptors", three(&|usage| usage.descriptors));
    for domain in Domain::ALL {
        row(&format!("reserved KiB, {}", domain.name()), three(&|usage| usage.books[domain as usize].reserved / 1024));
    }
    judge(report, (counted, kills), least)
}

fn print_gaps(report: &Report) {
    let gaps = &report.verdict.gaps;
    println!("\nlongest wait in ms {:>21} {}", "", WAITS.map(|name| format!("{name:>14}")).concat());
    let line = |name: &str, longest: &Longest| {
        let cells =
            longest.map(|ns| if ns == 0 { format!("{:>14}", "< 0.5") } else { format!("{:>14.1}", ns as f64 / 1e6) });
        println!("  {name:<38} {}", cells.concat());
    };
    line("control: no fault yet", &gaps.control);
    for kind in Kind::ALL {
        if let Some(longest) = gaps.by_kind.get(kind) {
            line(kind.name(), longest);
        }
    }
    line("no fault near", &gaps.without);
}

fn judge(report: &Report, (counted, kills): (u64, u64), least: u64) -> bool {
    let mut broken = report.verdict.broken.clone();
    if counted < least {
        broken.push(format!("{counted} faults hit work in flight, expected at least {least}"));
    }
    if kills * 3 < counted {
        broken.push(format!("{kills} of {counted} faults were kills, expected a third"));
    }
    println!();
    for promise in broken.iter().take(MOST) {
        println!("  BROKEN: {promise}");
    }
    if broken.len() > MOST {
        println!("  and {} more", broken.len() - MOST);
    }
    let word = if broken.is_empty() { "every promise was kept" } else { "PROMISES WERE BROKEN" };
    println!("{word}");
    broken.is_empty()
}
