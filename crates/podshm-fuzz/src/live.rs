//! A broker, and one side of a channel written by hand beside it, for the targets that run the library itself.

use podshm_broker::Limits;
use podshm_layout::geometry::{ChannelGeometry, RingGeometry};
use podshm_layout::mem::Store;
use podshm_layout::ring::{Consumer, Part, Producer};
use podshm_layout::sync::Ordering;
use podshm_layout::{Layouts, PAGE, RegionKind};
use podshm_proto::{self as proto, Down, Nothing, Region, RegionIds, Serve, Service, Services, Up};
use podshm_region::{Memory, ReadMap, Window, WriteMap};
use podshm_tests::raw::{Raw, RawClient, hello};
use podshm_tests::{Node, PATIENCE};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Longest record of the queue, request and response of the call.
pub(crate) const LONGEST: usize = 1000;
pub(crate) const LONGEST_CALL: usize = 20_000;
pub(crate) const RING: u32 = 8192;

/// A table `t`, a queue `q` and a call `c`.
pub(crate) fn services() -> Vec<Service> {
    vec![
        Service { name: "t".into(), kind: 1, keys: 10, bytes: 4096, ..Service::default() },
        Service { name: "q".into(), kind: 2, ring: RING, longest: LONGEST as u32, ..Service::default() },
        Service {
            name: "c".into(),
            kind: 3,
            ring: RING,
            longest: LONGEST_CALL as u32,
            response_ring: RING,
            longest_response: LONGEST_CALL as u32,
            ..Service::default()
        },
    ]
}

pub(crate) fn node() -> Node {
    Node::new(Limits::default())
}

/// Calls `done` until it says so.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within {PATIENCE:?}");
    }
}

/// A region that is written by hand: the way a correct writer does, and any way at all.
pub(crate) struct Written {
    pub(crate) page: Window,
    pub(crate) rings: Vec<Producer<Window>>,
    all: Window,
}

impl Written {
    /// Maps it twice, so that what belongs to a producer can be scribbled over nevertheless.
    fn new(memory: &Memory, rings: &[RingGeometry], incarnation: u64) -> Self {
        let (mut map, mut scribble) = (WriteMap::map(memory).expect("a map"), WriteMap::map(memory).expect("a map"));
        let page = map.window(0, PAGE);
        let rings = rings
            .iter()
            .map(|r| Producer::new(map.window(r.offset as usize, r.bytes as usize), r).of_incarnation(incarnation))
            .collect();
        Written { page, rings, all: scribble.window(0, memory.bytes() as usize) }
    }

    /// Writes any word anywhere.
    pub(crate) fn scribble(&self, at: usize, word: u64) {
        let words = podshm_layout::mem::Load::size(&self.all) / 8;
        self.all.store(at % words * 8, word, Ordering::Release);
    }

    /// Pushes one record of parts if there is room.
    pub(crate) fn push(&mut self, ring: usize, part: Part, pieces: [&[u8]; 2], peer: &ReadMap) -> bool {
        let producer = &mut self.rings[ring];
        let Ok(room) = producer.reserve(pieces[0].len() + pieces[1].len(), peer) else { return false };
        producer.write(&room, 0, pieces[0]);
        producer.write(&room, pieces[0].len(), pieces[1]);
        producer.commit(room, part);
        producer.publish();
        true
    }

    /// Whether a record of `len` bytes has room.
    pub(crate) fn has_room(&mut self, ring: usize, len: usize, peer: &ReadMap) -> bool {
        self.rings[ring].reserve(len, peer).is_ok()
    }
}

fn map(fd: OwnedFd, region: &Region) -> ReadMap {
    ReadMap::map(&Memory::from_fd(fd).expect("a region"), region.bytes).expect("a sealed region")
}

fn consumer(map: &ReadMap, ring: &RingGeometry) -> Consumer<ReadMap> {
    Consumer::new(map.part(ring.offset as usize, ring.bytes as usize), ring, ring.start)
}

/// A channel of these two regions, each at the layout that the broker says it has.
fn channel(services: &Services, client: u64, c: &Region, a: &Region) -> ChannelGeometry {
    let layout = |region: &Region| Layouts::ALL.parse(region.layout).expect("a layout");
    let written = proto::Written { client: layout(c), agent: layout(a) };
    services.channel(client, a.owner, written).expect("a geometry")
}

/// A client by hand.
pub(crate) struct HandClient {
    _raw: RawClient,
    pub(crate) id: u64,
    pub(crate) own: Written,
    pub(crate) peer: ReadMap,
    pub(crate) answers: Consumer<ReadMap>,
    pub(crate) geometry: ChannelGeometry,
}

impl HandClient {
    pub(crate) fn join(node: &Node) -> Self {
        let raw = RawClient::hello(node.pod("hand"));
        let services = Services::check(raw.welcome.services.clone()).expect("services");
        let (a, fd) = &raw.regions[1];
        let geometry = channel(&services, raw.welcome.client, &raw.regions[0].0, a);
        let own = Written::new(&raw.memory(), &geometry.to_agent, 0);
        raw.mapped();
        while !matches!(raw.raw.receive(), Some((Down::Sealed(_), _))) {}
        let peer = map(fd.try_clone().expect("a descriptor"), a);
        let ring = &geometry.to_client[0];
        ring.cursor_line().reset_for(&own.page, a.owner, ring.start);
        let answers = consumer(&peer, ring);
        HandClient { id: raw.welcome.client, own, peer, answers, geometry, _raw: raw }
    }
}

/// An agent by hand, between clients.
pub(crate) struct HandAgent {
    raw: Raw,
    services: Services,
    /// Written regions by their number, until a client gets them.
    regions: BTreeMap<u64, (Region, Written)>,
    serving: Vec<(Serve, Vec<OwnedFd>)>,
    left: Vec<u64>,
    sealed: usize,
    mapped: usize,
    serves: bool,
}

impl HandAgent {
    pub(crate) fn start(node: &Node) -> Self {
        let raw = Raw::connect(node.pod("agent"));
        raw.send(Up::Hello(hello(true, services())));
        let services = Services::check(services()).expect("services");
        let (regions, serving, left) = Default::default();
        let mut agent = HandAgent { raw, services, regions, serving, left, sealed: 0, mapped: 0, serves: false };
        while agent.mapped == 0 || agent.sealed < agent.mapped {
            agent.step();
        }
        agent.raw.send(Up::Ready(Nothing {}));
        while !agent.serves {
            agent.step();
        }
        agent
    }

    fn step(&mut self) {
        match self.raw.receive().expect("the broker goes on") {
            (Down::Write(regions), fds) => {
                let mut ids = Vec::new();
                for (region, fd) in regions.regions.into_iter().zip(fds) {
                    let is_answer = region.kind == RegionKind::Agent as u32;
                    let geometry = channel(&self.services, 0, &region, &region);
                    let rings = if is_answer { &geometry.to_client[..] } else { &[] };
                    let memory = Memory::from_fd(fd).expect("a region");
                    self.regions.insert(region.id, (region, Written::new(&memory, rings, region.owner)));
                    ids.push(region.id);
                }
                self.mapped += ids.len();
                self.raw.send(Up::Mapped(RegionIds { ids }));
            }
            (Down::Sealed(ids), _) => self.sealed += ids.ids.len(),
            (Down::TakeOver(_), _) => self.serves = true,
            (Down::Serve(serve), fds) => self.serving.push((serve, fds)),
            (Down::Left(client), _) => self.left.push(client.client),
            (Down::Refused(refused), _) => panic!("{refused:?}"),
            _ => {}
        }
    }

    /// The table's region.
    pub(crate) fn table(&self) -> &Written {
        let table = self.regions.values().find(|(region, _)| region.kind == RegionKind::Table as u32);
        &table.expect("the agent has a table").1
    }

    /// The next client that comes.
    pub(crate) fn next(&mut self) -> HandChannel {
        while self.serving.is_empty() {
            self.step();
        }
        let (serve, fds) = self.serving.remove(0);
        let (answer, own) = self.regions.remove(&serve.answer).expect("an answer region of the pool");
        let mut fds = fds.into_iter();
        let peer = map(fds.next().expect("C"), &serve.regions[0]);
        let geometry = channel(&self.services, serve.client, &serve.regions[0], &answer);
        for ring in &geometry.to_agent {
            ring.cursor_line().reset(&own.page, ring.start);
        }
        let rings = geometry.to_agent.iter().map(|ring| consumer(&peer, ring)).collect();
        let regions = vec![serve.regions[0].id, answer.id];
        HandChannel { client: serve.client, own, peer, rings, geometry, regions, _doorbell: fds.next() }
    }

    /// Waits for the client to go and lets its regions go.
    pub(crate) fn end(&mut self, channel: HandChannel) {
        while !self.left.contains(&channel.client) {
            self.step();
        }
        self.left.retain(|client| *client != channel.client);
        self.raw.send(Up::Drained(podshm_proto::ClientId { client: channel.client }));
        self.raw.send(Up::Release(RegionIds { ids: channel.regions }));
    }
}

/// One client as an agent by hand serves it.
pub(crate) struct HandChannel {
    pub(crate) client: u64,
    pub(crate) own: Written,
    pub(crate) peer: ReadMap,
    pub(crate) rings: Vec<Consumer<ReadMap>>,
    pub(crate) geometry: ChannelGeometry,
    regions: Vec<u64>,
    _doorbell: Option<OwnedFd>,
}
