//! What a ledger says. Absent fields are their default, so a release may add some.

use podshm_domain::{Identity, Spoken};
use podshm_proto::{Region, Service};
use prost::Message;

/// What one frame of the file changes, all or none.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Changes {
    /// The last number that a region got.
    #[prost(uint64, tag = "1")]
    pub(crate) last_region: u64,
    #[prost(message, repeated, tag = "2")]
    pub(crate) domains: Vec<DomainRecord>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) clients: Vec<ClientRecord>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) regions: Vec<RegionRecord>,
    #[prost(string, repeated, tag = "5")]
    pub(crate) gone_domains: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) gone_clients: Vec<ClientKey>,
    #[prost(uint64, repeated, tag = "7")]
    pub(crate) gone_regions: Vec<u64>,
    /// Epochs that a notice page is about to say.
    #[prost(message, repeated, tag = "8")]
    pub(crate) epochs: Vec<EpochRecord>,
}

/// An epoch is written before anybody can see it: it is never given twice.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct EpochRecord {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(uint64, tag = "2")]
    pub(crate) epoch: u64,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Who {
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    #[prost(string, tag = "2")]
    pub(crate) pod: String,
    #[prost(string, tag = "3")]
    pub(crate) uid: String,
    #[prost(string, tag = "4")]
    pub(crate) service_account: String,
}

impl From<&Identity> for Who {
    fn from(who: &Identity) -> Self {
        let Identity { namespace, pod, uid, service_account } = who.clone();
        Who { namespace, pod, uid, service_account }
    }
}

impl From<Who> for Identity {
    fn from(who: Who) -> Self {
        let Who { namespace, pod, uid, service_account } = who;
        Identity { namespace, pod, uid, service_account }
    }
}

/// A service by its index, with a number.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct OfService {
    #[prost(uint32, tag = "1")]
    pub(crate) service: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) value: u64,
}

/// A domain.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DomainRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    pub(crate) epoch: u64,
    #[prost(message, repeated, tag = "3")]
    pub(crate) services: Vec<Service>,
    /// The agent that serves.
    #[prost(message, optional, tag = "4")]
    pub(crate) agent: Option<Who>,
    #[prost(uint64, tag = "5")]
    pub(crate) last_client: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) last_place: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) table_generation: u64,
    /// The region of each table that joins get.
    #[prost(message, repeated, tag = "8")]
    pub(crate) tables: Vec<OfService>,
    #[prost(uint64, tag = "9")]
    pub(crate) refused: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) discarded: u64,
    #[prost(uint64, tag = "11")]
    pub(crate) held_open: u64,
    #[prost(bytes = "vec", tag = "12")]
    pub(crate) left_state: Vec<u8>,
    /// What the books hold for agents' answer regions.
    #[prost(uint64, tag = "13")]
    pub(crate) pool: u64,
    /// What they hold for each table.
    #[prost(message, repeated, tag = "14")]
    pub(crate) booked: Vec<OfService>,
    #[prost(uint64, tag = "15")]
    pub(crate) notice_generation: u64,
    #[prost(uint64, tag = "16")]
    pub(crate) unclaimed: u64,
    /// What the serving agent reads and writes.
    #[prost(message, optional, tag = "17")]
    pub(crate) agent_speaks: Option<Range>,
    /// The epoch of the agent that `left_state` was given to.
    #[prost(uint64, tag = "18")]
    pub(crate) left_state_given: u64,
    /// The agent has yet to be given clients whose last agent was passed over without having closed.
    #[prost(bool, tag = "19")]
    pub(crate) passed_over: bool,
}

/// Memory layouts.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Range {
    #[prost(uint32, tag = "1")]
    pub(crate) oldest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) newest: u32,
}

impl From<Spoken> for Range {
    fn from(spoken: Spoken) -> Self {
        Range { oldest: spoken.oldest, newest: spoken.newest }
    }
}

impl From<Range> for Spoken {
    fn from(range: Range) -> Self {
        Spoken { oldest: range.oldest, newest: range.newest }
    }
}

/// Which client.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub(crate) struct ClientKey {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(uint64, tag = "2")]
    pub(crate) client: u64,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct ClientRecord {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(uint64, tag = "2")]
    pub(crate) client: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) member: Option<Who>,
    #[prost(message, optional, tag = "4")]
    pub(crate) shape: Option<Shape>,
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) previous: Vec<u64>,
}

/// What changes about a client; regions by their numbers, 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Shape {
    #[prost(uint64, tag = "1")]
    pub(crate) region: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) answer: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) next: u64,
    #[prost(bool, tag = "4")]
    pub(crate) next_sealed: bool,
    #[prost(bool, tag = "5")]
    pub(crate) next_told: bool,
    #[prost(uint64, tag = "6")]
    pub(crate) before: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) shown: u64,
    #[prost(uint32, tag = "8")]
    pub(crate) handed: u32,
    #[prost(bool, tag = "9")]
    pub(crate) sealed: bool,
    /// It is gone, and not drained.
    #[prost(bool, tag = "10")]
    pub(crate) left: bool,
    #[prost(bool, tag = "11")]
    pub(crate) held_open: bool,
    #[prost(uint64, tag = "12")]
    pub(crate) booked: u64,
    #[prost(message, optional, tag = "13")]
    pub(crate) speaks: Option<Range>,
    /// How many regions it had before, and the last of them: a change of the list shows in either.
    #[prost(uint64, tag = "14")]
    pub(crate) previous: u64,
    #[prost(uint64, tag = "15")]
    pub(crate) last_previous: u64,
}

/// A region.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct RegionRecord {
    #[prost(message, required, tag = "1")]
    pub(crate) region: Region,
    #[prost(string, tag = "2")]
    pub(crate) domain: String,
    /// The pod that writes it; none for what the broker itself wrote.
    #[prost(message, optional, tag = "3")]
    pub(crate) writer: Option<Who>,
    /// A: the client that it was given to; 0 while it is in a pool.
    #[prost(uint64, tag = "4")]
    pub(crate) given: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) device: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) inode: u64,
    /// Nobody but its writer can write it any more.
    #[prost(bool, tag = "7")]
    pub(crate) sealed: bool,
}
