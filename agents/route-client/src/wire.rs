//! A route's value as bytes: made so that **one** endpoint can be chosen and read without copying the rest.
//!
//! ```text
//! ┌────────────┬──────────────┬────────────────┬───────────────────┬──────────────────┐
//! │ header 64 B│ zones 32 B ea│ slots 8 B each │ records 40 B each │ string pool      │
//! └────────────┴──────────────┴────────────────┴───────────────────┴──────────────────┘
//!   counts       hash, where     weighted choice   address, port,     zone names,
//!   and flags    its slots are   in O(1) (alias)   zone, conditions   FQDNs
//! ```
//! All numbers are little-endian; sections follow each other without gaps, so that the counts in the header give every
//! offset and a wrong count can't agree with the value's length. Slots `0..all` are the choice among all candidates;
//! each zone names two more runs of slots: candidates *in* the zone, and candidates *hinted for* the zone.
//!
//! | header at | what | | zone at | what | | record at | what |
//! |---|---|---|---|---|---|---|---|
//! | 0 | magic `RTE`, version (u32) | | 0 | xxh3 of its name | | 0 | address, 16 bytes (FQDN: pool offset u32, length u16) |
//! | 4 | flags (u16) | | 8 | name: pool offset (u32) | | 16 | endpoint id (u64) |
//! | 6 | endpoints (u16) | | 12 | name: length (u16) | | 24 | hints, bit per zone (u64) |
//! | 8 | zones (u16), at most 64 | | 16 | local slots: first (u32) | | 32 | port (u16) |
//! | 10 | slots for all (u16) | | 20 | local slots: count (u16) | | 34 | weight (u16), 0 is ejected |
//! | 12 | slots (u32) | | 22 | hinted slots: count (u16) | | 36 | zone (u8), 255 is none |
//! | 16 | pool bytes (u32) | | 24 | hinted slots: first (u32) | | 37 | ready 1, serving 2, terminating 4, hinted 8 |
//! | 20 | left out (u32) | | | | | 38 | family: 4, 6, or 1 for FQDN |
//! | 24 | route id (u64) | | | | | 39 | protocol: 6, 17, 132 |
//! | 32 | checksum: xxh3 of bytes from 40 on, seeded with that of bytes 0..32 | | | | | | |
//!
//! A slot is: record (u16), threshold (u16), alias (u16), zero (u16).
//!
//! Values are at most 64 KiB, about a thousand endpoints. A bigger service is cut, as Kubernetes cut `Endpoints` at
//! 1,000: the header says so ([`Route::left_out`]) and ready endpoints are kept first, in the order of their ids, so that
//! the same endpoints always give the same bytes.

mod decode;
mod encode;
mod header;
pub(crate) mod ints;
mod record;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub use decode::{Route, ZoneEntry};
pub use encode::encode;
pub use header::Header;
pub use record::{Place, Record};

/// The first four bytes: `RTE` and the version of the format.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RTE\x01");
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of a zone's entry.
pub const ZONE_LEN: usize = 32;
/// Bytes of a slot.
pub const SLOT_LEN: usize = 8;
/// Bytes of an endpoint's record.
pub const RECORD_LEN: usize = 40;
/// How many zones a value can name: one bit each in a record's hints. More are left out, in the order of their names.
pub const MAX_ZONES: usize = 64;
/// The longest name of a zone or a host in bytes. A zone with a longer name counts as none.
pub const MAX_NAME_LEN: usize = 255;

/// Header flag: endpoints were left out.
pub(crate) const TRUNCATED: u16 = 1;
/// Header flag: every ready endpoint has hints, so the hinted slots may be used.
pub(crate) const HINTED: u16 = 2;
/// Header flag: nothing is ready; the candidates are endpoints that still serve while terminating.
pub(crate) const TERMINATING: u16 = 4;
/// Header flag: every candidate was ejected, so none is.
pub(crate) const ALL_EJECTED: u16 = 8;

/// Where the checksum of all other bytes is.
pub(crate) const SUM_AT: usize = 32;
/// A record's zone where it has none.
pub(crate) const NO_ZONE: u8 = 255;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A fully qualified domain name, at most 255 bytes; the caller resolves it.
    Fqdn(Arc<str>),
}

impl Address {
    /// The endpoint's id: xxh3 of family, address and port. It stays the same through restarts of the agent.
    pub fn endpoint_id(&self, port: u16) -> u64 {
        let mut bytes = [0u8; MAX_NAME_LEN + 3];
        let (family, text): (u8, &[u8]) = match self {
            Address::V4(ip) => (4, &ip.octets()),
            Address::V6(ip) => (6, &ip.octets()),
            Address::Fqdn(name) => (1, name.as_bytes()),
        };
        let len = text.len().min(MAX_NAME_LEN);
        bytes[0] = family;
        bytes[1..3].copy_from_slice(&port.to_le_bytes());
        bytes[3..3 + len].copy_from_slice(&text[..len]);
        xxh3_64(&bytes[..3 + len])
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Address::V4(ip),
            IpAddr::V6(ip) => Address::V6(ip),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::V4(ip) => ip.fmt(f),
            Address::V6(ip) => ip.fmt(f),
            Address::Fqdn(name) => name.fmt(f),
        }
    }
}

/// A port's transport protocol; the numbers are IANA's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, which is also what a missing protocol means.
    #[default]
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

/// One endpoint of a route, as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// It takes new work: what the API says, so always true for a service that publishes unready addresses.
    pub ready: bool,
    /// It answers, even if it is going away.
    pub serving: bool,
    /// It is going away.
    pub terminating: bool,
    /// Its share of the work; 0 is ejected, [`FULL_WEIGHT`](crate::FULL_WEIGHT) is all of it.
    pub weight: u16,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// The zones that should use it; empty is no hint.
    pub hints: Vec<Arc<str>>,
}

impl Endpoint {
    /// A ready endpoint of full weight, over TCP, with no zone.
    pub fn new(address: Address, port: u16) -> Self {
        Self {
            address,
            port,
            protocol: Protocol::Tcp,
            ready: true,
            serving: true,
            terminating: false,
            weight: crate::FULL_WEIGHT,
            zone: None,
            hints: Vec::new(),
        }
    }

    /// [`Address::endpoint_id`] of this endpoint.
    pub fn id(&self) -> u64 {
        self.address.endpoint_id(self.port)
    }
}

/// The hash by which a value names a zone.
pub fn zone_hash(zone: &str) -> u64 {
    xxh3_64(zone.as_bytes())
}

/// The checksum of a whole value, of at least [`HEADER_LEN`] bytes: of all bytes but its own.
pub fn checksum(value: &[u8]) -> u64 {
    xxh3_64_with_seed(value.get(SUM_AT + 8..).unwrap_or(&[]), xxh3_64(value.get(..SUM_AT).unwrap_or(&[])))
}

/// Bytes that can be copied out piece by piece. Behind it may be memory that somebody else writes at the same time: an
/// implementation copies, and two reads need not agree.
pub trait ReadAt {
    /// Why a read failed.
    type Error: std::error::Error;
    /// The value's length in bytes.
    fn len(&self) -> usize;
    /// Fills `buf` from `offset` on, or fails; never less than all of it.
    fn read_at(&mut self, offset: usize, buf: &mut [u8]) -> Result<(), Self::Error>;
    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A read beyond a slice's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected to read {wanted} bytes at {offset}, found {len} bytes in all; the value is cut or its header lies")]
pub struct OutOfBounds {
    /// Where the read began.
    pub offset: usize,
    /// How many bytes it wanted.
    pub wanted: usize,
    /// How many there are.
    pub len: usize,
}

impl ReadAt for &[u8] {
    type Error = OutOfBounds;

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline]
    fn read_at(&mut self, offset: usize, buf: &mut [u8]) -> Result<(), OutOfBounds> {
        let end = offset.checked_add(buf.len());
        match end.and_then(|end| self.get(offset..end)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(OutOfBounds { offset, wanted: buf.len(), len: <[u8]>::len(self) }),
        }
    }
}

/// Why bytes are no route value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError<E: std::error::Error> {
    /// The bytes could not be read.
    #[error("reading a route value: {0}")]
    Read(E),
    /// Another format or version.
    #[error(
        "expected a route value that starts with {MAGIC:#010x}, found {found:#010x}; use a route-client of the agent's release"
    )]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// The counts in the header and the value's length disagree.
    #[error(
        "expected {expected} bytes by the header's counts, found {found}; read again, and if it stays so restart the agent"
    )]
    Length {
        /// What the counts add up to.
        expected: usize,
        /// The value's length.
        found: usize,
    },
    /// A field has a value that it can't have.
    #[error("expected {field} to be {expected}, found {found}; read again, and if it stays so restart the agent")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: u64,
    },
    /// The bytes don't match their checksum.
    #[error("expected the value's checksum to be {expected:#018x}, found {found:#018x}; it was torn: read again")]
    Checksum {
        /// What the bytes give.
        expected: u64,
        /// What the header says.
        found: u64,
    },
}
