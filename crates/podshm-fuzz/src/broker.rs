//! The broker's decisions, under any sequence of messages from several agents and members.

use crate::input::Input;
use podshm_broker::fuzzing::Decisions;
use podshm_broker::{DomainConfig, DomainStats, Identity, Limits, Rights};
use podshm_layout::PAGE;
use podshm_layout::geometry::{MOVED, MOVED_ALL};
use podshm_layout::mem::Store;
use podshm_layout::sync::Ordering;
use podshm_proto::{
    ClientId, Down, Grow, Hello, MAX_MESSAGE, Nothing, Offer, Present, Publish, Region, RegionIds, Rejoin, Service,
    State, Up, decode_down, encode_up,
};
use podshm_region::{Memory, Window, WriteMap, descriptors};
use std::os::fd::OwnedFd;
use std::time::Duration;

const LIMITS: Limits =
    Limits { budget: 1 << 20, member_share: 256 << 10, clients: 6, member_clients: 3, kept_generations: 2 };
/// Connections at once; a real one is limited by the listener.
const MOST: usize = 10;
const DAY: Duration = Duration::from_secs(86_400);

struct Participant {
    conn: u64,
    socket: OwnedFd,
    agent: bool,
    /// What it was sent for writing, and what it was shown, as far as it has not said that it let go.
    regions: Vec<Region>,
    /// What it was sent for writing and has not acknowledged.
    unmapped: Vec<u64>,
    /// A client's own regions, the last of which it is to write into.
    own: Vec<(u64, Window)>,
    /// Clients that it was told of.
    clients: Vec<u64>,
    refused: u32,
}

/// The target.
pub fn broker(data: &[u8]) {
    let mut input = Input::new(data);
    let mut broker = Decisions::new(DomainConfig { limits: LIMITS, ..DomainConfig::new("d") }).expect("a domain");
    let mut all: Vec<Participant> = Vec::new();
    let mut before = broker.stats();
    while !input.is_empty() {
        step(&mut broker, &mut all, &mut input);
        all.iter_mut().for_each(Participant::read);
        broker.settle();
        all.retain(|p| broker.is_open(p.conn));
        let now = broker.stats();
        check(&before, &now, &all);
        before = now;
    }
    // Everybody goes, and a day passes: only the tables are kept, for a successor.
    all.iter().for_each(|p| broker.hang_up(p.conn));
    broker.pass(DAY);
    let end = broker.stats();
    assert!(end.clients.is_empty() && !end.agent, "{end:?}");
    assert!(end.regions <= 2, "{} regions are left where nobody is: {end:?}", end.regions);
    assert_eq!(broker.kept_bytes(), end.region_bytes);
    assert!(end.reserved == 0 || end.reserved >= end.region_bytes, "{end:?}");
}

fn check(before: &DomainStats, now: &DomainStats, all: &[Participant]) {
    assert!(now.reserved <= LIMITS.budget, "{} reserved of {}", now.reserved, LIMITS.budget);
    assert!(now.region_bytes <= LIMITS.budget, "{} bytes alive of a budget of {}", now.region_bytes, LIMITS.budget);
    assert!(now.clients.len() <= LIMITS.clients as usize, "{now:?}");
    assert!(now.epoch >= before.epoch && now.refused >= before.refused && now.discarded >= before.discarded);
    let connected = now.clients.iter().filter(|c| c.connected).count();
    assert!(connected <= all.iter().filter(|p| !p.agent).count(), "more clients than there are members: {now:?}");
    for member in ["m0", "m1"] {
        let name = format!("test/{member}");
        let theirs = now.clients.iter().filter(|c| c.member == name).count();
        assert!(theirs <= LIMITS.member_clients as usize, "{theirs} clients of {name}");
    }
    assert!(!now.agent || all.iter().any(|p| p.agent), "a domain is served by nobody");
}

fn step(broker: &mut Decisions, all: &mut Vec<Participant>, input: &mut Input<'_>) {
    let choice = input.choice(25);
    if choice < 3 || all.is_empty() {
        if all.len() < MOST {
            all.push(Participant::connect(broker, choice == 0, input));
        }
        return;
    }
    let who = input.below(all.len());
    let p = &mut all[who];
    let message = match choice {
        3 => {
            broker.hang_up(p.conn);
            return;
        }
        4 => {
            broker.pass(Duration::from_millis(u64::from(input.u16())));
            return;
        }
        5 => {
            let len = input.below(64);
            broker.message(p.conn, input.bytes(len));
            return;
        }
        6 => Up::Hello(hello(p.agent, input)),
        7 => Up::Mapped(RegionIds { ids: p.choose(input) }),
        8 => Up::Mapped(RegionIds { ids: std::mem::take(&mut p.unmapped) }),
        9 => Up::Ready(Nothing {}),
        10 => {
            let size = |input: &mut Input<'_>| if input.choice(4) == 0 { input.word() } else { u64::from(input.u16()) };
            Up::Grow(Grow { service: u32::from(input.choice(3)), keys: size(input), bytes: size(input) })
        }
        11 => Up::Publish(Publish { region: p.choose(input).first().copied().unwrap_or(0) }),
        12 => {
            let ids = p.choose(input);
            p.regions.retain(|r| !ids.contains(&r.id));
            Up::Release(RegionIds { ids })
        }
        13 => Up::Closed(State { state: input.bytes(4).to_vec() }),
        14 => {
            let known = p.clients.get(input.below(p.clients.len().max(1))).copied();
            Up::Drained(ClientId { client: known.unwrap_or_else(|| u64::from(input.u8())) })
        }
        15 => Up::Bye(Nothing {}),
        // What an honest participant does in one go.
        16 => return p.map_all(broker),
        17 => {
            p.map_all(broker);
            Up::Ready(Nothing {})
        }
        18 => Up::Taken(RegionIds { ids: p.choose(input) }),
        19 => Up::Moved(RegionIds { ids: p.choose(input) }),
        // A client that has gone over says so in every region but the last.
        20 => {
            p.map_all(broker);
            let last = p.own.iter().map(|(id, _)| *id).max().unwrap_or(0);
            for (_, window) in p.own.iter().filter(|(id, _)| *id != last) {
                window.store(MOVED, MOVED_ALL, Ordering::Release);
            }
            Up::Moved(RegionIds { ids: vec![last] })
        }
        // Nobody is expected back here, and nobody gets anything by saying so.
        22 => {
            let hello = hello(p.agent, input);
            let client = p.clients.first().copied().unwrap_or_else(|| u64::from(input.u8()));
            let rejoin = Rejoin { client, epoch: u64::from(input.choice(3)), ready: true, ..Rejoin::default() };
            Up::Hello(Hello { rejoin: Some(rejoin), ..hello })
        }
        23 => {
            let used = i32::from(input.choice(8));
            let offer = |id| Offer { id, used, client: 1, hung_up: false };
            Up::Present(Present { offers: p.choose(input).into_iter().map(offer).collect() })
        }
        24 => {
            p.say(broker, Up::HungUp(ClientId { client: u64::from(input.u8()) }));
            Up::Presented(Nothing {})
        }
        _ => {
            let size = u64::from(input.choice(4)) * 200;
            p.say(broker, Up::Grow(Grow { service: 0, keys: size, bytes: size * 100 }));
            p.map_all(broker);
            let table = |r: &&Region| r.kind == podshm_layout::RegionKind::Table as u32;
            Up::Publish(Publish { region: p.regions.iter().rfind(table).map_or(0, |r| r.id) })
        }
    };
    p.say(broker, message);
}

fn hello(agent: bool, input: &mut Input<'_>) -> Hello {
    let queue = Service { name: "q".into(), kind: 2, ring: 4096, longest: 100, ..Service::default() };
    let table = Service { name: "t".into(), kind: 1, keys: 10, bytes: 1000, ..Service::default() };
    let call = Service {
        name: "c".into(),
        kind: 3,
        ring: 4096 << (input.choice(8) / 7 * 8),
        longest: 100,
        response_ring: 4096,
        longest_response: 100,
        ..Service::default()
    };
    let versions = match input.choice(16) {
        0 => (input.u32(), input.u32()),
        1 => (1, 1),
        _ => (1, 3),
    };
    let more = Service { name: "m".into(), ..queue.clone() };
    let mut services = if agent { vec![table, queue, call] } else { Vec::new() };
    if agent && input.choice(4) == 0 {
        services.push(more);
    }
    let oldest_only = input.choice(8) == 0;
    Hello {
        protocol_oldest: versions.0,
        protocol_newest: versions.1,
        layout_oldest: podshm_layout::LAYOUT_OLDEST,
        layout_newest: if oldest_only { podshm_layout::LAYOUT_OLDEST } else { podshm_layout::LAYOUT_VERSION },
        agent: agent != (input.choice(16) == 1),
        software: "fuzz".into(),
        services,
        rejoin: None,
    }
}

impl Participant {
    fn connect(broker: &mut Decisions, agent: bool, input: &mut Input<'_>) -> Self {
        let pod = format!("{}{}", if agent { "agent" } else { "m" }, input.choice(2));
        let who = Identity { namespace: "test".into(), uid: pod.clone(), pod, service_account: "default".into() };
        let (conn, socket) = broker.connect(who, Rights { join: !agent, serve: agent }).expect("a socket");
        if input.choice(4) != 0 {
            broker.message(conn, &encode_up(Up::Hello(hello(agent, input))));
        }
        Participant {
            conn,
            socket,
            agent,
            regions: Vec::new(),
            unmapped: Vec::new(),
            own: Vec::new(),
            clients: Vec::new(),
            refused: 0,
        }
    }

    fn say(&self, broker: &mut Decisions, message: Up) {
        broker.message(self.conn, &encode_up(message));
    }

    /// Acknowledges everything that it was sent for writing.
    fn map_all(&mut self, broker: &mut Decisions) {
        self.read();
        let ids = std::mem::take(&mut self.unmapped);
        if !ids.is_empty() {
            self.say(broker, Up::Mapped(RegionIds { ids }));
            self.read();
        }
    }

    /// Reads what the broker said, and keeps what it can act on.
    fn read(&mut self) {
        let mut buffer = vec![0; MAX_MESSAGE];
        while let Ok((bytes @ 1.., fds)) = descriptors::receive(&self.socket, &mut buffer) {
            let message = decode_down(&buffer[..bytes]).expect("the broker's own messages can be read");
            let expected = match message {
                Down::Welcome(welcome) => {
                    self.regions.extend(&welcome.regions);
                    self.unmapped.extend(welcome.regions.first().map(|c| c.id));
                    if let (Some(c), Some(fd)) = (welcome.regions.first(), fds.get(1)) {
                        self.keep(c.id, fd);
                    }
                    // Notice page; a client also gets its regions and its doorbell.
                    1 + welcome.regions.len() + usize::from(!self.agent)
                }
                Down::Write(regions) => {
                    self.regions.extend(&regions.regions);
                    self.unmapped.extend(regions.regions.iter().map(|r| r.id));
                    regions.regions.len()
                }
                Down::NewAgent(new) => {
                    self.regions.extend(&new.regions);
                    new.regions.len() + 1
                }
                Down::NewTable(region) => {
                    self.regions.push(region);
                    1
                }
                Down::Serve(serve) => {
                    self.clients.push(serve.client);
                    self.regions.extend(serve.regions.iter().chain(&serve.next));
                    serve.regions.len() + usize::from(!serve.gone) + usize::from(serve.next.is_some())
                }
                Down::Rewrite(region) => {
                    self.regions.push(region);
                    self.unmapped.push(region.id);
                    1
                }
                Down::Next(next) => {
                    self.regions.push(next.region);
                    if !self.agent {
                        self.unmapped.push(next.region.id);
                        self.keep(next.region.id, &fds[0]);
                    }
                    1
                }
                Down::Refused(refused) => {
                    assert!(!refused.message.is_empty(), "a refusal without a reason");
                    self.refused += 1;
                    0
                }
                _ => 0,
            };
            assert_eq!(fds.len(), expected, "descriptors of a message");
        }
    }

    /// Maps a region of its own, while it can.
    fn keep(&mut self, id: u64, fd: &OwnedFd) {
        let memory = fd.try_clone().ok().and_then(|fd| Memory::from_fd(fd).ok());
        if let Some(mut map) = memory.and_then(|memory| WriteMap::map(&memory).ok()) {
            self.own.push((id, map.window(0, PAGE)));
        }
    }

    /// One region that it knows of, or a number of its own.
    fn choose(&self, input: &mut Input<'_>) -> Vec<u64> {
        match input.choice(8) {
            0 => vec![input.word()],
            1 => self.regions.iter().map(|r| r.id).collect(),
            _ => self.regions.get(input.below(self.regions.len().max(1))).map(|r| r.id).into_iter().collect(),
        }
    }
}
