//! A value's header, and reads of the parts that it locates: where peer bytes are checked first.

use std::sync::Arc;

use super::{
    ALL_EJECTED, HEADER_LEN, HINTED, MAGIC, MAX_NAME_LEN, MAX_ZONES, RECORD_LEN, ReadAt, Record, SLOT_LEN, TERMINATING,
    TRUNCATED, WireError, ZONE_LEN,
    ints::{u16_at, u32_at, u64_at},
};
use crate::MAX_VALUE_LEN;

/// A value's header: counts that are known to agree with the value's length, and thereby the offset of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    flags: u16,
    endpoints: u16,
    zones: u16,
    all_slots: u16,
    slots: u32,
    left_out: u32,
    route: u64,
    pub(super) sum: u64,
    // Where the sections begin and where the last one ends; sums of the counts, checked against the length.
    slots_at: usize,
    records_at: usize,
    pool_at: usize,
    pub(super) end: usize,
}

impl Header {
    /// Reads and checks the header. Costs one read of 64 bytes.
    #[inline]
    pub fn read<R: ReadAt>(reader: &mut R) -> Result<Self, WireError<R::Error>> {
        let found = reader.len();
        if !(HEADER_LEN..=MAX_VALUE_LEN).contains(&found) {
            return Err(WireError::Field {
                field: "a route value's length",
                expected: "from 64 to 65536",
                found: found as u64,
            });
        }
        let mut b = [0; HEADER_LEN];
        reader.read_at(0, &mut b).map_err(WireError::Read)?;
        if u32_at(&b, 0) != MAGIC {
            return Err(WireError::Magic { found: u32_at(&b, 0) });
        }
        let (endpoints, zones, slots, pool) = (u16_at(&b, 6), u16_at(&b, 8), u32_at(&b, 12), u32_at(&b, 16));
        // No overflow: every count is under 2^32 and multiplied by at most 40, in 64 bits.
        let slots_at = HEADER_LEN as u64 + u64::from(zones) * ZONE_LEN as u64;
        let records_at = slots_at + u64::from(slots) * SLOT_LEN as u64;
        let pool_at = records_at + u64::from(endpoints) * RECORD_LEN as u64;
        let end = pool_at + u64::from(pool);
        if end != found as u64 {
            return Err(WireError::Length { expected: usize::try_from(end).unwrap_or(usize::MAX), found });
        }
        let all_slots = u16_at(&b, 10);
        if usize::from(zones) > MAX_ZONES {
            return Err(WireError::Field { field: "the number of zones", expected: "at most 64", found: zones.into() });
        }
        if u32::from(all_slots) > slots {
            return Err(WireError::Field {
                field: "the slots for all",
                expected: "at most the slots",
                found: all_slots.into(),
            });
        }
        // All of these are at most `found`, so they fit.
        let [slots_at, records_at, pool_at, end] = [slots_at, records_at, pool_at, end].map(|at| at as usize);
        let (flags, left_out, route, sum) = (u16_at(&b, 4), u32_at(&b, 20), u64_at(&b, 24), u64_at(&b, 32));
        Ok(Self { flags, endpoints, zones, all_slots, slots, left_out, route, sum, slots_at, records_at, pool_at, end })
    }

    /// How many endpoints the value holds.
    pub fn endpoints(&self) -> u16 {
        self.endpoints
    }

    /// How many zones the value names.
    pub fn zones(&self) -> u16 {
        self.zones
    }

    /// How many candidates there are in all.
    pub fn candidates(&self) -> u16 {
        self.all_slots
    }

    /// The id of the route that the value belongs to.
    pub fn route(&self) -> u64 {
        self.route
    }

    /// How many endpoints were left out because they didn't fit.
    pub fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Whether endpoints were left out.
    pub fn truncated(&self) -> bool {
        self.flags & TRUNCATED != 0
    }

    /// Whether every ready endpoint has a hint, so that hints may be followed.
    pub fn hinted(&self) -> bool {
        self.flags & HINTED != 0
    }

    /// Whether nothing is ready and the candidates are terminating.
    pub fn terminating(&self) -> bool {
        self.flags & TERMINATING != 0
    }

    /// Whether every candidate was ejected, so that all are used.
    pub fn all_ejected(&self) -> bool {
        self.flags & ALL_EJECTED != 0
    }

    /// Reads up to `N` zones from number `from` on; says how many.
    #[inline]
    pub(crate) fn read_zones<R: ReadAt, const N: usize>(
        &self,
        reader: &mut R,
        from: usize,
        into: &mut [[u8; ZONE_LEN]; N],
    ) -> Result<usize, WireError<R::Error>> {
        let n = usize::from(self.zones).saturating_sub(from).min(N);
        reader.read_at(HEADER_LEN + from * ZONE_LEN, into[..n].as_flattened_mut()).map_err(WireError::Read)?;
        Ok(n)
    }

    /// Reads a slot: record, threshold, alias. `index` may be anything.
    #[inline]
    pub(crate) fn read_slot<R: ReadAt>(&self, reader: &mut R, index: u32) -> Result<[u16; 3], WireError<R::Error>> {
        if index >= self.slots {
            return Err(WireError::Field {
                field: "a slot's number",
                expected: "under the number of slots",
                found: index.into(),
            });
        }
        let mut b = [0; SLOT_LEN];
        reader.read_at(self.slots_at + index as usize * SLOT_LEN, &mut b).map_err(WireError::Read)?;
        Ok([u16_at(&b, 0), u16_at(&b, 2), u16_at(&b, 4)])
    }

    /// Reads one endpoint's record; `index` may be anything. Costs one read of 40 bytes.
    #[inline]
    pub fn read_record<R: ReadAt>(&self, reader: &mut R, index: u16) -> Result<Record, WireError<R::Error>> {
        if index >= self.endpoints {
            return Err(WireError::Field {
                field: "a record's number",
                expected: "under the number of endpoints",
                found: index.into(),
            });
        }
        let mut b = [0; RECORD_LEN];
        reader.read_at(self.records_at + usize::from(index) * RECORD_LEN, &mut b).map_err(WireError::Read)?;
        Record::parse(&b)
    }

    /// Reads a name from the pool as text; the place may be anything.
    pub(super) fn read_name<R: ReadAt>(
        &self,
        reader: &mut R,
        offset: u32,
        len: u16,
    ) -> Result<Arc<str>, WireError<R::Error>> {
        let mut b = [0; MAX_NAME_LEN];
        let bytes = self.copy_name(reader, offset, len, &mut b)?;
        let text = std::str::from_utf8(bytes);
        let lies = |_| WireError::Field { field: "a name in the pool", expected: "utf-8", found: offset.into() };
        text.map(Arc::from).map_err(lies)
    }

    /// Copies a name from the pool; the place may be anything.
    pub(super) fn copy_name<'b, R: ReadAt>(
        &self,
        reader: &mut R,
        offset: u32,
        len: u16,
        into: &'b mut [u8; MAX_NAME_LEN],
    ) -> Result<&'b [u8], WireError<R::Error>> {
        let at = self.pool_at.saturating_add(offset as usize);
        if usize::from(len) > MAX_NAME_LEN || at.saturating_add(len.into()) > self.end {
            let found = u64::from(offset) + u64::from(len);
            return Err(WireError::Field {
                field: "a name's end",
                expected: "in the pool, after at most 255 bytes",
                found,
            });
        }
        let into = &mut into[..len.into()];
        reader.read_at(at, into).map_err(WireError::Read)?;
        Ok(into)
    }
}
