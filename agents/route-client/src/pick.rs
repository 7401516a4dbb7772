//! The choice of an endpoint: a header, a zone, a slot and a record are read; nothing is allocated or sought.
//!
//! Who is a candidate was settled when the value was encoded ([`encode`](crate::wire::encode)); here it is only:
//!
//! 1. **hints**: if every ready endpoint has hints and some candidate is hinted for the caller's zone, among those;
//! 2. **local**: else, if the caller asked for it and its zone has enough candidates, among those of its zone;
//! 3. **all**: else among all candidates;
//!
//! by weight in each case. The cost doesn't depend on the number of endpoints (an alias table), a little on zones.

use crate::wire::ints::{u16_at, u32_at, u64_at};
use crate::wire::{Header, ReadAt, Record, WireError, ZONE_LEN, zone_hash};

/// A source of random 64-bit numbers. It need not be secure; it must be fast, and each thread should have its own.
pub trait Random {
    /// The next number.
    fn next_u64(&mut self) -> u64;
}

impl<F: FnMut() -> u64> Random for F {
    fn next_u64(&mut self) -> u64 {
        self()
    }
}

/// A small generator (wyrand) for callers that have none.
#[derive(Debug, Clone)]
pub struct SmallRandom(u64);

impl SmallRandom {
    /// Starts it. Seed each thread and process differently, or they'll all choose alike.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random for SmallRandom {
    #[inline]
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let wide = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (wide >> 64) as u64 ^ wide as u64
    }
}

/// Where the caller is and how much that matters to it. Made once, not per pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locality {
    zone: Option<u64>,
    hints: bool,
    local_from: u16,
}

impl Locality {
    /// A caller that doesn't know its zone, or doesn't care: all candidates, always.
    pub const ANYWHERE: Locality = Locality { zone: None, hints: false, local_from: u16::MAX };

    /// A caller in `zone` that follows the API's hints, as kube-proxy does, and nothing else.
    pub fn zone(zone: &str) -> Self {
        Self { zone: Some(zone_hash(zone)), hints: true, local_from: u16::MAX }
    }

    /// Where there are no hints, also prefers its own zone once that has at least `candidates` (0 counts as 1). Few
    /// candidates would be overrun by their zone.
    pub fn prefer_local_from(self, candidates: u16) -> Self {
        Self { local_from: candidates.max(1), ..self }
    }

    /// Doesn't follow hints.
    pub fn ignore_hints(self) -> Self {
        Self { hints: false, ..self }
    }
}

/// Among which candidates the choice was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Those hinted for the caller's zone.
    Hint,
    /// Those in the caller's zone.
    Local,
    /// All.
    All,
}

/// The candidates that a caller chooses among; see [`Choice::read`].
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    header: Header,
    first: u32,
    count: u16,
    why: Why,
}

/// What was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked {
    /// The endpoint.
    pub record: Record,
    /// The value's header, for [`Record::address`] and the route's id.
    pub header: Header,
    /// Among which candidates it was.
    pub why: Why,
}

/// Why nothing was picked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError<E: std::error::Error> {
    /// No endpoint is ready, or serves while it terminates.
    #[error(
        "expected a ready or still serving endpoint, found none among {endpoints}; wait for one, or look why the pods aren't ready"
    )]
    NoCandidate {
        /// How many endpoints the route has.
        endpoints: u16,
    },
    /// The value can't be read or lies.
    #[error(transparent)]
    Wire(#[from] WireError<E>),
}

/// Picks one endpoint. Over shared memory the caller checks its guard afterwards and picks again if the value changed.
#[inline]
pub fn pick<R: ReadAt>(
    reader: &mut R,
    locality: &Locality,
    random: &mut impl Random,
) -> Result<Picked, PickError<R::Error>> {
    Choice::read(reader, locality)?.pick(reader, random)
}

impl Choice {
    /// Finds the candidates for a caller there. May be kept for several picks from the *same* version of a value.
    #[inline]
    pub fn read<R: ReadAt>(reader: &mut R, locality: &Locality) -> Result<Self, PickError<R::Error>> {
        let header = Header::read(reader)?;
        let all = Self { header, first: 0, count: header.candidates(), why: Why::All };
        let wants_zone = (locality.hints && header.hinted()) || locality.local_from <= header.candidates();
        let (Some(hash), true) = (locality.zone, wants_zone) else {
            return Ok(all);
        };
        let mut from = 0;
        while from < usize::from(header.zones()) {
            let mut entries = [[0; ZONE_LEN]; 4];
            let n = header.read_zones(reader, from, &mut entries)?;
            if let Some(b) = entries[..n].iter().find(|b| u64_at(*b, 0) == hash) {
                let (local, hinted) = (u16_at(b, 20), u16_at(b, 22));
                return Ok(if locality.hints && header.hinted() && hinted > 0 {
                    Self { header, first: u32_at(b, 24), count: hinted, why: Why::Hint }
                } else if local >= locality.local_from {
                    Self { header, first: u32_at(b, 16), count: local, why: Why::Local }
                } else {
                    all
                });
            }
            from += n.max(1);
        }
        Ok(all)
    }

    /// How many candidates there are.
    pub fn candidates(&self) -> u16 {
        self.count
    }

    /// Picks one of them by weight: two reads, 48 bytes.
    #[inline]
    pub fn pick<R: ReadAt>(&self, reader: &mut R, random: &mut impl Random) -> Result<Picked, PickError<R::Error>> {
        if self.count == 0 {
            return Err(PickError::NoCandidate { endpoints: self.header.endpoints() });
        }
        let dice = random.next_u64();
        // The low half chooses the slot, the top sixteen bits between its record and its alias.
        let nth = ((dice & 0xffff_ffff) * u64::from(self.count)) >> 32;
        let [record, threshold, alias] = self.header.read_slot(reader, self.first.saturating_add(nth as u32))?;
        let index = if (dice >> 48) < u64::from(threshold) { record } else { alias };
        let record = self.header.read_record(reader, index)?;
        Ok(Picked { record, header: self.header, why: self.why })
    }
}
