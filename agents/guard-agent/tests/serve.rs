//! The agent and its clients over a real broker and real regions, in threads of one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guard_agent::{Config, Health, ServeError, Server, Stats, Step};
use guard_client::{DECIDE, Decision, GuardClient, GuardError, Question, Verdict, WireError};
use podshm::ErrorKind;
use podshm_broker::{Broker, DomainConfig, Identity, Rights};

const PATIENCE: Duration = Duration::from_secs(30);
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/policies");
const READ: Question<'_> = Question {
    principal: r#"User::"alice""#,
    action: r#"Action::"read""#,
    resource: r#"Document::"plan""#,
    context: r#"{"over_tls": true}"#,
};

struct Node {
    broker: Broker,
    root: PathBuf,
}

impl Node {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podshm-guard-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        std::fs::create_dir_all(root.join("policies")).unwrap();
        for entry in std::fs::read_dir(EXAMPLE).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), root.join("policies").join(entry.file_name())).unwrap();
        }
        let broker = Broker::start().unwrap();
        broker.add_domain(DomainConfig::new("d")).unwrap();
        Self { broker, root }
    }

    fn socket(&self, namespace: &str, pod: &str) -> PathBuf {
        let directory = self.root.join(format!("{namespace}-{pod}"));
        if !directory.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            let serve = pod == "agent";
            let who = Identity {
                namespace: namespace.into(),
                pod: pod.into(),
                uid: pod.into(),
                service_account: "default".into(),
            };
            self.broker.add_socket("d", &directory, who, Rights { join: !serve, serve }).unwrap();
        }
        directory
    }

    fn config(&self) -> Config {
        Config::new(self.socket("podshm-system", "agent"), self.root.join("policies"))
    }

    fn client(&self, namespace: &str, pod: &str) -> GuardClient {
        GuardClient::join(self.socket(namespace, pod), PATIENCE).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.root.join("policies").join(name), text).unwrap();
    }

    /// As whoever means all or nothing: by a rename.
    fn replace(&self, name: &str, text: &str) {
        let new = self.root.join("policies/.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.root.join("policies").join(name)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

struct Running {
    stop: Arc<AtomicBool>,
    crash: Arc<AtomicBool>,
    thread: JoinHandle<Stats>,
}

impl Running {
    fn start(config: Config) -> Self {
        let (stop, crash) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, crashed) = (Arc::clone(&stop), Arc::clone(&crash));
        let thread = std::thread::spawn(move || {
            let mut server = Server::start(config).unwrap();
            while !stopped.load(Ordering::Relaxed) && server.step().unwrap() == Step::Serving {}
            let stats = server.stats();
            if !crashed.load(Ordering::Relaxed) {
                server.close().unwrap();
            }
            stats
        });
        Self { stop, crash, thread }
    }

    fn stop(self) -> Stats {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    /// Hangs up without a word, as a process that is killed does.
    fn crash(self) {
        self.crash.store(true, Ordering::Relaxed);
        self.stop();
    }
}

/// Also while one agent follows another.
fn ask(guard: &GuardClient, question: Question<'_>) -> Verdict {
    guard.ask(&question, PATIENCE).unwrap()
}

/// Again where it could not be sent because no agent was there: that is not a question without an answer.
fn sent<T>(ask: impl Fn() -> Result<T, GuardError>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Err(GuardError::Podshm(error)) if error.kind() == ErrorKind::AgentAway && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other.unwrap(),
        }
    }
}

fn health(guard: &GuardClient) -> Health {
    serde_json::from_str(&sent(|| guard.health(PATIENCE))).unwrap()
}

/// Waits until the agent's health is so.
fn await_health(guard: &GuardClient, what: impl Fn(&Health) -> bool) -> Health {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = health(guard);
        if what(&found) {
            return found;
        }
        assert!(Instant::now() < until, "{found:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn questions_are_decided_by_policies_schema_entities_and_by_who_asks() {
    let node = Node::new();
    let agent = Running::start(node.config());
    let (cart, web) = (node.client("shop", "cart"), node.client("web", "front"));

    let verdict = ask(&cart, READ);
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Allow, vec!["staff-reads".to_owned()]));
    let verdict = ask(&cart, Question { context: r#"{"over_tls": false}"#, ..READ });
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Deny, vec!["secrets-need-tls".to_owned()]));
    let verdict = ask(&cart, Question { principal: r#"User::"bob""#, ..READ });
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Deny, vec![]));

    // The same question from another namespace's pod: the broker knows which.
    let write = Question { action: r#"Action::"write""#, ..READ };
    let verdict = ask(&cart, write);
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Allow, vec!["owners-write-from-the-shop".to_owned()]));
    assert_eq!(ask(&web, write).decision, Decision::Deny);

    // No principal: the pod itself.
    let refresh = Question { principal: "", action: r#"Action::"refresh""#, resource: READ.resource, context: "" };
    let verdict = ask(&cart, refresh);
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Allow, vec!["pods#0".to_owned()]));
    assert_eq!(ask(&web, refresh).decision, Decision::Deny);

    let health = health(&cart);
    assert_eq!((health.state.as_str(), health.count, health.problem), ("ok", 4, None));
    let stats = agent.stop();
    assert_eq!((stats.decisions, stats.epoch), ([3, 4, 0], 1));
}

#[test]
fn questions_that_make_no_sense_are_no_verdict_and_harm_nobody() {
    let node = Node::new();
    let agent = Running::start(node.config());
    let (hostile, other) = (node.client("shop", "cart"), node.client("web", "front"));
    let deep = format!("{{\"over_tls\": {}1{}}}", "[".repeat(30_000), "]".repeat(30_000));
    let sets = format!("{{\"over_tls\": {}1{}}}", "[".repeat(120), "]".repeat(120));
    let long = format!("User::\"{}\"", "a".repeat(60_000));
    let bad = [
        (Question { principal: "alice", ..READ }, "principal"),
        (Question { principal: "User::\"", ..READ }, "principal"),
        (Question { principal: r#"User::"a"; permit(principal, action, resource);"#, ..READ }, "principal"),
        (Question { action: "", ..READ }, "action"),
        (Question { action: r#"Action::"fly""#, ..READ }, "fly"),
        (Question { resource: "\0", ..READ }, "resource"),
        (Question { principal: r#"Pod::"shop/cart""#, ..READ }, "Pod"),
        (Question { context: "{", ..READ }, "context"),
        (Question { context: "[1]", ..READ }, "context"),
        (Question { context: "{}", ..READ }, "over_tls"),
        (Question { context: &deep, ..READ }, "context"),
        (Question { context: &sets, ..READ }, "context"),
        (Question { context: r#"{"over_tls": true, "podshm": {"namespace": "shop", "pod": "x"}}"#, ..READ }, "podshm"),
        (Question { context: r#"{"over_tls": {"__extn": {"fn": "ip", "arg": "x"}}}"#, ..READ }, "context"),
    ];
    for (question, word) in &bad {
        let Err(GuardError::Wire(WireError::Undecided { why })) = hostile.ask(question, PATIENCE) else {
            panic!("{question:?} got a verdict");
        };
        assert!(why.contains(word), "{question:?}: {why}");
    }
    // Long, and in order: it is only that nothing permits it.
    assert_eq!(ask(&hostile, Question { principal: &long, ..READ }).decision, Decision::Deny);
    // Bytes that are no question.
    let raw = hostile.client().call(DECIDE).unwrap();
    let mut seed = 7u64;
    for len in (0..300).chain([65_536]) {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        let mut room = vec![0; 65_536];
        let len = raw.call(&bytes, &mut room, PATIENCE).unwrap();
        assert!(guard_client::wire::decode_verdict(&room[..len]).is_err(), "{len} random bytes are no question");
        if len % 50 == 0 {
            assert_eq!(ask(&other, READ).decision, Decision::Allow);
        }
    }
    assert_eq!(ask(&other, READ).decision, Decision::Allow);
    let stats = agent.stop();
    assert_eq!(stats.decisions[2], bad.len() as u64 + 301);
}

#[test]
fn changed_policies_come_into_use_and_bad_ones_leave_the_last_good() {
    let node = Node::new();
    let agent = Running::start(node.config());
    let guard = node.client("shop", "cart");
    let first = ask(&guard, READ);
    assert_eq!(first.decision, Decision::Allow);

    node.write("more.cedar", r#"@id("nobody") forbid (principal, action, resource);"#);
    let good = await_health(&guard, |health| health.reloads == 1);
    let verdict = ask(&guard, READ);
    assert_eq!((verdict.decision, verdict.reasons), (Decision::Deny, vec!["nobody".to_owned()]));
    assert_ne!(verdict.policies, first.policies);
    assert_eq!(format!("{:016x}", verdict.policies), good.policies);

    let faults = [
        ("more.cedar", "forbid (principal", "more.cedar"),
        ("more.cedar", r#"@id("staff-reads") forbid (principal, action, resource);"#, "staff-reads"),
        ("more.cedar", "permit (principal, action, resource) when { principal.age > 3 };", "age"),
        ("entities.json", "[{]", "entities.json"),
        ("schema.cedarschema", "entity", "schema.cedarschema"),
        ("schema.json", "{}", "schema.json"),
    ];
    let before = |name: &str| std::fs::read_to_string(node.root.join("policies").join(name)).ok();
    for (name, text, word) in faults {
        let old = before(name);
        node.write(name, text);
        let health = await_health(&guard, |health| health.problem.as_ref().is_some_and(|found| found.contains(word)));
        assert_eq!((health.state.as_str(), &health.policies), ("stale", &good.policies), "{name}: {text}");
        assert_eq!(ask(&guard, READ).policies, verdict.policies, "{name}: {text}");
        match old {
            Some(old) => node.write(name, &old),
            None => std::fs::remove_file(node.root.join("policies").join(name)).unwrap(),
        }
        let health = await_health(&guard, |health| health.state == "ok");
        assert_eq!((&health.policies, health.problem), (&good.policies, None));
    }
    // All of them gone is no wish to deny everything: that can be said.
    let (here, there) = (node.root.join("policies"), node.root.join("away"));
    std::fs::rename(&here, &there).unwrap();
    await_health(&guard, |health| health.state == "stale");
    std::fs::create_dir(&here).unwrap();
    await_health(&guard, |health| health.problem.as_ref().is_some_and(|found| found.contains("no policy")));
    assert_eq!(ask(&guard, READ).policies, verdict.policies);
    std::fs::remove_dir(&here).unwrap();
    std::fs::rename(&there, &here).unwrap();
    await_health(&guard, |health| health.state == "ok");
    // The directory is another one than was watched at first, and is followed all the same.
    std::fs::remove_file(here.join("more.cedar")).unwrap();
    await_health(&guard, |health| health.reloads == 2);
    assert_eq!(ask(&guard, READ), first);
    agent.stop();
}

/// As the kubelet changes a ConfigMap: files are links into a directory that is a link, which is replaced.
#[test]
fn a_config_map_is_followed() {
    let node = Node::new();
    let directory = node.root.join("map");
    let version = |name: &str, text: &str| {
        std::fs::create_dir_all(directory.join(name)).unwrap();
        std::fs::write(directory.join(name).join("all.cedar"), text).unwrap();
        std::os::unix::fs::symlink(name, directory.join("..data_tmp")).unwrap();
        std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    };
    version("..1", "permit (principal, action, resource);");
    std::os::unix::fs::symlink("..data/all.cedar", directory.join("all.cedar")).unwrap();
    let mut config = node.config();
    config.policies = directory.clone();
    let agent = Running::start(config);
    let guard = node.client("shop", "cart");
    assert_eq!(ask(&guard, READ).decision, Decision::Allow);
    version("..2", "forbid (principal, action, resource);");
    await_health(&guard, |health| health.reloads == 1);
    assert_eq!(ask(&guard, READ).decision, Decision::Deny);
    agent.stop();
}

#[test]
fn under_load_each_verdict_is_of_one_set_of_policies_while_they_change_and_agents_come_and_go() {
    let node = Node::new();
    let mut agent = Running::start(node.config());
    // By the one set alice's question is allowed because of "a", by the other because of "b".
    let set = |name: &str| format!("@id(\"{name}\") permit (principal, action == Action::\"write\", resource);");
    let stop = Arc::new(AtomicBool::new(false));
    node.replace("set.cedar", &set("a"));
    let watched = node.client("web", "watcher");
    await_health(&watched, |health| health.count == 5);
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let (guard, stop) = (node.client("web", &format!("front-{number}")), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut seen, mut asked) = (std::collections::BTreeMap::new(), 0u64);
                while !stop.load(Ordering::Relaxed) {
                    let verdict = ask(&guard, Question { action: r#"Action::"write""#, ..READ });
                    assert_eq!((verdict.decision, verdict.reasons.len()), (Decision::Allow, 1), "{verdict:?}");
                    let reason = seen.entry(verdict.policies).or_insert_with(|| verdict.reasons[0].clone());
                    assert_eq!(*reason, verdict.reasons[0], "one fingerprint, two sets");
                    asked += 1;
                }
                (seen.len(), asked)
            })
        })
        .collect();
    for round in 0..6 {
        let name = if round % 2 == 0 { "b" } else { "a" };
        node.replace("set.cedar", &set(name));
        await_health(&watched, |_| ask(&watched, Question { action: r#"Action::"write""#, ..READ }).reasons == [name]);
        node.replace("set.cedar", "permit (");
        await_health(&watched, |health| health.state == "stale");
        node.replace("set.cedar", &set(name));
        await_health(&watched, |health| health.state == "ok");
        if round % 3 == 1 {
            let next = Running::start(node.config());
            agent.thread.join().unwrap();
            agent = next;
        }
        if round % 3 == 2 {
            agent.crash();
            agent = Running::start(node.config());
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let (sets, asked) = client.join().unwrap();
        assert!(sets == 2 && asked > 0, "{sets} sets, {asked} questions");
    }
    agent.stop();
}

#[test]
fn who_starts_with_bad_policies_does_not_take_over_or_decides_by_the_last_good_ones() {
    let node = Node::new();
    let mut config = node.config();
    config.last_good = Some(node.root.join("last-good.json"));
    let agent = Running::start(config.clone());
    let guard = node.client("shop", "cart");
    let first = ask(&guard, READ);
    node.write("more.cedar", "forbid (");
    await_health(&guard, |health| health.state == "stale");

    let Err(ServeError::NoPolicies(why)) = Server::start(node.config()) else { panic!("it served") };
    assert!(why.contains("more.cedar"), "{why}");
    assert_eq!(ask(&guard, READ), first);

    agent.crash();
    let away = guard.ask(&READ, Duration::from_millis(30)).unwrap_err();
    assert!(matches!(&away, GuardError::Podshm(error) if error.kind() == ErrorKind::AgentAway), "{away:?}");
    let health_file = node.root.join("health.json");
    config.health_file = Some(health_file.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let server = Server::start(config).unwrap();
    let thread = std::thread::spawn(move || server.run(|| stopped.load(Ordering::Relaxed), |_| {}).unwrap());
    assert_eq!(ask(&guard, READ), first);
    let found = health(&guard);
    assert_eq!((found.state.as_str(), found.rejected), ("stale", 1));
    assert!(found.problem.unwrap().contains("more.cedar"));
    let until = Instant::now() + PATIENCE;
    while !Path::new(&health_file).exists() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(20));
    }
    let probed = Health::probe(&health_file, PATIENCE, false).unwrap();
    assert!(probed.contains("\"stale\""), "{probed}");
    // Written before it serves, perhaps.
    while let Err(why) = Health::probe(&health_file, PATIENCE, true) {
        assert!(why.contains("does not serve yet") && Instant::now() < until, "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    // Nobody writes it any more.
    std::thread::sleep(Duration::from_millis(20));
    let why = Health::probe(&health_file, Duration::from_millis(10), false).unwrap_err();
    assert!(why.contains("ago"), "{why}");
}

#[test]
fn who_waits_for_its_turn_is_alive_and_not_ready() {
    let file = std::env::temp_dir().join(format!("podshm-guard-health-{}", std::process::id()));
    for (epoch, is_ready) in [(0, false), (3, true)] {
        let health = guard_agent::Health { state: "ok".into(), epoch, ..Default::default() };
        std::fs::write(&file, health.json()).unwrap();
        Health::probe(&file, PATIENCE, false).unwrap();
        assert_eq!(Health::probe(&file, PATIENCE, true).is_ok(), is_ready);
    }
    std::fs::remove_file(&file).unwrap();
}
