//! A participant that comes back to a broker that was started anew (protocol 3).

use prost::Message;

/// Who comes back.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Rejoin {
    /// Client: its number.
    #[prost(uint64, tag = "1")]
    pub client: u64,
    /// Client: the epoch of the agent that it is linked with. Agent: its own, 0 where it has not served.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Agent: its tables are filled.
    #[prost(bool, tag = "3")]
    pub ready: bool,
    /// Client: the doorbell of that agent has hung up.
    #[prost(bool, tag = "4")]
    pub hung_up: bool,
    /// Client: where the last agent stood that had begun, by ring; empty where the one that it is linked with has, or none had.
    #[prost(message, repeated, tag = "5")]
    pub began: Vec<Stood>,
}

/// An agent's cursors over one ring, as its client has seen them.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Stood {
    /// Every record before this position was handled.
    #[prost(uint64, tag = "1")]
    pub acked: u64,
    /// Those from there up to this one may have been.
    #[prost(uint64, tag = "2")]
    pub claim: u64,
    /// Where it closed.
    #[prost(uint64, optional, tag = "3")]
    pub closed: Option<u64>,
}

/// Regions that a participant holds.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Present {
    /// In the order of their descriptors.
    #[prost(message, repeated, tag = "1")]
    pub offers: Vec<Offer>,
}

/// One region that a participant holds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Offer {
    /// The number that the broker gave it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What its holder uses it for.
    #[prost(enumeration = "Use", tag = "2")]
    pub used: i32,
    /// Agent: for which client.
    #[prost(uint64, tag = "3")]
    pub client: u64,
    /// Agent: the doorbell of that client has hung up.
    #[prost(bool, tag = "4")]
    pub hung_up: bool,
}

/// What a region is used for by whoever presents it; stable numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Use {
    /// It is held, and that is all: an older generation.
    Held = 0,
    /// The C that a client writes, or that an agent reads.
    Own = 1,
    /// The C that the client is to go over to.
    Next = 2,
    /// The A that answers this client.
    Answer = 3,
    /// Agent: an A for a client to come.
    Pool = 4,
    /// A table as it stands.
    Table = 5,
    /// Agent: a table's next generation, not published.
    NextTable = 6,
}

/// The participant is back.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Rejoined {
    /// Protocol to speak.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// The agent's epoch.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Regions of those presented that were not sealed yet, as far as the broker knows: they are freed, let them go.
    #[prost(uint64, repeated, tag = "3")]
    pub dropped: Vec<u64>,
}
