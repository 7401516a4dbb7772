//! Participants written by hand, from messages and descriptors alone: what a hostile pod would write.

use podshm_layout::mem::Store;
use podshm_layout::ring::Producer;
use podshm_layout::sync::Ordering;
use podshm_proto::{
    Down, Hello, MAX_MESSAGE, NewAgent, Nothing, Refused, Region, RegionIds, Serve, Service, Services, Up, Welcome,
    decode_down, encode_up,
};
use podshm_region::{Memory, ReadMap, Window, WriteMap, descriptors};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// A connection to the broker without a library behind it.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
}

impl Raw {
    /// Connects, and says nothing yet.
    pub fn connect(directory: impl AsRef<Path>) -> Raw {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let path = directory.as_ref().join("broker.sock");
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let timeout = Some(Duration::from_secs(20));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, timeout).unwrap();
        Raw { socket }
    }

    /// Sends any bytes.
    pub fn bytes(&self, bytes: &[u8]) {
        descriptors::send(&self.socket, bytes, &[]).unwrap();
    }

    /// Sends a message if there is room for it.
    pub fn try_send(&self, message: Up) -> bool {
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        rustix::net::send(&self.socket, &encode_up(message), flags).is_ok()
    }

    /// Sends a message.
    pub fn send(&self, message: Up) {
        self.bytes(&encode_up(message));
    }

    /// Sends a message with descriptors; an error where the broker has hung up.
    pub fn send_with(&self, message: Up, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        descriptors::send(&self.socket, &encode_up(message), fds)
    }

    /// The next message; `None` where the broker has hung up.
    pub fn receive(&self) -> Option<(Down, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = match descriptors::receive(&self.socket, &mut buffer) {
            // It hung up with something unread; what it had said before is there.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {
                descriptors::receive(&self.socket, &mut buffer)
            }
            other => other,
        };
        match received {
            Ok((0, _)) => None,
            Ok((bytes, fds)) => Some((decode_down(&buffer[..bytes]).unwrap(), fds)),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(e) => panic!("nothing came from the broker: {e}"),
        }
    }

    /// The refusal that must come next, and the end of the connection after it.
    pub fn refused(&self) -> Refused {
        let refused = loop {
            match self.receive() {
                Some((Down::Refused(refused), _)) => break refused,
                Some(_) => {}
                None => panic!("the broker hung up without a word"),
            }
        };
        let after = self.receive().map(|(message, _)| message);
        assert_eq!(after, None, "nothing comes after a refusal");
        refused
    }
}

/// What the agents of `roles.rs` offer.
pub fn services() -> Vec<Service> {
    let service = |name: &str, kind: u32| Service { name: name.into(), kind, ..Service::default() };
    let call = Service {
        ring: 16 << 10,
        longest: 16 << 10,
        response_ring: 16 << 10,
        longest_response: 16 << 10,
        ..Service::default()
    };
    vec![
        Service { keys: 100, bytes: 32 << 10, ..service("routes", 1) },
        Service { ring: 16 << 10, longest: 256, ..service("reports", 2) },
        Service { name: "decide".into(), kind: 3, ..call.clone() },
        Service { name: "again".into(), kind: 3, idempotent: true, ..call },
    ]
}

/// A good hello.
pub fn hello(agent: bool, services: Vec<Service>) -> Hello {
    Hello {
        protocol_oldest: podshm_proto::PROTOCOL_OLDEST,
        protocol_newest: podshm_proto::PROTOCOL,
        layout_oldest: podshm_layout::LAYOUT_OLDEST,
        layout_newest: podshm_layout::LAYOUT_VERSION,
        agent,
        software: "by hand".into(),
        services,
        rejoin: None,
    }
}

/// A client that has said hello and was let in; it has not mapped C.
#[derive(Debug)]
pub struct RawClient {
    /// Its connection.
    pub raw: Raw,
    /// What the broker said.
    pub welcome: Welcome,
    /// Notice page.
    pub notice: OwnedFd,
    /// C, A and the tables.
    pub regions: Vec<(Region, OwnedFd)>,
    /// Its end.
    pub doorbell: OwnedFd,
}

impl RawClient {
    /// Says hello and takes the welcome.
    pub fn hello(directory: impl AsRef<Path>) -> RawClient {
        Self::hello_as(directory, hello(false, Vec::new()))
    }

    /// Says this hello and takes the welcome.
    pub fn hello_as(directory: impl AsRef<Path>, hello: Hello) -> RawClient {
        let raw = Raw::connect(directory);
        raw.send(Up::Hello(hello));
        match raw.receive() {
            Some((Down::Welcome(welcome), mut fds)) => {
                assert_eq!(fds.len(), welcome.regions.len() + 2);
                let doorbell = fds.pop().unwrap();
                let notice = fds.remove(0);
                let regions = welcome.regions.iter().copied().zip(fds).collect();
                RawClient { raw, welcome, notice, regions, doorbell }
            }
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    /// C's number.
    pub fn c(&self) -> u64 {
        self.regions[0].0.id
    }

    /// C's memory.
    pub fn memory(&self) -> Memory {
        Memory::from_fd(self.regions[0].1.try_clone().unwrap()).unwrap()
    }

    /// Says that C is mapped.
    pub fn mapped(&self) {
        self.raw.send(Up::Mapped(RegionIds { ids: vec![self.c()] }));
    }

    /// Maps C for writing and gets it sealed.
    pub fn join(directory: impl AsRef<Path>) -> (RawClient, Window) {
        let client = Self::hello(directory);
        let size = client.regions[0].0.bytes as usize;
        let window = WriteMap::map(&client.memory()).unwrap().window(0, size);
        client.seal();
        (client, window)
    }

    /// Says that C is mapped and waits for its seal.
    fn seal(&self) {
        self.mapped();
        match self.raw.receive() {
            Some((Down::Sealed(ids), _)) => assert_eq!(ids.ids, [self.c()]),
            other => panic!("expected a seal, got {other:?}"),
        }
    }
}

/// A client by hand that can push.
#[derive(Debug)]
pub struct Pushing {
    /// The client.
    pub client: RawClient,
    /// First page of C: its armed word is here.
    pub head: Window,
    ring: Producer<Window>,
    agent: ReadMap,
}

impl Pushing {
    /// Joins, to push into queue `queue`.
    pub fn join(directory: impl AsRef<Path>, queue: &str) -> Pushing {
        let client = RawClient::hello(directory);
        let services = Services::check(client.welcome.services.clone()).unwrap();
        let (index, _) = services.find(queue).unwrap();
        let layout = |at: usize| podshm_layout::Layouts::ALL.parse(client.regions[at].0.layout).unwrap();
        let written = podshm_proto::Written { client: layout(0), agent: layout(1) };
        let channel = services.channel(client.welcome.client, client.regions[1].0.owner, written).unwrap();
        let ring = channel.to_agent[services.ring_to_agent(index)];
        let mut map = WriteMap::map(&client.memory()).unwrap();
        let head = map.window(0, podshm_layout::PAGE);
        let ring = Producer::new(map.window(ring.offset as usize, ring.bytes as usize), &ring);
        client.seal();
        let (region, fd) = &client.regions[1];
        let answers = Memory::from_fd(fd.try_clone().unwrap()).unwrap();
        let agent = ReadMap::map(&answers, region.bytes).unwrap().part(0, podshm_layout::PAGE);
        Pushing { client, head, ring, agent }
    }

    /// Pushes a record if there is room, and rings no doorbell.
    pub fn push(&mut self, record: &[u8]) -> bool {
        self.ring.push(record, &self.agent).is_ok()
    }
}

/// An agent by hand.
#[derive(Debug)]
pub struct RawAgent {
    /// Its connection.
    pub raw: Raw,
    /// Everything that it may write.
    pub writable: Vec<(Region, Window)>,
    /// Clients that it serves, with C and doorbell.
    pub clients: Vec<(Serve, Vec<OwnedFd>)>,
    /// It has taken over.
    pub serves: bool,
    /// It was asked to close for its successor.
    pub asked_to_close: bool,
    /// Regions that are sealed.
    pub sealed: BTreeSet<u64>,
    /// The table that it was asked to write once more.
    pub rewrite: Option<Region>,
    /// It publishes such tables, as they are.
    pub rewrites: bool,
    /// It makes holes in what it may write before it says that it has mapped it.
    pub punches: bool,
}

impl RawAgent {
    /// Connects, maps everything, takes over.
    pub fn start(directory: impl AsRef<Path>, services: Vec<Service>) -> RawAgent {
        let mut agent = Self::ready(directory, services);
        while !agent.serves {
            agent.step();
        }
        agent
    }

    /// Connects, maps everything, says that it is ready.
    pub fn ready(directory: impl AsRef<Path>, services: Vec<Service>) -> RawAgent {
        Self::ready_and(directory, services, false)
    }

    /// [`RawAgent::ready`] which makes holes before the seals where `punches` says so.
    pub fn ready_and(directory: impl AsRef<Path>, services: Vec<Service>, punches: bool) -> RawAgent {
        let raw = Raw::connect(directory);
        raw.send(Up::Hello(hello(true, services)));
        let mut agent = RawAgent {
            raw,
            writable: Vec::new(),
            clients: Vec::new(),
            serves: false,
            asked_to_close: false,
            sealed: BTreeSet::new(),
            rewrite: None,
            rewrites: false,
            punches,
        };
        while agent.writable.is_empty() || agent.sealed.len() < agent.writable.len() {
            agent.step();
        }
        agent.raw.send(Up::Ready(Nothing {}));
        agent
    }

    /// One message of the broker.
    pub fn step(&mut self) {
        let (message, fds) = self.raw.receive().expect("the broker goes on");
        self.follow(message, fds);
    }

    /// Does what the broker says.
    pub fn follow(&mut self, message: Down, fds: Vec<OwnedFd>) {
        match (message, fds) {
            (Down::Write(regions), fds) => {
                let mut ids = Vec::new();
                for (region, fd) in regions.regions.into_iter().zip(fds) {
                    if self.punches {
                        punch_all(&fd);
                    }
                    let mut map = WriteMap::map(&Memory::from_fd(fd).unwrap()).unwrap();
                    self.writable.push((region, map.window(0, region.bytes as usize)));
                    ids.push(region.id);
                }
                self.raw.send(Up::Mapped(RegionIds { ids }));
            }
            (Down::Sealed(ids), _) => {
                self.sealed.extend(&ids.ids);
                if let Some(table) = self.rewrite.filter(|table| self.rewrites && ids.ids.contains(&table.id)) {
                    self.raw.send(Up::Publish(podshm_proto::Publish { region: table.id }));
                }
            }
            (Down::Rewrite(region), mut fds) => {
                let mut map = WriteMap::map(&Memory::from_fd(fds.remove(0)).unwrap()).unwrap();
                self.writable.push((region, map.window(0, region.bytes as usize)));
                self.rewrite = Some(region);
                self.raw.send(Up::Mapped(RegionIds { ids: vec![region.id] }));
            }
            (Down::Close(_), _) => self.asked_to_close = true,
            (Down::TakeOver(_), _) => self.serves = true,
            (Down::Serve(serve), fds) => self.clients.push((serve, fds)),
            (Down::Refused(refused), _) => panic!("{refused:?}"),
            _ => {}
        }
    }

    /// Waits for one more client.
    pub fn next_client(&mut self) -> (Serve, Vec<OwnedFd>) {
        let before = self.clients.len();
        while self.clients.len() == before {
            self.step();
        }
        self.clients.pop().unwrap()
    }
}

/// Frees every page but the first, as a writer can before the seal.
pub fn punch_all(fd: &OwnedFd) {
    let size = rustix::fs::fstat(fd).expect("fstat").st_size as u64;
    let (punch, first) = (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, podshm_layout::PAGE as u64);
    if size > first {
        fallocate(fd, punch, first, size - first).expect("a hole");
    }
}

/// What came for a client after the take-over by another agent.
pub fn new_agent(raw: &Raw) -> NewAgent {
    loop {
        if let (Down::NewAgent(new), _) = raw.receive().expect("the broker goes on") {
            return new;
        }
    }
}

/// Numbers that look random and are the same in every run.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Up to `most`, which it does not reach.
    pub fn below(&mut self, most: u64) -> u64 {
        self.word() % most
    }
}

/// Writes a word.
pub fn poke(window: &Window, offset: usize, word: u64) {
    window.store(offset, word, Ordering::Release);
}
