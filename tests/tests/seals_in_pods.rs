//! Seals tried from inside pods: what a reader can do to a region that it has the descriptor of, in namespaces of its own, as an ordinary
//! user and as root in the container.

use podshm_testkit::Memory;
use podshm_tests::pods::{InPod, Sockets};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podshm-test-pod");

/// A broker, an agent and a client, each in a pod; the latter two as these users.
fn three(sockets: &Sockets, table: &str, agent: u32, client: u32) -> Option<(InPod, InPod, InPod)> {
    let mut broker = InPod::start(PROGRAM, "broker", 20_000, sockets.root())?;
    broker.ask("broker 268435456 67108864 100 64");
    let (of_agent, of_client) = (sockets.of("agent"), sockets.of("client"));
    for pod in ["agent", "client"] {
        broker.ask(&format!("pod {pod}"));
    }
    let mut agent = InPod::start(PROGRAM, "agent", agent, &of_agent)?;
    let mut client = InPod::start(PROGRAM, "client", client, &of_client)?;
    agent.ask(&format!("agent - {table} q:q:65536 c:c:65536"));
    client.ask("join -");
    agent.ask("client-comes");
    Some((broker, agent, client))
}

#[test]
fn readers_in_pods_can_change_nothing() {
    for (test, user, other) in [("users", 20_001, 20_002), ("roots", 0, 0), ("mixed", 0, 20_002)] {
        let sockets = Sockets::new(&format!("seals-{test}"));
        let Some((_broker, mut agent, mut client)) = three(&sockets, "t:t:1000:65536", user, other) else { return };
        assert_eq!((agent.ask("uid"), client.ask("uid")), (user.to_string(), other.to_string()));
        assert_eq!(agent.ask("attack C"), "1 tried, through:", "{test}: the agent on C");
        for region in ["A", "T", "notice-page"] {
            let through = client.ask(&format!("attack {region}"));
            assert_eq!(through, "1 tried, through:", "{test}: the client on {region}");
        }
        // Not even its writer gets a second way in.
        assert_eq!(client.ask("attack C"), "1 tried, through:", "{test}: the client on its own C");
        // All of it is as it was and can be read.
        for pod in [&mut agent, &mut client] {
            let touched = pod.ask("touch");
            let bytes: u64 = touched.strip_prefix("touched ").unwrap().parse().unwrap();
            assert!(bytes > 100_000, "{touched}");
        }
        // The attacks do work, from here, on what is not sealed: this test can fail.
        for pod in [&mut agent, &mut client] {
            let through = pod.ask("attack-own");
            let names =
                ["mmap writable", "mmap write only", "mprotect", "madvise remove", "write", "punch", "another seal"];
            for name in names.into_iter().chain(["re-open and map", "re-open and write", "re-open and mprotect"]) {
                assert!(through.contains(name), "{test}: {name} is not in {through}");
            }
        }
    }
}

/// What a reader may tell the kernel about its own mapping, which no seal forbids. Nothing of it changes a byte or frees a page;
/// collapsing a large region into huge pages moves the charge for them to the reader who did that.
#[test]
fn what_a_reader_advises_the_kernel_changes_nothing_for_others() {
    let sockets = Sockets::new("advise");
    let table = "t:t:20000:16777216";
    let Some((mut broker, mut agent, mut client)) = three(&sockets, table, 20_001, 20_002) else { return };
    let stats = broker.ask("stats");
    let (Some(before), Some(broker_before)) = (client.memory(), broker.memory()) else { return };
    let outcomes = client.ask("advise");
    eprintln!("{outcomes}");
    for region in outcomes.split("; ") {
        for refused in ["remove", "free", "populate for writing"] {
            assert!(region.contains(&format!("{refused} refused")), "{region}");
        }
        assert!(region.contains("dontneed done"), "{region}");
    }
    assert_eq!(broker.ask("stats"), stats);
    let whole = client.ask("touch");
    assert_eq!(client.ask("touch"), whole);
    for region in ["A", "T", "notice-page", "C"] {
        assert_eq!(client.ask(&format!("attack {region}")), "1 tried, through:", "{region} is sealed as before");
    }
    agent.ask("touch");
    // Not `shmem`, which stays with whom it was first; the kernel charges in batches, so a few hundred KiB mean nothing.
    let more = |now: Option<Memory>, before: Memory| now.map_or(0, |now| now.charged as i64 - before.charged as i64);
    let (reader, maker) = (more(client.memory(), before), more(broker.memory(), broker_before));
    eprintln!("the reader is charged {reader} bytes more, the broker {maker}");
    let few = 1 << 20;
    assert!(maker < few, "the broker pays nothing for what a reader does");
    if outcomes.contains("T: collapse done") {
        // Where the broker has made the pages huge already there is nothing to do, and nothing to pay.
        assert!((reader + maker).abs() < few, "who collapses pays, and nobody pays twice");
    } else {
        assert!(reader < few, "nothing is moved");
    }
}
