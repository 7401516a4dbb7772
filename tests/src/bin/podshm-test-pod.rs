//! What runs in the pods of tests: a broker, an agent by hand, clients by hand. It does one thing for each line that it reads.

use podshm_broker::{Broker, DomainConfig, Identity, Limits, Rights};
use podshm_layout::mem::Load;
use podshm_proto::{Down, RegionIds, Service, Up};
use podshm_region::{Memory, ReadMap, Window};
use podshm_tests::attacks;
use podshm_tests::raw::{Raw, RawAgent, RawClient, hello, punch_all};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The socket directory, as a pod finds it.
fn directory() -> PathBuf {
    std::env::var_os("PODSHM_SOCKET_DIR").expect("a pod has a socket directory").into()
}

fn main() {
    let control = UnixStream::connect(directory().join("control.sock")).expect("the test listens");
    let mut answers = control.try_clone().expect("a descriptor");
    let mut room = Room::default();
    for line in BufReader::new(control).lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = room.follow(&words);
        writeln!(answers, "{answer}").expect("the test listens");
    }
}

/// What this process has by now.
#[derive(Default)]
struct Room {
    broker: Option<Broker>,
    agent: Option<RawAgent>,
    clients: Vec<(RawClient, Option<Window>)>,
    raws: Vec<Raw>,
    /// Descriptors that nobody else can have.
    hoard: Vec<OwnedFd>,
    /// C of each client that this agent serves.
    served: BTreeMap<u64, u64>,
    /// Descriptors that came for reading: name, descriptor, bytes.
    readable: Vec<(&'static str, OwnedFd, u64)>,
}

impl Room {
    fn follow(&mut self, words: &[&str]) -> String {
        match words {
            // Of a broker.
            ["broker", budget, share, clients, processes] => {
                let limits = Limits {
                    budget: number(budget),
                    member_share: number(share),
                    clients: number(clients) as u32,
                    member_clients: number(processes) as u32,
                    ..Limits::default()
                };
                let broker = Broker::start().expect("a broker");
                broker.add_domain(DomainConfig { limits, ..DomainConfig::new("d") }).expect("a domain");
                self.broker = Some(broker);
                "broker".into()
            }
            ["pod", name] => {
                let (namespace, pod) = ("test".to_owned(), (*name).to_owned());
                let who = Identity { namespace, uid: pod.clone(), pod, service_account: "default".into() };
                let serve = name.starts_with("agent");
                let rights = Rights { join: !serve, serve };
                self.broker().add_socket("d", &directory().join(name), who, rights).expect("a socket");
                "pod".into()
            }
            ["stats"] => {
                let s = self.broker().stats("d").expect("stats");
                let connected = s.clients.iter().filter(|c| c.connected).count();
                format!("{} {} {} {connected}", s.regions, s.region_bytes, s.clients.len())
            }
            ["descriptors", most] => {
                let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
                let limit = rustix::process::Rlimit { current: Some(256), maximum };
                rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a lower limit");
                // Until the broker lets none go any more that it had for a moment only.
                for _ in 0..10 {
                    while let Ok(one) = rustix::io::dup(std::io::stdin()) {
                        self.hoard.push(one);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                self.hoard.truncate(self.hoard.len() - number(most) as usize);
                "limited".into()
            }
            ["descriptors-again"] => {
                self.hoard.clear();
                "unlimited".into()
            }
            // Of an agent.
            ["agent", punch, services @ ..] => {
                let services = services.iter().map(|s| service(s)).collect();
                let mut agent = RawAgent::ready_and(directory(), services, *punch == "punch");
                while !agent.serves {
                    agent.step();
                }
                let writable = agent.writable.len();
                self.agent = Some(agent);
                format!("agent {writable}")
            }
            ["client-comes"] => {
                let (serve, fds) = self.agent.as_mut().expect("an agent").next_client();
                for (region, fd) in serve.regions.iter().zip(fds) {
                    self.readable.push(("C", fd, region.bytes));
                    self.served.insert(serve.client, region.id);
                }
                format!("client {}", serve.client)
            }
            ["pump"] => {
                // What a client that leaves needs of its agent.
                let agent = self.agent.as_mut().expect("an agent");
                loop {
                    match agent.raw.receive().expect("the broker goes on") {
                        (Down::Left(client), _) => {
                            agent.raw.send(Up::Drained(podshm_proto::ClientId { client: client.client }));
                            let ids = self.served.remove(&client.client).into_iter().collect();
                            agent.raw.send(Up::Release(RegionIds { ids }));
                            self.readable.clear();
                            return "drained".into();
                        }
                        (message, fds) => agent.follow(message, fds),
                    }
                }
            }
            // Of a client.
            ["join", punch] => {
                let client = RawClient::hello(directory());
                let size = client.regions[0].0.bytes as usize;
                let mut map = podshm_region::WriteMap::map(&client.memory()).expect("C");
                let window = map.window(0, size);
                if *punch == "punch" {
                    punch_all(&client.regions[0].1);
                }
                client.mapped();
                match client.raw.receive() {
                    Some((Down::Sealed(_), _)) => {}
                    other => panic!("{other:?}"),
                }
                let names = ["C", "A", "T"];
                for (region, fd) in &client.regions {
                    let fd = fd.try_clone().expect("a descriptor");
                    self.readable.push((names[region.kind as usize - 1], fd, region.bytes));
                }
                let notice = client.notice.try_clone().expect("a descriptor");
                self.readable.push(("notice-page", notice, podshm_layout::PAGE as u64));
                self.clients.push((client, Some(window)));
                format!("joined {}", self.clients.len())
            }
            ["try-join"] => {
                let raw = Raw::connect(directory());
                raw.send(Up::Hello(hello(false, Vec::new())));
                match raw.receive() {
                    Some((Down::Welcome(_), _)) => {
                        self.raws.push(raw);
                        "welcome".into()
                    }
                    Some((Down::Refused(refused), _)) => format!("refused {:?} {}", refused.kind(), refused.message),
                    other => format!("{other:?}"),
                }
            }
            ["leave"] => {
                (self.clients, self.raws, self.readable) = Default::default();
                "left".into()
            }
            // Of both.
            ["touch"] => format!("touched {}", self.touch()),
            ["attack", name] => {
                let mut through = Vec::new();
                let mut tried = 0;
                for (_, fd, bytes) in self.readable.iter().filter(|(what, ..)| what == name) {
                    tried += 1;
                    attacks::all(fd.as_fd(), *bytes, &mut through);
                }
                format!("{tried} tried, through: {}", through.join(", "))
            }
            ["attack-own"] => {
                let memory = Memory::create("open", 4 * podshm_layout::PAGE as u64).expect("memory");
                let mut through = Vec::new();
                attacks::all(memory.as_fd(), memory.bytes(), &mut through);
                format!("through: {}", through.join(", "))
            }
            ["advise"] => {
                let found = self.readable.iter().map(|(what, fd, bytes)| {
                    let outcomes = attacks::advise(fd.as_fd(), *bytes);
                    format!("{what}: {}", outcomes.join(", "))
                });
                found.collect::<Vec<_>>().join("; ")
            }
            ["uid"] => rustix::process::getuid().as_raw().to_string(),
            other => panic!("{other:?} is nothing that this program can do"),
        }
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("a broker")
    }

    /// Reads every byte of everything that it has; says how many.
    fn touch(&self) -> u64 {
        let mut touched = 0;
        let mut read = |view: &dyn Fn(usize, &mut [u8]), bytes: u64| {
            let mut page = vec![0; podshm_layout::PAGE];
            for offset in (0..bytes as usize).step_by(podshm_layout::PAGE) {
                view(offset, &mut page);
            }
            touched += bytes;
        };
        for (_, fd, bytes) in self.readable.iter() {
            let memory = Memory::from_fd(fd.try_clone().expect("a descriptor")).expect("memory");
            let map = ReadMap::map(&memory, *bytes)
                .unwrap_or_else(|_| ReadMap::map_unsealed(&memory, *bytes).expect("a mapping"));
            read(&|offset, page: &mut [u8]| map.copy_out(offset, page), *bytes);
        }
        let own = self.agent.iter().flat_map(|agent| agent.writable.iter().map(|(_, window)| window));
        for window in own.chain(self.clients.iter().filter_map(|(_, window)| window.as_ref())) {
            read(&|offset, page: &mut [u8]| window.copy_out(offset, page), window.size() as u64);
        }
        touched
    }
}

/// `name:t:KEYS:BYTES`, `name:q:RING` or `name:c:RING`.
fn service(text: &str) -> Service {
    let parts: Vec<&str> = text.split(':').collect();
    let name = parts[0].to_owned();
    match parts[1..] {
        ["t", keys, bytes] => Service { name, kind: 1, keys: number(keys), bytes: number(bytes), ..Service::default() },
        ["q", ring] => Service { name, kind: 2, ring: number(ring) as u32, longest: 64, ..Service::default() },
        ["c", ring] => {
            let ring = number(ring) as u32;
            let (response_ring, longest, longest_response) = (ring, 64, 64);
            Service { name, kind: 3, ring, longest, response_ring, longest_response, ..Service::default() }
        }
        _ => panic!("{text}: no service"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}
