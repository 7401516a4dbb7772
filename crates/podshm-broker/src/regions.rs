//! The regions of a broker: who holds which, and when one is free.

use podshm_layout::RegionKind;
use podshm_proto::Region;
use podshm_region::{Memory, ReadMap, RegionError, WriteMap};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

/// A connection's number.
pub(crate) type ConnId = u64;

/// Largest table that is moved into huge pages: a tenth of a second or so of the broker's time.
const MOST_COLLAPSED: u64 = 256 << 20;

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) region: Region,
    memory: Memory,
    holders: BTreeSet<ConnId>,
    /// The broker itself still needs it, for joins or for a successor.
    wanted: bool,
}

impl Held {
    /// A mapping of a sealed region, to look what its writer says.
    pub(crate) fn read(&self) -> Result<ReadMap, RegionError> {
        ReadMap::map(&self.memory, self.region.bytes)
    }
}

/// Every region that is alive as far as the broker knows.
#[derive(Debug, Default)]
pub(crate) struct RegionBook {
    all: BTreeMap<u64, Held>,
    last: u64,
    bytes: u64,
    peak: u64,
}

impl RegionBook {
    /// Makes a region, all pages allocated and charged here, its header written. Its writer's first touch zeroes them.
    pub(crate) fn make(&mut self, region: Region) -> Result<u64, RegionError> {
        self.make_with(region, &[])
    }

    /// [`RegionBook::make`] with something behind the header.
    pub(crate) fn make_with(&mut self, mut region: Region, rest: &[u8]) -> Result<u64, RegionError> {
        self.last += 1;
        region.id = self.last;
        let kind = match region.kind {
            k if k == RegionKind::Client as u32 => "podshm-client",
            k if k == RegionKind::Agent as u32 => "podshm-agent",
            _ => "podshm-table",
        };
        let memory = Memory::create(kind, region.bytes)?;
        if region.kind == RegionKind::Table as u32 && region.bytes <= MOST_COLLAPSED {
            let map = WriteMap::map(&memory)?;
            map.touch()?;
            // Lookups over a large table miss the translation cache otherwise. Larger ones would keep joins waiting.
            if !map.collapse() {
                tracing::debug!(region = region.id, bytes = region.bytes, "no huge pages for a table");
            }
        }
        if let Some(header) = region.header() {
            memory.begin_with(&[&header.bytes(), rest].concat())?;
        }
        self.all.insert(region.id, Held { region, memory, holders: BTreeSet::new(), wanted: true });
        self.bytes += region.bytes;
        self.peak = self.peak.max(self.bytes);
        Ok(region.id)
    }

    pub(crate) fn at(&self, id: u64) -> Option<&Held> {
        self.all.get(&id)
    }

    /// A descriptor of the region for `holder`.
    pub(crate) fn lend(&mut self, id: u64, holder: ConnId) -> Result<(Region, OwnedFd), RegionError> {
        let held = self.all.get_mut(&id).expect("a region is lent only while the broker wants it");
        let fd = held.memory.try_clone()?.into_fd();
        held.holders.insert(holder);
        Ok((held.region, fd))
    }

    /// Seals the region against every other writer.
    pub(crate) fn seal(&self, id: u64) -> Result<(), RegionError> {
        self.all.get(&id).expect("a region is sealed only while the broker wants it").memory.seal()
    }

    pub(crate) fn drop_holder(&mut self, id: u64, holder: ConnId) {
        if let Some(held) = self.all.get_mut(&id) {
            held.holders.remove(&holder);
            self.free_if_unused(id);
        }
    }

    pub(crate) fn drop_everything_of(&mut self, holder: ConnId) {
        let ids: Vec<u64> = self.all.iter().filter(|(_, h)| h.holders.contains(&holder)).map(|(id, _)| *id).collect();
        for id in ids {
            self.drop_holder(id, holder);
        }
    }

    /// The broker itself needs the region no longer.
    pub(crate) fn unwant(&mut self, id: u64) {
        if let Some(held) = self.all.get_mut(&id) {
            held.wanted = false;
            self.free_if_unused(id);
        }
    }

    pub(crate) fn is_held_by(&self, id: u64, holder: ConnId) -> bool {
        self.all.get(&id).is_some_and(|h| h.holders.contains(&holder))
    }

    /// Regions of one kind that a connection holds.
    pub(crate) fn held_by(&self, holder: ConnId, kind: RegionKind) -> usize {
        self.all.values().filter(|h| h.region.kind == kind as u32 && h.holders.contains(&holder)).count()
    }

    /// Bytes alive.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of those alive that the filter lets through.
    pub(crate) fn bytes_of(&self, filter: impl Fn(&Region) -> bool) -> u64 {
        self.all.values().map(|held| held.region).filter(filter).map(|region| region.bytes).sum()
    }

    /// Most bytes that were ever alive.
    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    fn free_if_unused(&mut self, id: u64) {
        if self.all.get(&id).is_some_and(|h| !h.wanted && h.holders.is_empty())
            && let Some(held) = self.all.remove(&id)
        {
            self.bytes -= held.region.bytes;
        }
    }
}
