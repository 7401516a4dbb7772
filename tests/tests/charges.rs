//! Who pays: every page of every region is charged to the broker's cgroup, and none to a pod that reads or writes it. Budgets,
//! shares and limits refuse before a page is touched.

use podshm_testkit::Memory;
use podshm_tests::pods::{InPod, Sockets};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-pod");
const PAGE: u64 = 4096;

/// A broker in a pod with these limits (budget, share, clients, processes), and what it was charged before it had made anything.
fn broker(sockets: &Sockets, limits: [u64; 4]) -> Option<(InPod, Memory)> {
    let mut broker = InPod::start(PROGRAM, "broker", 20_000, sockets.root())?;
    broker.ask("uid");
    let before = broker.memory()?;
    broker.ask(&format!("broker {} {} {} {}", limits[0], limits[1], limits[2], limits[3]));
    Some((broker, before))
}

fn pod(broker: &mut InPod, sockets: &Sockets, name: &str, uid: u32) -> Option<(InPod, Memory)> {
    let directory = sockets.of(name);
    broker.ask(&format!("pod {name}"));
    let mut pod = InPod::start(PROGRAM, name, uid, &directory)?;
    pod.ask("uid");
    let before = pod.memory()?;
    Some((pod, before))
}

/// Bytes of regions alive, as the broker's books have them.
fn region_bytes(broker: &mut InPod) -> u64 {
    broker.ask("stats").split(' ').nth(1).and_then(|n| n.parse().ok()).expect("stats")
}

const ROOMY: [u64; 4] = [256 << 20, 64 << 20, 100, 64];

#[test]
fn every_page_is_charged_to_the_broker_and_none_to_pods() {
    charges("charges", "-");
}

/// Both writers make holes in all that they may write, before the seal: a reader's touch would then be charged to the reader.
#[test]
fn holes_that_writers_punch_are_not_charged_to_readers() {
    charges("holes", "punch");
}

fn charges(test: &str, punch: &str) {
    let sockets = Sockets::new(test);
    let Some((mut broker, before)) = broker(&sockets, ROOMY) else { return };
    let Some((mut agent, agent_before)) = pod(&mut broker, &sockets, "agent", 20_001) else { return };
    let Some((mut client, client_before)) = pod(&mut broker, &sockets, "client", 20_002) else { return };
    broker.is_charged(before, PAGE, "the notice page");
    agent.ask(&format!("agent {punch} t:t:1000:1048576 q:q:1048576 c:c:1048576"));
    for _ in 0..3 {
        client.ask(&format!("join {punch}"));
        agent.ask("client-comes");
    }
    let bytes = region_bytes(&mut broker);
    assert!(bytes > 10 << 20, "{bytes} bytes of regions");
    broker.is_charged(before, bytes + PAGE, "what was made");
    for pod in [&mut agent, &mut client] {
        let touched = pod.ask("touch");
        let touched: u64 = touched.strip_prefix("touched ").and_then(|n| n.parse().ok()).expect("a number");
        assert!(touched > 10 << 20, "{touched} bytes were touched");
    }
    agent.is_charged(agent_before, 0, "every byte of its regions was touched");
    client.is_charged(client_before, 0, "every byte of its regions was touched");
    broker.is_charged(before, bytes + PAGE, "everything was touched by others");
    // All of a client's memory comes back once it is drained.
    client.ask("leave");
    for _ in 0..3 {
        agent.ask("pump");
    }
    // The agent by hand keeps its answer regions, so what comes back is each C.
    let left = bytes - 3 * ((2 << 20) + PAGE);
    let until = Instant::now() + Duration::from_secs(20);
    while region_bytes(&mut broker) != left {
        assert!(Instant::now() < until, "{} bytes of regions, expected {left}", region_bytes(&mut broker));
        std::thread::sleep(Duration::from_millis(5));
    }
    broker.is_charged(before, left + PAGE, "the clients have left");
}

/// Each limit refuses by name, and neither the broker's regions nor its charge move: not afterwards, and not for a moment.
#[test]
fn limits_refuse_before_a_page_is_touched() {
    // A client's C has 8 MiB and 4 KiB, its A 4 KiB: 8 MiB that were touched for a moment would show.
    let services = "agent - q:q:8388608";
    let each = (8 << 20) + PAGE + 4 * PAGE;
    let cases = [
        ("budget", [20 << 20, 64 << 20, 100, 64], vec!["OverLimit", "another client needs", "of 20971520 left"]),
        ("share", [256 << 20, 2 * each + 100, 100, 64], vec!["OverLimit", "test/client", "its share has 100 of"]),
        ("clients", [256 << 20, 64 << 20, 2, 64], vec!["OverLimit", "has its 2 clients"]),
        ("processes", [256 << 20, 64 << 20, 100, 2], vec!["OverLimit", "test/client", "2 processes joined"]),
        ("descriptors 3", ROOMY, vec!["OverLimit", "more descriptors are needed", "raise its RLIMIT_NOFILE"]),
        ("descriptors 0", ROOMY, vec!["OverLimit", "1 more descriptors are needed", "has 0 left"]),
    ];
    for (limit, limits, words) in cases {
        let sockets = Sockets::new(&limit.replace(' ', "-"));
        let Some((mut broker, _)) = broker(&sockets, limits) else { return };
        let Some((mut agent, _)) = pod(&mut broker, &sockets, "agent", 20_001) else { return };
        let Some((mut client, _)) = pod(&mut broker, &sockets, "client", 20_002) else { return };
        agent.ask(services);
        for _ in 0..2 {
            client.ask("join -");
            agent.ask("client-comes");
        }
        if limit.starts_with("descriptors") {
            // Only so many more than are open.
            broker.ask(limit);
        }
        let refused = |client: &mut InPod| {
            let answer = client.ask("try-join");
            for word in &words {
                assert!(answer.contains(word), "{limit}: {answer:?} does not say {word:?}");
            }
        };
        refused(&mut client);
        let stats = broker.ask("stats");
        let charged = broker.memory().expect("it had a cgroup");
        let peak = broker.watch_peak();
        for _ in 0..20 {
            refused(&mut client);
        }
        assert_eq!(broker.ask("stats"), stats, "{limit}");
        broker.is_charged(charged, 0, limit);
        if let (Some(before), Some(after)) = (peak, broker.peak()) {
            assert!(after < before + (4 << 20), "{limit}: {before} bytes before, {after} at the most");
        }
        if limit.starts_with("descriptors") {
            broker.ask("descriptors-again");
            assert_eq!(client.ask("try-join"), "welcome", "{limit}: nothing else was hurt");
        }
    }
}
