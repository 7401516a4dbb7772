//! Marks over several agents: what one may have handled stays marked until it is handled, however its successors end.

use podshm::{Agent, Client, ErrorKind, Handler, Record};
use podshm_tests::{Node, PATIENCE, until};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

#[derive(Default)]
struct Seen {
    records: Vec<(u64, bool)>,
    /// Dies at this record.
    dies_at: Option<u64>,
}

impl Handler for Seen {
    fn record(&mut self, r: Record<'_>) {
        let number = u64::from_le_bytes(r.bytes.try_into().unwrap());
        self.records.push((number, r.maybe_seen));
        if self.dies_at == Some(number) {
            std::panic::resume_unwind(Box::new("as a crash would end it"));
        }
    }
}

/// An agent that is ready.
fn agent(directory: &Path) -> Agent {
    let mut agent = Agent::builder().queue("reports", 16 * 1024, 64).connect(directory, PATIENCE).unwrap();
    agent.ready().unwrap();
    agent
}

#[test]
fn a_successor_that_closes_at_once_passes_the_marks_on() {
    let node = Node::new(Default::default());
    let directory = node.pod("agent");
    let (mut first, joining) = (agent(&directory), node.pod("a"));
    let joining = std::thread::spawn(move || Client::join(joining, PATIENCE).unwrap());
    until("the client joins", || {
        first.wait(Duration::from_millis(1)).unwrap();
        first.clients() == 1
    });
    let client = joining.join().unwrap();
    let reports = client.queue("reports").unwrap();
    for number in 0..10u64 {
        reports.try_push(&number.to_le_bytes()).unwrap();
    }

    // The first one dies with a batch in hand.
    let mut seen = Seen { dies_at: Some(2), ..Seen::default() };
    let died = catch_unwind(AssertUnwindSafe(|| {
        until("the first agent dies", || {
            first.poll(&mut seen).unwrap();
            false
        });
    }));
    assert!(died.is_err());
    assert_eq!(seen.records, [(0, false), (1, false), (2, false)]);
    drop(first);

    // The second one takes over and closes before it has looked at anything.
    node.settle("the first agent is gone", |s| !s.agent);
    let mut second = agent(&directory);
    until("the second agent has the client", || {
        second.wait(Duration::from_millis(1)).unwrap();
        second.clients() == 1
    });
    second.close(Vec::new()).unwrap();
    drop(second);

    // The third one can't know which of them were handled, and says so.
    node.settle("the second agent is gone", |s| !s.agent);
    let mut third = agent(&directory);
    let mut seen = Seen::default();
    until("everything is handled", || {
        third.poll(&mut seen).unwrap();
        seen.records.len() == 10
    });
    for (number, marked) in &seen.records[..3] {
        assert!(marked, "record {number} was handled by the first agent and comes again unmarked");
    }

    // What comes after that is new, whoever serves.
    reports.try_push(&10u64.to_le_bytes()).unwrap();
    until("the new record is handled", || {
        third.poll(&mut seen).unwrap();
        seen.records.len() == 11
    });
    third.close(Vec::new()).unwrap();
    drop(third);
    node.settle("the third agent is gone", |s| !s.agent);
    // Far behind the batch that the first agent had claimed.
    let mut fourth = agent(&directory);
    let mut seen = Seen::default();
    for number in 11..1000u64 {
        until("room", || match reports.try_push(&number.to_le_bytes()) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                fourth.poll(&mut seen).unwrap();
                false
            }
        });
    }
    until("all is handled", || {
        fourth.poll(&mut seen).unwrap();
        seen.records.len() == 989
    });
    assert!(seen.records[600..].iter().all(|(_, marked)| !marked), "marks end with the batch that was in hand");
    fourth.close(Vec::new()).unwrap();
}
