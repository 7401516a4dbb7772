//! A broker with its state in a directory, for tests that kill it: `podshm-test-broker ROOT GRACE-MS BUDGET POD…`, and PODSHM_STEP. Serves
//! domain `d` (and pods named `other-…` domain `other`). Reads commands, a line each: `pod NAME`, `stats`, `end`.

use podshm_broker::{Broker, BrokerConfig, DomainConfig, Limits};
use podshm_tests::{add_pod, patient};
use std::path::PathBuf;
use std::time::Duration;

fn main() {
    tracing_subscriber_to_stderr();
    podshm_broker::steps::arm_from_env().expect("PODSHM_STEP can be read");
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().unwrap_or_else(|| panic!("expected {what}"));
    let root = PathBuf::from(next("a root"));
    let grace = Duration::from_millis(next("a grace in ms").parse().expect("a number"));
    let budget = next("a budget").parse().expect("a number");
    let config = BrokerConfig { state: Some(root.join(".broker")), rejoin_grace: grace };
    let broker = match Broker::start_with(config) {
        Ok(broker) => broker,
        Err(error) => {
            println!("failed {error}");
            std::process::exit(4);
        }
    };
    let limits = Limits { budget, member_share: budget, ..Limits::default() };
    for name in ["d", "other"] {
        if let Err(error) = broker.add_domain(DomainConfig { name: name.into(), limits, ..patient() }) {
            println!("failed {error}");
            std::process::exit(4);
        }
    }
    let domain = |pod: &str| if pod.starts_with("other") || pod == "agent-other" { "other" } else { "d" };
    for pod in args {
        add_pod(&broker, domain(&pod), &root, &pod);
    }
    println!("ready");
    let broker = std::sync::Arc::new(broker);
    let watched = std::sync::Arc::downgrade(&broker);
    std::thread::spawn(move || {
        while watched.upgrade().is_some_and(|broker| !broker.has_given_way()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if watched.upgrade().is_some() {
            println!("gave way");
            std::process::exit(0);
        }
    });
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("pod", name) => {
                add_pod(&broker, domain(name), &root, name);
                println!("added");
            }
            ("stats", _) => println!("stats {:?}", broker.stats("d").expect("stats")),
            ("end", _) => break,
            other => panic!("no command {other:?}"),
        }
    }
    drop(broker);
    println!("ended");
}

/// The log is for whoever reads a failing test's output.
fn tracing_subscriber_to_stderr() {
    if std::env::var_os("PODSHM_TEST_LOG").is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::DEBUG).init();
    }
}
