//! fork in a process that serves: the child's agent and broker refuse, the parent's go on, and an agent's death is noticed while
//! a child of its lives on.

use podshm::{Agent, Answer, Client, Error, ErrorKind, Handler, Record, Request};
use podshm_broker::{Broker, BrokerError};
use podshm_tests::programs::Talk;
use podshm_tests::serving::Serving;
use podshm_tests::{Node, PATIENCE};
use std::io::Write;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One at a time: what another test's broker has in its hands for a moment is a socket that a child would count.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Default)]
struct Count(u64);

impl Handler for Count {
    fn record(&mut self, _: Record<'_>) {
        self.0 += 1;
    }
}

fn agent(node: &Node) -> Agent {
    let agent = Agent::builder().table("routes", 100, 64 * 1024).queue("reports", 16 * 1024, 1024);
    agent.connect(node.pod("agent"), PATIENCE).unwrap()
}

/// Forks; waits for the child's end in the parent, which learns how that was: `None` in the child.
fn fork_and_wait() -> Option<i32> {
    // SAFETY: the child uses its own memory and leaves by _exit; the allocator is usable in it, by glibc's own fork handlers.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: a child that hangs is ended by the kernel.
        unsafe { libc::alarm(60) };
        return None;
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child ended by signal {}", libc::WTERMSIG(status));
    Some(libc::WEXITSTATUS(status))
}

/// Runs `child` in a forked child; how many of its checks failed, at the first of which it stops counting.
fn in_child(child: impl FnOnce() -> Result<(), i32>) -> i32 {
    fork_and_wait().unwrap_or_else(|| {
        // SAFETY: ends the child without the test harness's destructors.
        unsafe { libc::_exit(child().err().unwrap_or(0)) }
    })
}

fn refused<T>(check: i32, result: Result<T, Error>) -> Result<(), i32> {
    if result.is_err_and(|e| e.kind() == ErrorKind::Forked) { Ok(()) } else { Err(check) }
}

fn sockets() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let target = |fd: std::io::Result<std::fs::DirEntry>| std::fs::read_link(fd.ok()?.path()).ok();
    let is_ours = |t: &std::path::PathBuf| {
        let t = t.to_string_lossy();
        t.starts_with("socket:") || t.contains("memfd:podshm")
    };
    fds.filter_map(target).filter(is_ours).count()
}

#[test]
fn an_agent_and_a_broker_refuse_in_a_child_and_go_on_in_the_parent() {
    let _alone = ALONE.lock();
    let node = Node::new(Default::default());
    let (mut serving, mut count) = (agent(&node), Count::default());
    let mut routes = serving.table("routes").unwrap();
    routes.put(b"key", b"value").unwrap();
    let status = in_child(|| {
        refused(1, routes.put(b"key", b"other"))?;
        refused(2, routes.publish(&[(b"key".to_vec(), None)]))?;
        if routes.remove(b"key") || routes.keys() != 0 {
            return Err(3);
        }
        routes.touch();
        Ok(())
    });
    assert_eq!(status, 0, "a table's writer was not refused");
    serving.ready().unwrap();
    let directory = node.pod("a");
    let client = std::thread::spawn(move || Client::join(directory, PATIENCE).unwrap());
    let until = Instant::now() + PATIENCE;
    while !client.is_finished() || serving.clients() == 0 {
        assert!(Instant::now() < until, "the client does not join");
        serving.poll(&mut count).unwrap();
        serving.wait(Duration::from_millis(1)).unwrap();
    }
    let client = client.join().unwrap();
    let reports = client.queue("reports").unwrap();
    reports.push(b"one", PATIENCE).unwrap();

    // The broker has nothing in its hands when it answers: between two descriptors' being made and listed a child would keep them.
    node.settle("all have joined", |s| s.clients.len() == 1);
    let mut second = Some(Broker::start().unwrap());
    let mut parents = Some((serving, client.clone(), reports.clone()));
    let status = in_child(|| {
        let (mut serving, client, reports) = parents.take().ok_or(10)?;
        if sockets() != 0 {
            return Err(11);
        }
        refused(12, serving.poll(&mut Count::default()))?;
        refused(13, serving.wait(Duration::from_millis(1)))?;
        refused(14, serving.ready())?;
        refused(15, serving.table("routes"))?;
        refused(16, serving.close(Vec::new()))?;
        refused(17, reports.try_push(b"child"))?;
        drop((serving, client, reports));
        if !matches!(node.broker.stats("d"), Err(BrokerError::Forked)) {
            return Err(18);
        }
        drop(second.take());
        Ok(())
    });
    assert_eq!(status, 0, "that check of the child failed");
    let (mut serving, _, _) = parents.take().unwrap();
    reports.push(b"two", PATIENCE).unwrap();
    while count.0 < 2 {
        assert!(Instant::now() < until, "the parent's agent handled {} records of 2", count.0);
        serving.poll(&mut count).unwrap();
        serving.wait(Duration::from_millis(1)).unwrap();
    }
    let mut value = [0; 8];
    assert_eq!(client.table("routes").unwrap().get(b"key", &mut value).unwrap(), Some(5));
    serving.table("routes").unwrap().put(b"key", b"longer").unwrap();
    assert_eq!(client.table("routes").unwrap().get(b"key", &mut value).unwrap(), Some(6));
    serving.close(Vec::new()).unwrap();
    drop(second);
    node.settle("the agent has closed", |s| !s.agent && s.clients.len() == 1);
}

/// The agent's process, which forks: nothing when run as a test.
#[test]
fn role_agent_that_forks() {
    let Ok(directory) = std::env::var("FORK_AGENT") else { return };
    let mut agent = Agent::builder()
        .table("routes", 100, 64 * 1024)
        .queue("reports", 16 * 1024, 1024)
        .call("decide", 16 * 1024, 64 * 1024)
        .connect(directory, PATIENCE)
        .unwrap();
    agent.ready().unwrap();
    let mut forked = false;
    let until = Instant::now() + PATIENCE * 3;
    loop {
        agent.poll(&mut Count::default()).unwrap();
        agent.wait(Duration::from_millis(5)).unwrap();
        assert!(Instant::now() < until, "nobody kills this agent");
        if agent.clients() == 0 || forked {
            continue;
        }
        forked = true;
        let raw = std::env::var("FORK_RAW").is_ok();
        // SAFETY: the child reads its input to the end, by system calls alone, and leaves by _exit.
        let child = unsafe {
            if raw { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 } else { libc::fork() }
        };
        if child == 0 {
            let mut byte = 0u8;
            // Not before the handlers have run here. (No allocation: a cloned child may find the allocator locked.)
            let mut line = [0; 32];
            let mut text = std::io::Cursor::new(&mut line[..]);
            let _ = write!(text, "\nchild {}\n", std::process::id());
            let len = text.position() as usize;
            // SAFETY: bytes of this stack; then the end.
            unsafe {
                libc::write(1, line.as_ptr().cast(), len);
                while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
                libc::_exit(0);
            }
        }
    }
}

/// An agent that serves `client` and has a child, whose number it says; `raw` passes the fork handlers by.
fn agent_with_a_child(node: &Node, raw: bool) -> (Talk, Client, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role_agent_that_forks", "--test-threads=1", "--nocapture"]);
    command.env("FORK_AGENT", node.pod("agent"));
    if raw {
        command.env("FORK_RAW", "1");
    }
    let mut program = Talk::start(command);
    let client = Client::join(node.pod("a"), PATIENCE).unwrap();
    let child = program.find("child ");
    (program, client, child)
}

fn must_live(child: &str) {
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
    assert!(!stat.contains(") Z "), "the child has ended, so that this shows nothing");
}

/// Calls until the successor answers.
fn call_the_successor(client: &Client) {
    let mut answer = [0; 8];
    let decide = client.call("decide").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        match decide.call(b"ab", &mut answer, Duration::from_millis(200)) {
            Ok(2) => return,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_agents_death_is_noticed_while_its_child_lives_on() {
    let _alone = ALONE.lock();
    let node = Node::new(Default::default());
    let (mut program, client, child) = agent_with_a_child(&node, false);
    program.kill();
    node.settle("the agent is gone", |s| !s.agent);
    assert_eq!(node.broker.stats("d").unwrap().held_open, 0, "in time, not late");
    let until = Instant::now() + PATIENCE;
    while client.agent_present() {
        assert!(Instant::now() < until, "the client does not see the agent's doorbell hang up");
        std::thread::sleep(Duration::from_millis(1));
    }
    must_live(&child);
    let successor = Serving::start(node.pod("agent"));
    call_the_successor(&client);
    drop(client);
    successor.stop();
}

#[test]
fn an_agent_whose_sockets_a_child_keeps_is_named_and_succeeded() {
    let _alone = ALONE.lock();
    let node = Node::new(Default::default());
    let (mut program, client, child) = agent_with_a_child(&node, true);
    program.kill();
    node.settle("the agent is known to be dead", |s| !s.agent);
    must_live(&child);
    assert_eq!(node.broker.stats("d").unwrap().held_open, 1);
    assert!(client.agent_present(), "its doorbell hangs up, so that this shows nothing");
    let successor = Serving::start(node.pod("agent"));
    call_the_successor(&client);
    drop(client);
    node.settle("the client is drained", |s| s.clients.is_empty());
    assert_eq!(node.broker.stats("d").unwrap().held_open, 1);
    successor.stop();
}

/// Forks wherever it is called. The child does what a handler does, in the ways there are, and goes back to the agent.
#[derive(Default)]
struct Forking {
    is_child: bool,
    forks: u32,
    records: Vec<Vec<u8>>,
    parts: usize,
    later: Vec<podshm::Deferred>,
}

impl Forking {
    fn fork(&mut self) {
        self.forks += 1;
        match fork_and_wait() {
            None => self.is_child = true,
            Some(status) => assert_eq!(status, 0, "that check of a child failed, of fork {}", self.forks),
        }
    }
}

impl Handler for Forking {
    fn record(&mut self, record: Record<'_>) {
        self.fork();
        assert!(!self.is_child || self.records.len() < 100, "a child is given more");
        self.records.push(record.bytes.to_vec());
    }

    fn part(&mut self, request: Request<'_>, offset: usize) -> bool {
        if offset == 0 {
            self.fork();
        }
        self.parts += 1;
        request.bytes.first() == Some(&1)
    }

    fn call(&mut self, request: Request<'_>, answer: &mut Answer<'_>) {
        self.fork();
        let bytes = if self.is_child { b"the child's".to_vec() } else { vec![7; request.len] };
        match (self.is_child, self.forks % 6) {
            (_, 0) => answer.reply(&bytes),
            (_, 1) => answer.reply_owned(bytes),
            (_, 2) => answer.reply_with(bytes.len(), move |at, part| part.copy_from_slice(&bytes[at..at + part.len()])),
            (_, 3) => answer.defer().reply(bytes),
            (true, 4) => answer.fail(99),
            (true, _) => self.later.push(answer.defer()),
            (false, _) => answer.reply(&bytes),
        }
    }
}

#[test]
fn a_child_forked_in_a_handler_is_refused_when_it_goes_back_and_answers_nothing() {
    const ROUNDS: u32 = 12;
    let _alone = ALONE.lock();
    let node = Node::new(Default::default());
    let builder = Agent::builder().queue("reports", 16 * 1024, 1024).call("decide", 16 * 1024, 16 * 1024);
    let mut serving = builder.connect(node.pod("agent"), PATIENCE).unwrap();
    serving.ready().unwrap();
    let directory = node.pod("a");
    // Nothing but its answers tells this thread what the handler does; it is in the parent only.
    let client = std::thread::spawn(move || {
        let client = Client::join(directory, PATIENCE).unwrap();
        let (reports, decide) = (client.queue("reports").unwrap(), client.call("decide").unwrap());
        let mut answer = vec![0; 16 * 1024];
        for n in 0..ROUNDS {
            reports.push(&n.to_le_bytes(), PATIENCE).unwrap();
            // In one part; in several, kept for the handler; in several, taken as they come.
            for (len, first) in [(100, 0), (9_000, 0), (9_000, 1)] {
                let found = decide.call(&vec![first; len], &mut answer, PATIENCE).unwrap();
                assert!(found == len && answer[..len].iter().all(|b| *b == 7), "round {n}: another's answer");
            }
        }
    });
    let mut handler = Forking::default();
    let until = Instant::now() + PATIENCE * 3;
    while !client.is_finished() {
        let result = serving.poll(&mut handler);
        if handler.is_child {
            let checks = || {
                refused(30, result)?;
                refused(31, serving.poll(&mut Count::default()))?;
                refused(32, serving.wait(Duration::from_millis(1)))?;
                refused(33, serving.close(Vec::new()))?;
                if sockets() != 0 {
                    return Err(34);
                }
                drop((std::mem::take(&mut handler.later), serving));
                Ok(())
            };
            // SAFETY: ends the child without the test harness's destructors.
            unsafe { libc::_exit(checks().err().unwrap_or(0)) }
        }
        result.unwrap();
        serving.wait(Duration::from_millis(1)).unwrap();
        assert!(Instant::now() < until, "the client does not end; {} forks", handler.forks);
    }
    client.join().unwrap();
    let expected: Vec<Vec<u8>> = (0..ROUNDS).map(|n| n.to_le_bytes().to_vec()).collect();
    assert_eq!(handler.records, expected, "each record once");
    // One for each record, one for each of three calls, one more for each that came in parts.
    assert_eq!(handler.forks, ROUNDS * 6);
    serving.close(Vec::new()).unwrap();
}
