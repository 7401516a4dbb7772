//! The regions of a broker: who holds which, and when one is free.

use crate::ledger::records::{RegionRecord, Who};
use podshm_domain::Identity;
use podshm_layout::RegionKind;
use podshm_proto::Region;
use podshm_region::{Memory, MemoryId, ReadMap, RegionError, WriteMap};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

/// A connection's number.
pub(crate) type ConnId = u64;

/// Largest table that is moved into huge pages: a tenth of a second or so of the broker's time.
const MOST_COLLAPSED: u64 = 256 << 20;

/// Whose a region is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) domain: String,
    /// The pod that writes it; none for what the broker itself has written.
    pub(crate) writer: Option<Identity>,
    /// A: the client that it was given to; 0 while it is in a pool.
    pub(crate) given: u64,
}

impl Owner {
    pub(crate) fn new(domain: &str, writer: Option<&Identity>) -> Self {
        Owner { domain: domain.to_owned(), writer: writer.cloned(), given: 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) region: Region,
    pub(crate) owner: Owner,
    /// None as long as nobody has presented it to a broker that was started anew.
    memory: Option<Memory>,
    id: MemoryId,
    holders: BTreeSet<ConnId>,
    /// The broker itself still needs it, for joins or for a successor.
    wanted: bool,
    sealed: bool,
    /// A broker before this one has made it, and pays for it.
    inherited: bool,
}

impl Held {
    /// A mapping of a sealed region, to look what its writer says.
    pub(crate) fn read(&self) -> Result<ReadMap, RegionError> {
        ReadMap::map(self.memory()?, self.region.bytes)
    }

    fn memory(&self) -> Result<&Memory, RegionError> {
        self.memory.as_ref().ok_or(RegionError::Absent { id: self.region.id })
    }

    pub(crate) fn is_here(&self) -> bool {
        self.memory.is_some()
    }

    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    pub(crate) fn record(&self) -> RegionRecord {
        RegionRecord {
            region: self.region,
            domain: self.owner.domain.clone(),
            writer: self.owner.writer.as_ref().map(Who::from),
            given: self.owner.given,
            device: self.id.device,
            inode: self.id.inode,
            sealed: self.sealed,
        }
    }
}

/// Every region that is alive as far as the broker knows.
#[derive(Debug, Default)]
pub(crate) struct RegionBook {
    all: BTreeMap<u64, Held>,
    /// The same holders, by holder: a domain's agent has a thousand clients, and each is asked what it holds.
    holdings: BTreeSet<(ConnId, u64)>,
    last: u64,
    bytes: u64,
    peak: u64,
    /// Those that have changed since they were written down last.
    changed: BTreeSet<u64>,
    /// Participants of the broker before this one may yet present what they hold.
    expecting: bool,
    half_joined: BTreeSet<u64>,
}

impl RegionBook {
    /// Makes a region, all pages allocated and charged here, its header written. Its writer's first touch zeroes them.
    pub(crate) fn make(&mut self, region: Region, owner: Owner) -> Result<u64, RegionError> {
        self.make_with(region, owner, &[])
    }

    /// [`RegionBook::make`] with something behind the header.
    pub(crate) fn make_with(&mut self, mut region: Region, owner: Owner, rest: &[u8]) -> Result<u64, RegionError> {
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
        let (id, memory, holders) = (memory.id()?, Some(memory), BTreeSet::new());
        let held = Held { region, owner, memory, id, holders, wanted: true, sealed: false, inherited: false };
        self.all.insert(region.id, held);
        self.changed.insert(region.id);
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
        let fd = held.memory()?.try_clone()?.into_fd();
        held.holders.insert(holder);
        self.holdings.insert((holder, id));
        Ok((held.region, fd))
    }

    /// Seals the region against every other writer.
    pub(crate) fn seal(&mut self, id: u64) -> Result<(), RegionError> {
        let held = self.all.get_mut(&id).expect("a region is sealed only while the broker wants it");
        held.memory()?.seal()?;
        held.sealed = true;
        self.changed.insert(id);
        Ok(())
    }

    /// An answer region is this client's from now on.
    pub(crate) fn give(&mut self, id: u64, client: u64) {
        if let Some(held) = self.all.get_mut(&id) {
            held.owner.given = client;
            self.changed.insert(id);
        }
    }

    pub(crate) fn drop_holder(&mut self, id: u64, holder: ConnId) {
        if let Some(held) = self.all.get_mut(&id) {
            held.holders.remove(&holder);
            self.holdings.remove(&(holder, id));
            self.free_if_unused(id);
        }
    }

    pub(crate) fn drop_everything_of(&mut self, holder: ConnId) {
        for id in self.all_of(holder).collect::<Vec<_>>() {
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
        self.all_of(holder).filter(|id| self.all.get(id).is_some_and(|h| h.region.kind == kind as u32)).count()
    }

    /// Whether a connection holds tables that are not among these.
    pub(crate) fn keeps_others_than(&self, tables: &BTreeSet<u64>, holder: ConnId) -> bool {
        let is_table = |id: &u64| self.all.get(id).is_some_and(|h| h.region.kind == RegionKind::Table as u32);
        self.all_of(holder).any(|id| is_table(&id) && !tables.contains(&id))
    }

    fn all_of(&self, holder: ConnId) -> impl Iterator<Item = u64> {
        self.holdings.range((holder, 0)..=(holder, u64::MAX)).map(|(_, id)| *id)
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

    /// Bytes of a domain's regions.
    pub(crate) fn domain_bytes(&self, domain: &str) -> u64 {
        self.all.values().filter(|held| held.owner.domain == domain).map(|held| held.region.bytes).sum()
    }

    /// Bytes of the regions of a domain that a broker before this one has made.
    pub(crate) fn inherited_bytes(&self, domain: &str) -> u64 {
        let theirs = self.all.values().filter(|held| held.inherited && held.owner.domain == domain);
        theirs.map(|held| held.region.bytes).sum()
    }

    /// What is to be written down: the numbers of those that have changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// They could not be written down.
    pub(crate) fn put_changed_back(&mut self, changed: BTreeSet<u64>) {
        self.changed.extend(changed);
    }

    /// The last number that was given.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Numbers up to this one were given by brokers before.
    pub(crate) fn begin_after(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// A region of the broker before this one, which nobody has presented yet.
    pub(crate) fn restore(&mut self, record: RegionRecord, wanted: bool) {
        let RegionRecord { region, domain, writer, given, device, inode, sealed } = record;
        let owner = Owner { domain, writer: writer.map(Identity::from), given };
        let (id, holders) = (MemoryId { device, inode }, BTreeSet::new());
        self.all.insert(region.id, Held { region, owner, memory: None, id, holders, wanted, sealed, inherited: true });
        self.bytes += region.bytes;
        self.peak = self.peak.max(self.bytes);
        self.expecting = true;
    }

    /// A region of the broker before this one that nobody was told to be sealed: it is not to be presented.
    pub(crate) fn forget_half_joined(&mut self, id: u64) {
        self.half_joined.insert(id);
        self.changed.insert(id);
    }

    pub(crate) fn was_half_joined(&self, id: u64) -> bool {
        self.half_joined.contains(&id)
    }

    /// Somebody presents `memory` as the region `id`: what is wrong with that, or nothing, and then it is here.
    pub(crate) fn present(&mut self, id: u64, memory: Memory) -> Result<(), RegionError> {
        let held = self.all.get_mut(&id).ok_or(RegionError::Absent { id })?;
        // Mapped, because a descriptor that can't be read would be passed on to others. Size, seals and blocks are checked with it.
        let map = ReadMap::map(&memory, held.region.bytes)?;
        let found = memory.id()?;
        for (what, expected, found) in
            [("its device", held.id.device, found.device), ("its inode", held.id.inode, found.inode)]
        {
            if expected != found {
                return Err(RegionError::Refused { what, expected, found });
            }
        }
        if let Some(header) = held.region.header() {
            header.check(&map)?;
        }
        held.memory.get_or_insert(memory);
        Ok(())
    }

    /// Who presented it holds it.
    pub(crate) fn hold(&mut self, id: u64, holder: ConnId) {
        if let Some(held) = self.all.get_mut(&id) {
            held.holders.insert(holder);
            self.holdings.insert((holder, id));
        }
    }

    /// The broker itself needs the region.
    pub(crate) fn want(&mut self, id: u64) {
        if let Some(held) = self.all.get_mut(&id) {
            held.wanted = true;
        }
    }

    /// Whether participants of the broker before this one may present what they hold.
    pub(crate) fn is_expecting(&self) -> bool {
        self.expecting
    }

    /// Descriptors of everything that is here, for the next broker.
    pub(crate) fn pass_on(&self) -> impl Iterator<Item = (u64, &Memory)> {
        self.all.iter().filter(|(_, held)| held.sealed).filter_map(|(id, held)| Some((*id, held.memory.as_ref()?)))
    }

    /// Regions that nobody has presented.
    pub(crate) fn absent(&self) -> impl Iterator<Item = &Held> {
        self.all.values().filter(|held| held.memory.is_none())
    }

    /// Nobody is expected to present anything any more: what nobody needs is freed.
    pub(crate) fn stop_expecting(&mut self) {
        self.expecting = false;
        for id in self.all.keys().copied().collect::<Vec<_>>() {
            self.free_if_unused(id);
        }
    }

    fn free_if_unused(&mut self, id: u64) {
        if self.expecting && self.all.get(&id).is_some_and(|held| held.inherited) {
            // Another who holds it may come yet.
            return;
        }
        if self.all.get(&id).is_some_and(|h| !h.wanted && h.holders.is_empty())
            && let Some(held) = self.all.remove(&id)
        {
            self.bytes -= held.region.bytes;
            self.changed.insert(id);
        }
    }
}
