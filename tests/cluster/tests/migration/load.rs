//! A steady load on two Services, as kube-proxy would spread it: requests go to endpoints that the API server's EndpointSlices have as
//! ready, one after the other, each on a connection of its own, and none is tried again. What has come of each is kept.
//!
//! It runs in the network of the control plane, which has a route to every pod. There it answers as Prometheus does, too: with what
//! it has measured itself.

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, ResourceExt};
use podshm_cluster::control;
use podshm_cluster::place::BRIDGE;
use podshm_cluster::supervise::alive;
use podshm_cluster::testing::Cluster;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Both workloads have a Service of their own name.
pub const SERVICES: [&str; 2] = ["cart", "till"];
/// A request each so often: 333 a second, so that the floor of 200 holds while one of four replicas is slow.
const EVERY: Duration = Duration::from_millis(3);
/// How many are out at most: more than an agent that is slow on one node has waiting.
const AT_ONCE: usize = 2400;
/// How long somebody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(45);
/// Where queries are answered.
pub const QUERIES: u16 = 9090;
/// What counts as slow, and over which time. No machine that is merely busy is as slow.
const SLOW: Duration = Duration::from_millis(1500);
const WINDOW: Duration = Duration::from_secs(30);

/// A request that was answered with 200.
#[derive(Clone, Debug)]
pub struct Done {
    pub service: usize,
    pub at: Instant,
    pub took: Duration,
    pub form: String,
    /// The record that was reported for it.
    pub record: (u32, u64),
}

#[derive(Default)]
struct Log {
    done: Vec<Done>,
    failed: Vec<String>,
    endpoints: BTreeMap<String, Vec<SocketAddr>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    log: Mutex<Log>,
}

/// The load, under way.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    begin: Instant,
}

impl Load {
    /// Begins, once both Services have endpoints.
    pub fn start(cluster: &Cluster) -> Self {
        let shared = Arc::new(Shared::default());
        let (theirs, kubeconfig) = (Arc::clone(&shared), cluster.place.kubeconfig());
        let pid = alive(&cluster.place, control::SET).expect("the control plane runs");
        let thread = std::thread::spawn(move || {
            let network = File::open(format!("/proc/{pid}/ns/net")).unwrap();
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(theirs, kubeconfig));
        });
        let load = Load { shared, thread: Some(thread), begin: Instant::now() };
        while load.shared.log.lock().unwrap().done.len() < 100 {
            assert!(load.begin.elapsed() < PATIENCE * 4, "no load: {:?}", load.failures());
            assert!(!load.thread.as_ref().unwrap().is_finished(), "the load has ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        load
    }

    /// What has failed so far, the first few.
    pub fn failures(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().failed.iter().take(10).cloned().collect()
    }

    /// Waits until nothing is slow of itself: what a gate finds then is the agent's.
    pub fn calm(&self) {
        let begin = Instant::now();
        while slow_share(&self.shared.log.lock().unwrap().done, Instant::now()) > 0.01 {
            assert!(begin.elapsed() < PATIENCE * 10, "the machine is too busy for a judgement of who is slow");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// What a phase of the test has to say of the load: nothing has failed.
    pub fn is_unhurt(&self, what: &str) {
        let (done, failed) = {
            let log = self.shared.log.lock().unwrap();
            (log.done.len(), log.failed.len())
        };
        println!("{:5.1} s  {what}; {done} requests so far, {failed} failed", self.begin.elapsed().as_secs_f64());
        assert_eq!(failed, 0, "{what}: {:#?}", self.failures());
    }

    /// Ends when all are answered; what has come of them, and how long it took.
    pub fn end(mut self) -> (Vec<Done>, Vec<String>, Duration) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let took = self.begin.elapsed();
        self.thread.take().unwrap().join().unwrap();
        let mut log = self.shared.log.lock().unwrap();
        (std::mem::take(&mut log.done), std::mem::take(&mut log.failed), took)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

async fn run(shared: Arc<Shared>, kubeconfig: PathBuf) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let following = tokio::spawn(follow(Client::try_from(config).unwrap(), Arc::clone(&shared)));
    let answering = tokio::spawn(answer_queries(Arc::clone(&shared)));
    let mut requests = JoinSet::new();
    // What was late is made up for: so many a second whatever happens.
    let (mut clock, mut number) = (tokio::time::interval(EVERY), 0_usize);
    while !shared.stop.load(Ordering::Relaxed) {
        clock.tick().await;
        assert!(
            !answering.is_finished() && !following.is_finished(),
            "who follows endpoints, or answers queries, has ended"
        );
        let service = number % SERVICES.len();
        let to = {
            let log = shared.log.lock().unwrap();
            let of = |service: usize| log.endpoints.get(SERVICES[service]).map_or(&[][..], Vec::as_slice);
            // Only before the first: later none at all is a failure.
            if number == 0 && (of(0).is_empty() || of(1).is_empty()) {
                continue;
            }
            let all = of(service);
            all.get(number / SERVICES.len() % all.len().max(1)).copied()
        };
        number += 1;
        requests.spawn(request(Arc::clone(&shared), service, to));
        while requests.try_join_next().is_some() {}
        // A machine that is too busy to answer is not made busier.
        while requests.len() >= AT_ONCE {
            requests.join_next().await;
        }
    }
    while requests.join_next().await.is_some() {}
}

/// Ready endpoints, as they are now.
async fn follow(client: Client, shared: Arc<Shared>) {
    let api: Api<EndpointSlice> = Api::namespaced(client, "shop");
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let (mut slices, mut fresh) = (BTreeMap::new(), BTreeMap::new());
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => fresh = BTreeMap::new(),
            Ok(Event::InitApply(slice)) => drop(fresh.insert(slice.name_any(), slice)),
            Ok(Event::InitDone) => slices = std::mem::take(&mut fresh),
            Ok(Event::Apply(slice)) => drop(slices.insert(slice.name_any(), slice)),
            Ok(Event::Delete(slice)) => drop(slices.remove(&slice.name_any())),
            // What is known stays in use, as kube-proxy has it.
            Err(_) => continue,
        }
        let mut all: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
        for slice in slices.values() {
            let Some(service) = slice.labels().get("kubernetes.io/service-name") else { continue };
            let port = slice.ports.iter().flatten().find_map(|port| port.port).unwrap_or_default();
            let is_ready = |ready: Option<bool>| ready.unwrap_or(true);
            for endpoint in slice.endpoints.iter().flatten() {
                if is_ready(endpoint.conditions.as_ref().and_then(|all| all.ready)) {
                    let address = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
                    let to = address.map(|address| SocketAddr::new(address, port.try_into().unwrap_or_default()));
                    all.entry(service.clone()).or_default().extend(to);
                }
            }
        }
        shared.log.lock().unwrap().endpoints = all;
    }
}

async fn request(shared: Arc<Shared>, service: usize, to: Option<SocketAddr>) {
    let begin = Instant::now();
    let answer = match to {
        Some(to) => tokio::time::timeout(PATIENCE, ask(to, "/work")).await.unwrap_or_else(|_| Err("no answer".into())),
        None => Err("no endpoint is ready".into()),
    };
    let parsed = answer.and_then(|text| {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            [form, sender, seq] => Ok((form.to_owned(), (sender.parse().unwrap(), seq.parse().unwrap()))),
            _ => Err(format!("the answer is {text:?}")),
        }
    });
    let (at, took) = (Instant::now(), begin.elapsed());
    let mut log = shared.log.lock().unwrap();
    match parsed {
        Ok((form, record)) => log.done.push(Done { service, at, took, form, record }),
        Err(why) => log.failed.push(format!("{} at {to:?} after {took:?}: {why}", SERVICES[service])),
    }
}

/// The body of what is answered with 200.
async fn ask(to: SocketAddr, path: &str) -> Result<String, String> {
    let text = async {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: business\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = text.await.map_err(|error| error.to_string())?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(text),
    }
}

/// Whatever is asked: which part of the requests to `cart` was slow of late.
async fn answer_queries(shared: Arc<Shared>) {
    let listener = TcpListener::bind((BRIDGE, QUERIES)).await.unwrap();
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let share = slow_share(&shared.log.lock().unwrap().done, Instant::now());
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = format!(r#"{{"status":"success","data":{{"resultType":"scalar","result":[0,"{share:.4}"]}}}}"#);
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        });
    }
}

fn slow_share(done: &[Done], now: Instant) -> f64 {
    let of_late = done.iter().rev().take_while(|one| now.duration_since(one.at) < WINDOW);
    let (mut all, mut slow) = (0_u32, 0_u32);
    for one in of_late.filter(|one| one.service == 0) {
        all += 1;
        slow += u32::from(one.took > SLOW);
    }
    f64::from(slow) / f64::from(all.max(1))
}
