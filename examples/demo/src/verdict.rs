//! What the pods and the agents saw, put side by side; and a table that a person understands.

use crate::histogram::Histogram;
use crate::pod::{Account, SHORTEST_WAIT, Wait};
use podshm_testkit::numbered::Checker;

/// A disturbance: what it was, from when to when (nanoseconds of the monotonic clock).
#[derive(Clone, Debug)]
pub struct Event {
    /// Name, for the table.
    pub what: &'static str,
    /// Its start.
    pub from: u64,
    /// When its effects are over.
    pub to: u64,
}

/// Everything that the verdict is made from.
pub struct Evidence {
    /// From each pod.
    pub accounts: Vec<Account>,
    /// From the agents' own logs.
    pub delivered: Checker,
    /// What was done to the agent.
    pub events: Vec<Event>,
    /// Bytes charged to each pod at most, and to the broker.
    pub pod_memory: Vec<u64>,
    /// See `pod_memory`.
    pub broker_memory: u64,
    /// Bytes of podshm regions.
    pub seconds: f64,
    /// How the pods were isolated.
    pub isolation: String,
}

/// Prints the table; says whether everything is accounted for.
pub fn print(evidence: &Evidence) -> bool {
    let accounts = &evidence.accounts;
    let sum = |f: fn(&Account) -> u64| accounts.iter().map(f).sum::<u64>();
    let (mut call, mut unix) = (Histogram::default(), Histogram::default());
    for account in accounts {
        call.merge(&account.call);
        unix.merge(&account.unix);
    }
    let accepted: Vec<(u32, u64)> = accounts.iter().map(|a| (a.number, a.accepted)).collect();
    let total = evidence.delivered.total(accepted);
    let lookups = sum(|a| a.lookups);
    let row = |name: &str, value: String| println!("  {name:<34} {value}");
    println!(
        "\npodshm demo: {} business pods ({}), one agent, {:.1} s",
        accounts.len(),
        evidence.isolation,
        evidence.seconds
    );
    row("lookups", format!("{lookups} ({:.2} M/s over all pods)", lookups as f64 / evidence.seconds / 1e6));
    row("one lookup", format!("{} ns, random routes, value copied out", sum(|a| a.lookup_ns) / lookups.max(1)));
    row(
        "values checked / torn / missing",
        format!("{} / {} / {}", sum(|a| a.checked), sum(|a| a.torn), sum(|a| a.missing)),
    );
    row("reports accepted / delivered", format!("{} / {}", sum(|a| a.accepted), total.delivered));
    row("  lost / corrupt", format!("{} / {}", total.lost, evidence.delivered.corrupt()));
    row("  delivered twice, and marked so", format!("{}", total.duplicates_marked));
    row("  delivered twice, not marked", format!("{}", total.duplicates_unmarked));
    row("calls answered / wrong", format!("{} / {}", sum(|a| a.answered), sum(|a| a.wrong)));
    row(
        "  agent away / outcome unknown / late",
        format!("{} / {} / {}", sum(|a| a.away), sum(|a| a.unknown), sum(|a| a.late)),
    );
    row("call round trip, paced (64 B)", format!("p50 {} µs, p99 {} µs", micros(call.at(0.5)), micros(call.at(0.99))));
    row("  Unix socket pair, same work", format!("p50 {} µs, p99 {} µs", micros(unix.at(0.5)), micros(unix.at(0.99))));
    println!("  longest that any pod waited, paced       lookups     reports       calls");
    for event in &evidence.events {
        let longest = |kind: usize| {
            let during = |w: &&Wait| w.kind == kind && w.end > event.from && w.end - w.length < event.to;
            let longest = accounts.iter().flat_map(|a| &a.waits).filter(during).map(|w| w.length).max();
            longest.map_or(format!("under {} ms", millis(SHORTEST_WAIT)), |ns| format!("{} ms", millis(ns)))
        };
        println!("    {:<33} {:>11} {:>11} {:>11}", event.what, longest(0), longest(1), longest(2));
    }
    let pods: Vec<String> = evidence.pod_memory.iter().map(|b| format!("{:.1}", *b as f64 / 1048576.0)).collect();
    row(
        "memory charged to each pod, MiB",
        if pods.is_empty() { "not measured: no cgroups".into() } else { pods.join(" ") },
    );
    row("memory charged to the broker, MiB", format!("{:.1}", evidence.broker_memory as f64 / 1048576.0));
    row("upstream connections", format!("1 (an agent in every pod would have {})", accounts.len()));
    let mut faults = Vec::new();
    let mut check = |bad: u64, what: &str| {
        if bad > 0 {
            faults.push(format!("{bad} {what}"));
        }
    };
    check(total.lost, "reports lost");
    check(evidence.delivered.corrupt(), "reports corrupt");
    check(total.duplicates_unmarked, "reports delivered twice without a mark");
    check(total.out_of_order, "reports out of order");
    check(total.beyond, "reports delivered that nobody sent");
    check(sum(|a| a.torn), "values torn");
    check(sum(|a| a.missing), "lookups that failed");
    check(sum(|a| a.wrong), "calls answered wrongly");
    check(
        u64::from(total.delivered == 0 || lookups == 0 || sum(|a| a.answered) == 0),
        "kinds of work that did not happen",
    );
    if faults.is_empty() {
        println!("\nnothing lost, nothing torn, nothing corrupt (by sequence numbers and checksums of both sides)");
    } else {
        println!("\nFAILED: {}", faults.join(", "));
    }
    faults.is_empty()
}

fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

fn millis(ns: u64) -> String {
    format!("{:.2}", ns as f64 / 1e6)
}
