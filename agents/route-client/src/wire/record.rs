//! One endpoint's record, copied out of a value.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Address, Header, MAX_NAME_LEN, NO_ZONE, Protocol, RECORD_LEN, ReadAt, WireError,
    ints::{u16_at, u32_at, u64_at},
};

/// Where a record says its endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// A name in the pool; [`Record::address`] reads it.
    Name {
        /// Its offset in the pool, unchecked.
        offset: u32,
        /// Its length, unchecked.
        len: u16,
    },
}

/// One endpoint as the value holds it: small, copied, no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where it is.
    pub place: Place,
    /// Its id, to be reported with.
    pub id: u64,
    /// One bit per zone of the value that should use it.
    pub hints: u64,
    /// Its port.
    pub port: u16,
    /// Its weight; 0 is ejected.
    pub weight: u16,
    /// The number of its zone in the value.
    pub zone: Option<u8>,
    /// Its protocol.
    pub protocol: Protocol,
    /// It takes new work.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is going away.
    pub terminating: bool,
    /// It has hints, perhaps for zones that the value doesn't name.
    pub hinted: bool,
}

impl Record {
    #[inline]
    pub(super) fn parse<E: std::error::Error>(b: &[u8; RECORD_LEN]) -> Result<Self, WireError<E>> {
        let mut sixteen = [0; 16];
        sixteen.copy_from_slice(&b[..16]);
        let place = match b[38] {
            4 => Place::V4(Ipv4Addr::new(b[0], b[1], b[2], b[3])),
            6 => Place::V6(Ipv6Addr::from(sixteen)),
            1 => Place::Name { offset: u32_at(b, 0), len: u16_at(b, 4) },
            found => {
                return Err(WireError::Field {
                    field: "a record's family",
                    expected: "4, 6 or 1",
                    found: found.into(),
                });
            }
        };
        let protocol = match b[39] {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            found => {
                return Err(WireError::Field {
                    field: "a record's protocol",
                    expected: "6, 17 or 132",
                    found: found.into(),
                });
            }
        };
        let on = |flag: u8| b[37] & flag != 0;
        Ok(Self {
            place,
            id: u64_at(b, 16),
            hints: u64_at(b, 24),
            port: u16_at(b, 32),
            weight: u16_at(b, 34),
            zone: (b[36] != NO_ZONE).then_some(b[36]),
            protocol,
            ready: on(1),
            serving: on(2),
            terminating: on(4),
            hinted: on(8),
        })
    }

    /// The address; allocates for a name, and only then reads again.
    pub fn address<R: ReadAt>(&self, header: &Header, reader: &mut R) -> Result<Address, WireError<R::Error>> {
        match self.place {
            Place::V4(ip) => Ok(Address::V4(ip)),
            Place::V6(ip) => Ok(Address::V6(ip)),
            Place::Name { offset, len } => header.read_name(reader, offset, len).map(Address::Fqdn),
        }
    }

    /// The name's bytes without allocating, or `None` for an IP address.
    pub fn name<'b, R: ReadAt>(
        &self,
        header: &Header,
        reader: &mut R,
        into: &'b mut [u8; MAX_NAME_LEN],
    ) -> Result<Option<&'b [u8]>, WireError<R::Error>> {
        match self.place {
            Place::Name { offset, len } => header.copy_name(reader, offset, len, into).map(Some),
            _ => Ok(None),
        }
    }
}
