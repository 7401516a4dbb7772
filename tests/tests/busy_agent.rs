//! An agent that some clients keep busy: it sees the others, and a successor, after so many records and not when it is idle.

use podshm::{Agent, Client, ErrorKind, Handler, Progress, QueueSender, Record};
use podshm_tests::{Node, PATIENCE, until};
use std::path::Path;
use std::time::Duration;

/// Records of the busy client that may be handled until something else is looked at: those between two looks, and a batch.
const MOST: u64 = 1024 + 256;

#[derive(Default)]
struct Counts {
    busy: u64,
    /// Of the busy one, when the quiet one's record came.
    before_quiet: Option<u64>,
}

impl Handler for Counts {
    fn record(&mut self, record: Record<'_>) {
        match record.bytes {
            b"quiet" => self.before_quiet = Some(self.busy),
            _ => self.busy += 1,
        }
    }
}

fn agent(directory: &Path) -> Agent {
    let mut agent = Agent::builder().queue("reports", 16 * 1024, 64).connect(directory, PATIENCE).unwrap();
    agent.ready().unwrap();
    agent
}

fn fill(queue: &QueueSender) {
    loop {
        match queue.try_push(b"busy") {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                return;
            }
        }
    }
}

/// The agent, and two clients that it has and that are cold.
fn two_clients(node: &Node) -> (Agent, [Client; 2]) {
    let mut agent = agent(&node.pod("agent"));
    let directories = ["busy", "quiet"].map(|pod| node.pod(pod));
    let joining = std::thread::spawn(move || directories.map(|d| Client::join(d, PATIENCE).unwrap()));
    until("both are served and cold", || {
        agent.poll(&mut Counts::default()).unwrap();
        agent.wait(Duration::from_millis(1)).unwrap();
        agent.clients() == 2 && agent.hot_clients() == 0 && joining.is_finished()
    });
    (agent, joining.join().unwrap())
}

#[test]
fn a_cold_client_is_seen_between_the_records_of_a_busy_one() {
    let node = Node::new(Default::default());
    let (mut agent, clients) = two_clients(&node);
    let [busy, quiet] = clients.map(|client| client.queue("reports").unwrap());
    let mut counts = Counts::default();
    until("the busy one is hot", || {
        fill(&busy);
        agent.poll(&mut counts).unwrap();
        counts.busy > 0
    });
    let before = counts.busy;
    quiet.try_push(b"quiet").unwrap();
    until("the quiet one's record is handled", || {
        fill(&busy);
        agent.poll(&mut counts).unwrap();
        counts.before_quiet.is_some()
    });
    let between = counts.before_quiet.unwrap() - before;
    assert!(between <= MOST, "{between} records of the busy one came first");
}

#[test]
fn a_successor_is_seen_between_the_records_of_a_busy_client() {
    let node = Node::new(Default::default());
    let (mut first, [busy, _quiet]) = two_clients(&node);
    let busy = busy.queue("reports").unwrap();
    let mut counts = Counts::default();
    let directory = node.pod("agent");
    let second = std::thread::spawn(move || agent(&directory));
    // It has said that it is ready, and the broker has heard so, when it is asked for anything later.
    let second = second.join().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = counts.busy;
    until("the first one is asked to close", || {
        fill(&busy);
        first.poll(&mut counts).unwrap() == Progress::CloseAsked
    });
    let between = counts.busy - before;
    assert!(between <= MOST, "{between} records came before that");
    first.close(Vec::new()).unwrap();
    drop(second);
}
