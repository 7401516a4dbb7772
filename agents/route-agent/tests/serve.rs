//! The agent and its clients over a real broker and real regions, in threads of one process.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use podshm_broker::{Broker, DomainConfig, Identity, Rights};
use route_agent::{Config, FileSource, Pace, ServeError, Server, Stats, Step, delivered};
use route_client::{ClientErrorKind, Locality, Outcome, RouteClient, RouteHandle, SmallRandom, Trailer};

const PATIENCE: Duration = Duration::from_secs(20);
const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/endpointslices.json");
const EVENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/endpointslice-events.jsonl");

struct Node {
    broker: Broker,
    root: PathBuf,
}

impl Node {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podshm-route-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&root).unwrap();
        let broker = Broker::start().unwrap();
        broker.add_domain(DomainConfig::new("d")).unwrap();
        Self { broker, root }
    }

    fn pod(&self, name: &str) -> PathBuf {
        let directory = self.root.join(name);
        if !directory.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            let serve = name == "agent";
            let who = Identity {
                namespace: "test".into(),
                pod: name.into(),
                uid: name.into(),
                service_account: "default".into(),
            };
            self.broker.add_socket("d", &directory, who, Rights { join: !serve, serve }).unwrap();
        }
        directory
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn join(&self, name: &str) -> RouteClient {
        RouteClient::join(self.pod(name), PATIENCE).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// How an agent in a thread is to end.
struct Running {
    stop: Arc<AtomicBool>,
    crash: Arc<AtomicBool>,
    thread: JoinHandle<(Stats, Vec<String>)>,
}

impl Running {
    fn start(node: &Node, list: &Path, events: Option<&Path>, log: Option<&Path>) -> Self {
        let (stop, crash) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut config = Config::new(node.pod("agent"));
        config.log_delivered = log.map(Into::into);
        let source = FileSource::new(list, events.map(Into::into), Pace::Unpaced);
        let (stopped, crashed) = (Arc::clone(&stop), Arc::clone(&crash));
        let thread = std::thread::spawn(move || {
            let mut server = Server::start(config, source).unwrap();
            while !stopped.load(Ordering::Relaxed) && server.step().unwrap() == Step::Serving {}
            let (stats, problems) = (server.stats(), server.problems().map(str::to_owned).collect());
            if !crashed.load(Ordering::Relaxed) {
                server.close().unwrap();
            }
            (stats, problems)
        });
        Self { stop, crash, thread }
    }

    fn join(self) -> (Stats, Vec<String>) {
        self.thread.join().unwrap()
    }

    fn stop(self) -> (Stats, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Hangs up without a word, as a process that is killed does.
    fn crash(self) {
        self.crash.store(true, Ordering::Relaxed);
        self.stop();
    }
}

fn slice(name: &str, version: u32, addresses: &[&str]) -> String {
    let endpoints: Vec<String> = addresses
        .iter()
        .map(|a| format!(r#"{{"addresses":["{a}"],"conditions":{{"ready":true,"serving":true}},"zone":"zone-a"}}"#))
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4","metadata":{{"name":"{name}",
        "namespace":"shop","resourceVersion":"{version}","labels":{{"kubernetes.io/service-name":"cart"}}}},
        "ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
    .replace('\n', " ")
}

fn list(slices: &[String]) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"List","metadata":{{"resourceVersion":""}},"items":[{}]}}"#, slices.join(","))
}

fn wait(what: &str, mut good: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The endpoints that 300 picks give.
fn picks(route: &mut RouteHandle) -> BTreeSet<u64> {
    let mut random = SmallRandom::new(7);
    (0..300).map(|_| route.pick(&mut random).unwrap().record.id).collect()
}

const FOUR: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];

/// Reports failures of one of four endpoints by two members until it isn't picked any more.
fn eject(clients: [&RouteClient; 2], route: &mut RouteHandle) -> u64 {
    let all = picks(route);
    assert_eq!(all.len(), 4);
    let bad = *all.first().unwrap();
    for n in 0..10 {
        clients[n % 2].report_wait(route, bad, Outcome::Error, Duration::from_millis(3), PATIENCE).unwrap();
    }
    wait("the ejection", || !picks(route).contains(&bad));
    assert_eq!(picks(route).len(), 3);
    bad
}

#[test]
fn picks_come_from_the_real_input_and_events_become_visible() {
    let node = Node::new();
    let agent = Running::start(&node, Path::new(LIST), Some(Path::new(EVENTS)), None);
    let client = node.join("a").in_zone(Locality::zone("zone-b"));
    // What must be true in the end is worked out from the same files, without shared memory.
    let mut source = FileSource::new(LIST, Some(EVENTS.into()), Pace::Unpaced);
    let (mut store, mut before) = (route_agent::Store::new(), Vec::new());
    while let Some(event) = route_agent::Source::poll(&mut source, 0) {
        match event {
            route_agent::SourceEvent::Snapshot(list) => {
                store.replace(list, &route_agent::FullWeights);
                before = store.values().map(|(k, v)| (k.clone(), v.clone())).collect();
            }
            route_agent::SourceEvent::Event(event) => drop(store.apply(event, &route_agent::FullWeights)),
            _ => break,
        }
    }
    let table = client.client().table("routes").unwrap();
    let mut buffer = vec![0; 65536];
    let (mut changed, mut random) = (0, SmallRandom::new(1));
    for (key, value) in store.values() {
        wait("the value after all events", || {
            let len = table.get(key.as_bytes(), &mut buffer).unwrap();
            len.is_some_and(|len| buffer[..len] == **value)
        });
        changed += usize::from(before.iter().any(|(k, v)| k == key && v != value));
        let endpoints = route_client::Route::decode(&mut &**value).unwrap().endpoints;
        let mut route = client.route(key.as_str()).unwrap();
        for _ in 0..20 {
            let (picked, address) = route.pick_address(&mut random).unwrap();
            let found = endpoints.iter().find(|e| e.id() == picked.record.id).unwrap();
            assert_eq!((&found.address, found.port), (&address, picked.record.port));
            assert!(picked.socket_addr().is_some_and(|a| a.port() == found.port));
            assert!(found.ready || picked.header.terminating());
        }
        let mut many = Vec::with_capacity(8);
        route.pick_many(&mut random, &mut many).unwrap();
        assert!(many.len() >= 8);
    }
    assert!(changed > 10, "the events changed {changed} routes");
    let kind = client.route("no/such:route").unwrap().pick(&mut random).unwrap_err().kind();
    assert_eq!(kind, ClientErrorKind::NoRoute);
    assert_eq!(client.route("nonsense").unwrap_err().kind(), ClientErrorKind::Key);

    let (key, _) = store.values().next().unwrap();
    let explained = client.explain(&client.route(key.as_str()).unwrap(), PATIENCE).unwrap();
    let json: serde_json::Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(json["route"], key.as_str());
    assert_eq!(json["list"].as_array().unwrap().len() as u64, json["endpoints"].as_u64().unwrap());
    let unknown = client.explain(&client.route("no/such:route").unwrap(), PATIENCE).unwrap();
    assert!(unknown.starts_with(r#"{"error":"#), "{unknown}");
    let mut probe = b"echo:".to_vec();
    probe.resize(60_000, 9);
    assert_eq!(client.ask(&probe, PATIENCE).unwrap(), probe);
    wait("a touch", || client.age().unwrap() < Duration::from_secs(2));
    drop((client, table));
    let (stats, problems) = agent.stop();
    assert_eq!((stats.events, stats.routes, stats.upstream, stats.epoch), (400, 708, 1, 1));
    assert!(problems.is_empty(), "{problems:?}");
    assert!(stats.to_string().ends_with("routes=708 events=400 ejected=0 upstream=1"), "{stats}");
}

#[test]
fn an_upgrade_keeps_an_ejection_and_a_crash_loses_it() {
    let node = Node::new();
    let file = node.file("list.json", &list(&[slice("cart-a", 1, &FOUR)]));
    let log = node.root.join("delivered");
    let first = Running::start(&node, &file, None, Some(&log));
    let (client, other) = (node.join("a"), node.join("b"));
    let mut route = client.route("shop/cart:http").unwrap();
    let bad = eject([&client, &other], &mut route);
    drop(other);
    wait("the other's end", || node.broker.stats("d").unwrap().clients.len() == 1);

    let second = Running::start(&node, &file, None, Some(&log));
    let (stats, _) = first.join();
    assert_eq!((stats.ejected, stats.records, stats.clients), (1, 10, 1));
    wait("the second agent", || client.client().agent_epoch().unwrap() == 2 && client.client().agent_present());
    let explained = |route: &RouteHandle| -> Option<serde_json::Value> {
        serde_json::from_str(&client.explain(route, Duration::from_millis(500)).ok()?).ok()
    };
    wait("the second agent's answer", || explained(&route).is_some_and(|json| json["ejected"] == 1));
    wait("the values of the second agent", || !picks(&mut route).contains(&bad));
    assert_eq!(explained(&route).unwrap()["list"][0]["reports"], 10);

    for seq in 0..100 {
        let what = (bad ^ 1, Outcome::Success, Duration::ZERO);
        client.report_numbered(&route, what, Trailer { sender: 3, seq }, PATIENCE).unwrap();
    }
    wait("the deliveries", || delivered::read(std::fs::File::open(&log).unwrap()).count() == 110);
    second.crash();
    let third = Running::start(&node, &file, None, None);
    wait("the third agent", || client.client().agent_epoch().unwrap() == 3);
    wait("everybody is back", || picks(&mut route).len() == 4);
    assert!(picks(&mut route).contains(&bad));
    drop((client, route));
    third.stop();
    let entries: Vec<_> = delivered::read(std::fs::File::open(&log).unwrap()).map(Result::unwrap).collect();
    let numbers: Vec<u64> = entries.iter().filter_map(|e| e.trailer.map(|t| t.seq)).collect();
    assert_eq!(numbers, (0..100).collect::<Vec<u64>>());
    assert!(entries.iter().all(|e| !e.maybe_seen && e.trailer.is_none_or(|t| t.sender == 3)));
}

#[test]
fn a_successor_leaves_the_ejected_out_before_it_handles_anything() {
    let node = Node::new();
    let file = node.file("list.json", &list(&[slice("cart-a", 1, &FOUR)]));
    let first = Running::start(&node, &file, None, None);
    let (client, other) = (node.join("a"), node.join("b"));
    let mut route = client.route("shop/cart:http").unwrap();
    let bad = eject([&client, &other], &mut route);
    let source = FileSource::new(&file, None, Pace::Unpaced);
    let mut second = Server::start(Config::new(node.pod("agent")), source).unwrap();
    first.join();
    wait("the take-over", || client.client().agent_epoch().unwrap() == 2 && client.client().agent_present());
    // It has taken over by the broker's word, and a record waits for it, but it has not looked yet.
    client.report_wait(&route, bad, Outcome::Success, Duration::ZERO, PATIENCE).unwrap();
    let until = Instant::now() + PATIENCE;
    while second.stats().ejected == 0 {
        assert!(Instant::now() < until, "the state was not taken");
        // What it is told may come while it sleeps at the end of a step: then the next one uses it.
        second.step().unwrap();
        assert_eq!(second.stats().records, 0, "nothing is handled before the state is in use");
    }
    wait("its table at the client", || client.client().table("routes").unwrap().generation_number().unwrap() == 2);
    assert!(!picks(&mut route).contains(&bad));
    let until = Instant::now() + PATIENCE;
    while second.stats().records == 0 {
        assert!(Instant::now() < until, "the record was not handled");
        second.step().unwrap();
    }
    assert_eq!(second.stats().ejected, 1);
    second.close().unwrap();
}

#[test]
fn a_successor_may_have_many_more_routes_than_its_predecessor_began_with() {
    let node = Node::new();
    let few = node.file("few.json", &list(&[slice("cart-a", 1, &FOUR)]));
    let of = |number: usize| {
        let service = format!("\"kubernetes.io/service-name\":\"cart{number}\"");
        slice(&format!("cart{number}-a"), 1, &FOUR).replace("\"kubernetes.io/service-name\":\"cart\"", &service)
    };
    let all: Vec<String> = std::iter::once(slice("cart-a", 1, &FOUR)).chain((0..3000).map(of)).collect();
    let many = node.file("many.json", &list(&all));
    let first = Running::start(&node, &few, None, None);
    let client = node.join("a");
    let mut route = client.route("shop/cart:http").unwrap();
    assert_eq!(picks(&mut route).len(), 4);

    let second = Running::start(&node, &many, None, None);
    first.join();
    wait("the second agent", || client.client().agent_epoch().unwrap() == 2 && client.client().agent_present());
    // The epoch is known before the client's library has its table.
    wait("its table at the client", || client.client().table("routes").unwrap().len().unwrap() == 3001);
    for key in ["shop/cart:http", "shop/cart0:http", "shop/cart2999:http"] {
        let mut route = client.route(key).unwrap();
        assert_eq!(picks(&mut route).len(), 4, "{key}");
    }
    second.stop();
}

#[test]
fn a_malformed_slice_is_skipped_and_named() {
    let node = Node::new();
    let broken = slice("cart-broken", 2, &["not-an-address"]);
    let file = node.file("list.json", &list(&[slice("cart-a", 1, &FOUR), broken, slice("cart-b", 3, &["10.0.1.1"])]));
    let events = node.file("events.jsonl", "{\"type\":\"MODIFIED\",\"object\":17}\n");
    let agent = Running::start(&node, &file, Some(&events), None);
    let client = node.join("a");
    let mut route = client.route("shop/cart:http").unwrap();
    assert_eq!(picks(&mut route).len(), 5);
    // A record that is no report is counted, and nothing else.
    client.client().queue("reports").unwrap().push(&[1; 60], PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    drop((client, route));
    let (stats, problems) = agent.stop();
    assert!(problems.iter().any(|p| p.contains("shop/cart-broken")), "{problems:?}");
    assert_eq!((stats.bad_input, stats.bad_records), (2, 1), "{problems:?}");
}

#[test]
fn no_list_is_an_error_that_says_so() {
    let source = FileSource::new("/nonexistent/list.json", None, Pace::Unpaced);
    let error = Server::start(Config::new("/nonexistent"), source).unwrap_err();
    assert!(matches!(&error, ServeError::NoList { found } if found.contains("/nonexistent/list.json")), "{error}");
}

#[test]
fn trailers_are_numbered_records_of_the_testkit() {
    let report = route_client::Report { route: 1, endpoint: 2, outcome: Outcome::Success, latency_ns: 3, seq: 4 };
    let trailer = Trailer { sender: 5, seq: u64::MAX - 6 };
    let record = trailer.encode(&report);
    let numbered = podshm_testkit::numbered::decode(&record[48..]).unwrap();
    assert_eq!((numbered.sender, numbered.sequence), (5, u64::MAX - 6));
    let mut long = [0; 128];
    long[..48].copy_from_slice(&report.encode());
    podshm_testkit::numbered::encode_into(&mut long[48..], 5, u64::MAX - 6);
    for record in [&record[..], &long] {
        assert_eq!(Trailer::of(record), Some(trailer));
        assert_eq!(Trailer::of(&record[..record.len() - 1]), None);
    }
    assert_eq!(Trailer::of(&report.encode()), None);
}
