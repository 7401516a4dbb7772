//! A whole value to endpoints, for those who want all of it.

use std::sync::Arc;

use super::{
    Endpoint, Header, ReadAt, WireError, ZONE_LEN, checksum,
    ints::{u16_at, u32_at},
};

/// A zone of a value and how many candidates it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneEntry {
    /// Its name.
    pub name: Arc<str>,
    /// How many candidates are in it.
    pub local: u16,
    /// How many candidates are hinted for it.
    pub hinted: u16,
}

/// A whole value, read and checked: for tests, dumps and agents, not for a hot path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The id of the route that it belongs to.
    pub route: u64,
    /// How many endpoints were left out because they didn't fit.
    pub left_out: u32,
    /// Its zones, by name.
    pub zones: Vec<ZoneEntry>,
    /// Its endpoints, in the value's order.
    pub endpoints: Vec<Endpoint>,
}

impl Route {
    /// Reads all of a value and checks its checksum. At most 64 KiB are copied, whatever the bytes say.
    pub fn decode<R: ReadAt>(reader: &mut R) -> Result<Self, WireError<R::Error>> {
        // A copy first: what is checked is then what is used, even if somebody writes meanwhile.
        let len = Header::read(reader)?.end;
        let mut copy = vec![0; len];
        reader.read_at(0, &mut copy).map_err(WireError::Read)?;
        Self::decode_copy(&copy).map_err(|error| match error {
            // The copy is whole, so its reads can't fail; were it so, it is the header that lies.
            WireError::Read(e) => WireError::Length { expected: e.offset.saturating_add(e.wanted), found: e.len },
            WireError::Magic { found } => WireError::Magic { found },
            WireError::Length { expected, found } => WireError::Length { expected, found },
            WireError::Field { field, expected, found } => WireError::Field { field, expected, found },
            WireError::Checksum { expected, found } => WireError::Checksum { expected, found },
        })
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, WireError<super::OutOfBounds>> {
        let reader = &mut &*copy;
        let header = Header::read(reader)?;
        let expected = checksum(copy);
        if header.sum != expected {
            return Err(WireError::Checksum { expected, found: header.sum });
        }
        let mut zones = Vec::with_capacity(header.zones().into());
        for number in 0..usize::from(header.zones()) {
            let mut entry = [[0; ZONE_LEN]; 1];
            header.read_zones(reader, number, &mut entry)?;
            let b = &entry[0];
            let name = header.read_name(reader, u32_at(b, 8), u16_at(b, 12))?;
            zones.push(ZoneEntry { name, local: u16_at(b, 20), hinted: u16_at(b, 22) });
        }
        let mut endpoints = Vec::with_capacity(header.endpoints().into());
        for index in 0..header.endpoints() {
            let r = header.read_record(reader, index)?;
            let zone = r.zone.map(|z| zones.get(usize::from(z)).map(|z| z.name.clone()).ok_or(z)).transpose();
            let lies = |z: u8| WireError::Field {
                field: "a record's zone",
                expected: "under the number of zones",
                found: z.into(),
            };
            let hints =
                zones.iter().enumerate().filter(|(z, _)| r.hints >> z & 1 == 1).map(|(_, z)| z.name.clone()).collect();
            endpoints.push(Endpoint {
                address: r.address(&header, reader)?,
                port: r.port,
                protocol: r.protocol,
                ready: r.ready,
                serving: r.serving,
                terminating: r.terminating,
                weight: r.weight,
                zone: zone.map_err(lies)?,
                hints,
            });
        }
        Ok(Self { route: header.route(), left_out: header.left_out(), zones, endpoints })
    }
}
