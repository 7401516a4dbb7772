//! Messages between the broker and its participants, over Unix sockets that keep message borders (SOCK_SEQPACKET).
//!
//! One message is one protobuf-encoded [`ToBroker`] or [`FromBroker`]; descriptors ride with it in the order that the message's
//! doc names. Unknown fields are ignored and absent ones are their default, so a release may add; what it may not do without
//! raising [`PROTOCOL`] is change a meaning.
#![forbid(unsafe_code)]

mod rejoin;
mod services;

pub use rejoin::{Offer, Present, Rejoin, Rejoined, Stood, Use};
pub use services::{BadService, Contradiction, MAX_CALL, ServiceKind, Services, Written};

use prost::Message;

/// The protocol that this release speaks best.
pub const PROTOCOL: u32 = 3;
/// The first protocol with [`Down::Next`]: clients that go over to another region, agents that follow them.
pub const PROTOCOL_MOVES: u32 = 2;
/// The first protocol with [`Up::Present`]: participants that come back to a broker that was started anew.
pub const PROTOCOL_REJOINS: u32 = 3;
/// The oldest protocol that it still speaks.
pub const PROTOCOL_OLDEST: u32 = 1;
/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Most bytes that an agent can leave to its successor.
pub const MAX_STATE: usize = 96 * 1024;

/// What a participant tells the broker.
#[derive(Clone, PartialEq, Message)]
pub struct ToBroker {
    /// The one thing that this message says.
    #[prost(oneof = "Up", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub body: Option<Up>,
}

/// Bodies of [`ToBroker`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Up {
    /// First message of every connection.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// The regions that were sent for writing are mapped.
    #[prost(message, tag = "2")]
    Mapped(RegionIds),
    /// Agent: the tables are filled, it can serve.
    #[prost(message, tag = "3")]
    Ready(Nothing),
    /// Agent: a larger generation of a table is wanted.
    #[prost(message, tag = "4")]
    Grow(Grow),
    /// Agent: the new generation of a table is filled and sealed; hand it out.
    #[prost(message, tag = "5")]
    Publish(Publish),
    /// Mapping and descriptor of these regions are gone here.
    #[prost(message, tag = "6")]
    Release(RegionIds),
    /// Agent: every ring is closed at its cursor, nothing more will be handled.
    #[prost(message, tag = "7")]
    Closed(State),
    /// Agent: everything that a client which left had accepted is handled.
    #[prost(message, tag = "8")]
    Drained(ClientId),
    /// The participant leaves in order.
    #[prost(message, tag = "9")]
    Bye(Nothing),
    /// Agent: the next generations of C that it was told of are mapped; their clients may go over to them.
    #[prost(message, tag = "10")]
    Taken(RegionIds),
    /// Client: it has gone over to the next generation of C, with everything that was in the one before.
    #[prost(message, tag = "11")]
    Moved(RegionIds),
    /// After a hello that says [`Hello::rejoin`]: regions that this participant holds. Descriptors: theirs, in order.
    #[prost(message, tag = "12")]
    Present(Present),
    /// That was all of them.
    #[prost(message, tag = "13")]
    Presented(Nothing),
    /// Agent that has rejoined: the doorbell of this client has hung up. The broker may not know the client yet.
    #[prost(message, tag = "14")]
    HungUp(ClientId),
}

/// What the broker tells a participant.
#[derive(Clone, PartialEq, Message)]
pub struct FromBroker {
    /// The one thing that this message says.
    #[prost(oneof = "Down", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub body: Option<Down>,
}

/// Bodies of [`FromBroker`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Down {
    /// The participant is in. To an agent, descriptors: notice page. To a client: notice page, C, A, tables in the order of
    /// `services`, doorbell.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// These regions are sealed now; a client may be accepted from.
    #[prost(message, tag = "2")]
    Sealed(RegionIds),
    /// No, and why; the connection ends where the refused thing was to join.
    #[prost(message, tag = "3")]
    Refused(Refused),
    /// Client: another agent serves. Descriptors: A, tables, doorbell.
    #[prost(message, tag = "4")]
    NewAgent(NewAgent),
    /// Client: a table has a newer generation. Descriptor: the table.
    #[prost(message, tag = "5")]
    NewTable(Region),
    /// Agent: regions to map for writing, a descriptor each.
    #[prost(message, tag = "6")]
    Write(Regions),
    /// Agent: a client to serve. Descriptors: C, doorbell, and the predecessor's A where there is one.
    #[prost(message, tag = "7")]
    Serve(Serve),
    /// Agent: a client is gone; drain what it left, then say so.
    #[prost(message, tag = "8")]
    Left(Left),
    /// Agent: a successor is ready; finish what is in hand and close.
    #[prost(message, tag = "9")]
    Close(Nothing),
    /// Agent: it serves from here on. Its predecessor's clients follow, each in a [`Serve`].
    #[prost(message, tag = "10")]
    TakeOver(TakeOver),
    /// Agent: these answer regions of the pool will not be used; let them go.
    #[prost(message, tag = "11")]
    Drop(RegionIds),
    /// Agent: a table's next generation, of the same size and at another layout: somebody came who does not read the one that
    /// stands, or went. Map it, copy everything over, publish it. Descriptor: the table.
    #[prost(message, tag = "12")]
    Rewrite(Region),
    /// C's next generation. To its client, which is to map it for writing, and goes over to it when it is sealed; to the agent, which
    /// is to map it for reading, and goes over to it when the client has. Descriptor: C.
    #[prost(message, tag = "13")]
    Next(Next),
    /// The participant is back. Descriptor: the notice page, a new one, to be mapped in the place of the one before.
    #[prost(message, tag = "14")]
    Rejoined(Rejoined),
}

/// No content.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Nothing {}

/// Who comes, and what it speaks.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// Oldest protocol it speaks.
    #[prost(uint32, tag = "1")]
    pub protocol_oldest: u32,
    /// Newest protocol it speaks.
    #[prost(uint32, tag = "2")]
    pub protocol_newest: u32,
    /// Oldest memory layout it reads and writes.
    #[prost(uint32, tag = "3")]
    pub layout_oldest: u32,
    /// Newest memory layout it reads and writes.
    #[prost(uint32, tag = "4")]
    pub layout_newest: u32,
    /// Whether it comes as the domain's agent.
    #[prost(bool, tag = "5")]
    pub agent: bool,
    /// Its own name and version, for people.
    #[prost(string, tag = "6")]
    pub software: String,
    /// Agent: what it offers.
    #[prost(message, repeated, tag = "7")]
    pub services: Vec<Service>,
    /// It was here before the broker was started anew, and presents what it holds. Whoever says so speaks no protocol before
    /// [`PROTOCOL_REJOINS`], so that an older broker refuses it instead of taking it for a newcomer.
    #[prost(message, optional, tag = "8")]
    pub rejoin: Option<Rejoin>,
}

/// A service as its agent offers it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Service {
    /// Its name in the domain.
    #[prost(string, tag = "1")]
    pub name: String,
    /// 1 table, 2 queue, 3 call.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// Table: keys to make room for.
    #[prost(uint64, tag = "3")]
    pub keys: u64,
    /// Table: bytes of records to make room for.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// Queue or call: bytes of the ring to the agent.
    #[prost(uint32, tag = "5")]
    pub ring: u32,
    /// Queue: longest record. Call: longest request.
    #[prost(uint32, tag = "6")]
    pub longest: u32,
    /// Call: bytes of the ring to the client.
    #[prost(uint32, tag = "7")]
    pub response_ring: u32,
    /// Call: longest response.
    #[prost(uint32, tag = "8")]
    pub longest_response: u32,
    /// Call: a request may be handled twice without harm.
    #[prost(bool, tag = "9")]
    pub idempotent: bool,
}

/// A region, as the broker knows it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Region {
    /// The broker's number for it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Kind, as in the layout.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// Its number in its line of successors.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// Size in bytes.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// C: the client's number. T: the service's index. A: its place in the pool.
    #[prost(uint64, tag = "5")]
    pub owner: u64,
    /// T: buckets.
    #[prost(uint32, tag = "6")]
    pub buckets: u32,
    /// T: units.
    #[prost(uint32, tag = "7")]
    pub units: u32,
    /// The memory layout that it is written at, for as long as it lives.
    #[prost(uint32, tag = "8")]
    pub layout: u32,
    /// C and A: it has rings, or cursors, for so many of the domain's services, the first ones. A later agent may offer more. 0 where
    /// the broker does not say: for all of them.
    #[prost(uint32, tag = "9")]
    pub services: u32,
}

/// Numbers of regions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegionIds {
    /// The numbers.
    #[prost(uint64, repeated, tag = "1")]
    pub ids: Vec<u64>,
}

/// Several regions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Regions {
    /// In the order of their descriptors.
    #[prost(message, repeated, tag = "1")]
    pub regions: Vec<Region>,
}

/// Number of a client.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ClientId {
    /// The number.
    #[prost(uint64, tag = "1")]
    pub client: u64,
}

/// A client is gone.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Left {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub client: u64,
    /// Its process is dead, and somebody keeps its sockets open: a child that it made, or whoever they were passed to.
    #[prost(bool, tag = "2")]
    pub held_open: bool,
}

/// A larger table, please.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Grow {
    /// Index of the service.
    #[prost(uint32, tag = "1")]
    pub service: u32,
    /// Keys to make room for.
    #[prost(uint64, tag = "2")]
    pub keys: u64,
    /// Bytes of records to make room for.
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

/// A generation of a table that is ready.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Publish {
    /// The table's region.
    #[prost(uint64, tag = "1")]
    pub region: u64,
}

/// The participant is in.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// Protocol to speak.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Layout of what is written in the domain now, for people; each region says its own.
    #[prost(uint32, tag = "2")]
    pub layout: u32,
    /// The domain's name.
    #[prost(string, tag = "3")]
    pub domain: String,
    /// Who the participant is, as the broker knows it.
    #[prost(string, tag = "4")]
    pub member: String,
    /// Client: its number.
    #[prost(uint64, tag = "5")]
    pub client: u64,
    /// The agent's epoch.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
    /// The services of the domain, in the order that everybody counts them in. To an agent: all that it offers; none where the broker
    /// wants exactly those that the agent has named.
    #[prost(message, repeated, tag = "7")]
    pub services: Vec<Service>,
    /// In the order of the descriptors.
    #[prost(message, repeated, tag = "8")]
    pub regions: Vec<Region>,
}

/// Another agent serves.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NewAgent {
    /// Its epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// A, then the tables.
    #[prost(message, repeated, tag = "2")]
    pub regions: Vec<Region>,
    /// The services of the domain from now on: those before, in their order, and more where this agent offers more.
    #[prost(message, repeated, tag = "3")]
    pub services: Vec<Service>,
}

/// The next generation of a client's C.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Next {
    /// The client's number.
    #[prost(uint64, tag = "1")]
    pub client: u64,
    /// C.
    #[prost(message, required, tag = "2")]
    pub region: Region,
    /// To a client: the services that it has rings for.
    #[prost(message, repeated, tag = "3")]
    pub services: Vec<Service>,
}

/// What an agent leaves to its successor.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct State {
    /// Its own bytes, at most [`MAX_STATE`].
    #[prost(bytes = "vec", tag = "1")]
    pub state: Vec<u8>,
}

/// The agent serves.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TakeOver {
    /// Its epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// What its predecessor left by closing in order; empty after a crash.
    #[prost(bytes = "vec", tag = "2")]
    pub state: Vec<u8>,
}

/// A client to serve.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Serve {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub client: u64,
    /// The member it belongs to: namespace/pod.
    #[prost(string, tag = "2")]
    pub member: String,
    /// C; then the predecessor's A where there is one.
    #[prost(message, repeated, tag = "3")]
    pub regions: Vec<Region>,
    /// Number of the region from the pool that answers this client.
    #[prost(uint64, tag = "4")]
    pub answer: u64,
    /// The client is gone already: only drain it.
    #[prost(bool, tag = "5")]
    pub gone: bool,
    /// The agent's own epoch, to compare with the notice page before each batch.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
    /// The predecessor neither closed nor hung up: one batch past its cursor may be handled by it even now.
    #[prost(bool, tag = "7")]
    pub forced: bool,
    /// The next generation of C that the client goes over to, or has gone over to by now; its descriptor is the last.
    #[prost(message, optional, tag = "8")]
    pub next: Option<Region>,
    /// The A shown is not the predecessor's, which is lost, but one before it: everything in the rings may have been handled.
    #[prost(bool, tag = "9")]
    pub outdated: bool,
}

/// What kind of no it is; stable numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalKind {
    /// Not said, or said by a newer release.
    Other = 0,
    /// Versions don't meet.
    Version = 1,
    /// The identity may not do this.
    NotAllowed = 2,
    /// Over a budget, share or limit.
    OverLimit = 3,
    /// The message makes no sense here.
    Protocol = 4,
    /// The services offered contradict those of the domain.
    Services = 5,
    /// The region or its seals are not what they must be.
    Region = 6,
    /// Another agent has served since.
    Superseded = 7,
}

/// No, and why.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Refused {
    /// Kind of no.
    #[prost(enumeration = "RefusalKind", tag = "1")]
    pub kind: i32,
    /// For people: what was expected, what was found, what to do.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A message that can't be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "message of {bytes} bytes is not one of protocol {PROTOCOL}: {reason}; peer speaks something else or a newer release"
)]
pub struct BadMessage {
    /// Its length.
    pub bytes: usize,
    /// Why.
    pub reason: String,
}

/// Reads a message from a participant.
pub fn decode_up(bytes: &[u8]) -> Result<Up, BadMessage> {
    let message = ToBroker::decode(bytes).map_err(|e| bad(bytes, e))?;
    message.body.ok_or_else(|| bad(bytes, "it has no body that this release knows"))
}

/// Reads a message from the broker.
pub fn decode_down(bytes: &[u8]) -> Result<Down, BadMessage> {
    let message = FromBroker::decode(bytes).map_err(|e| bad(bytes, e))?;
    message.body.ok_or_else(|| bad(bytes, "it has no body that this release knows"))
}

/// Writes a message to the broker.
pub fn encode_up(body: Up) -> Vec<u8> {
    ToBroker { body: Some(body) }.encode_to_vec()
}

/// Writes a message from the broker.
pub fn encode_down(body: Down) -> Vec<u8> {
    FromBroker { body: Some(body) }.encode_to_vec()
}

fn bad(bytes: &[u8], reason: impl ToString) -> BadMessage {
    BadMessage { bytes: bytes.len(), reason: reason.to_string() }
}
