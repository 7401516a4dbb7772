//! Publishing tables, and growing them.

use super::Agent;
use crate::clock;
use crate::error::Error;
use podshm_layout::step::{self, Step};
use podshm_layout::table::{MAX_KEY, MAX_VALUE, TableError, TableWriter as Writer};
use podshm_proto::{Grow, Publish, Region, Up};
use podshm_region::{Window, WriteMap};
use std::time::{Duration, Instant};

/// How long growing waits for the broker.
const GROW: Duration = Duration::from_secs(5);

/// A table's current generation, and the next one while it is being made.
#[derive(Debug)]
pub(super) struct Slot {
    writer: Writer<Window>,
    region: u64,
    is_sealed: bool,
    next: Option<Next>,
}

/// The next generation, mapped and not filled.
#[derive(Debug)]
struct Next {
    region: Region,
    writer: Writer<Window>,
    is_sealed: bool,
    why: Why,
}

/// Why there is another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// This agent asked for it.
    Wanted,
    /// The broker asked for it: somebody does not read the layout of the one that stands.
    Rewritten,
}

impl Slot {
    pub(super) fn is_sealed(&self) -> bool {
        self.is_sealed
    }

    /// Number of the region that stands.
    pub(super) fn region(&self) -> u64 {
        self.region
    }

    pub(super) fn next_region(&self) -> Option<u64> {
        self.next.as_ref().map(|next| next.region.id)
    }

    /// The next generation, if it is one of these, has gone with the broker that made it.
    pub(super) fn drop_next(&mut self, ids: &[u64]) {
        self.next.take_if(|next| ids.contains(&next.region.id));
    }

    pub(super) fn sealed(&mut self, ids: &[u64]) {
        self.is_sealed |= ids.contains(&self.region);
        if let Some(next) = &mut self.next {
            next.is_sealed |= ids.contains(&next.region.id);
        }
    }

    /// The next generation, once it is there for this reason and sealed.
    fn take_next(&mut self, why: Why) -> Option<Next> {
        self.next.take_if(|next| next.is_sealed && next.why == why)
    }

    /// Copies everything over and goes on with the next generation; returns the number of the one before.
    fn go_over(&mut self, mut next: Next) -> Result<u64, Error> {
        self.writer.copy_into(&mut next.writer, clock::now())?;
        self.writer = next.writer;
        Ok(std::mem::replace(&mut self.region, next.region.id))
    }
}

impl Agent {
    pub(super) fn new_table_region(&mut self, region: Region, mut map: WriteMap, why: Why) -> Result<(), Error> {
        let geometry = region.table().map_err(podshm_region::RegionError::from)?;
        let writer = Writer::new(map.window(0, region.bytes as usize), geometry);
        match self.tables.get_mut(&(region.owner as usize)) {
            Some(slot) => slot.next = Some(Next { region, writer, is_sealed: false, why }),
            None => {
                let slot = Slot { writer, region: region.id, is_sealed: false, next: None };
                self.tables.insert(region.owner as usize, slot);
            }
        }
        Ok(())
    }

    /// Tables that were to be written again and are sealed now get their content, and are published.
    pub(super) fn tables_sealed(&mut self, ids: &[u64]) -> Result<(), Error> {
        let (mut published, mut crowded) = (Vec::new(), Vec::new());
        for (&service, slot) in &mut self.tables {
            slot.sealed(ids);
            let Some(next) = slot.take_next(Why::Rewritten) else { continue };
            let new = next.region.id;
            match slot.go_over(next) {
                Ok(old) => published.push((old, new)),
                Err(error) => crowded.push((service, new, error)),
            }
        }
        for (old, new) in published {
            self.published(old, new)?;
        }
        for (service, new, error) in crowded {
            // What fitted in one order need not fit in another: then a larger one, which comes at the layout that is wanted, too.
            self.tell(Up::Release(podshm_proto::RegionIds { ids: vec![new] }))?;
            let full = TableError::Full { needed: 0, free: 0 };
            if let Err(refused) = (TableWriter { agent: self, service }).grow(0, full) {
                tracing::error!(%error, %refused, "a table could not be written at another layout; it stands as it is");
            }
        }
        Ok(())
    }

    fn published(&self, old: u64, new: u64) -> Result<(), Error> {
        self.tell(Up::Publish(Publish { region: new }))?;
        step::at(Step::GrowthPublished);
        self.tell(Up::Release(podshm_proto::RegionIds { ids: vec![old] }))
    }
}

/// The writer of one table.
///
/// Every publication is atomic: readers see the old value or the new one, at every instant, wherever this process dies.
#[derive(Debug)]
pub struct TableWriter<'a> {
    agent: &'a mut Agent,
    service: usize,
}

impl<'a> TableWriter<'a> {
    pub(super) fn new(agent: &'a mut Agent, service: usize) -> Self {
        TableWriter { agent, service }
    }

    /// Publishes `value` (at most 64 KiB) under `key` (1 to 255 bytes). A table that is full goes over to a larger generation;
    /// if the broker is away or the budget too small, that fails and the table stands as it was.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.agent.check_fork()?;
        match self.writer().put(key, value, clock::now()) {
            Err(full) if full.wants_growth() => {
                self.grow(key.len() + value.len(), full)?;
                Ok(self.writer().put(key, value, clock::now())?)
            }
            other => Ok(other?),
        }
    }

    /// Removes `key`; says whether it was there (never in a forked child).
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.agent.check_fork().is_ok() && self.writer().remove(key, clock::now())
    }

    /// Publishes several changes so that a snapshot sees all of them or none. `None` removes a key. Grows the table first if need be.
    pub fn publish(&mut self, changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), Error> {
        self.agent.check_fork()?;
        let mut bytes = 0;
        for (key, value) in changes {
            let len = value.as_ref().map_or(0, Vec::len);
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(TableError::Key { found: key.len() }.into());
            }
            if len > MAX_VALUE {
                return Err(TableError::Value { found: len }.into());
            }
            bytes += podshm_layout::table::record_bytes(key.len(), len);
        }
        // A batch must not fail halfway: all that it writes must fit beside what is there.
        while self.writer().free_bytes() < bytes * 2 + 2 * MAX_VALUE as u64 {
            let full = TableError::Full { needed: bytes, free: self.writer().free_bytes() };
            self.grow(bytes as usize * 2, full)?;
        }
        let now = clock::now();
        let mut result = Ok(());
        let mut batch = self.writer().batch();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    if let Err(error) = batch.put(key, value, now) {
                        result = Err(error.into());
                    }
                }
                None => drop(batch.remove(key, now)),
            }
        }
        result
    }

    /// Says that the content is still true, so that readers see a young age.
    pub fn touch(&mut self) {
        if self.agent.check_fork().is_ok() {
            self.writer().touch(clock::now());
        }
    }

    /// Keys in the table; none in a forked child.
    pub fn keys(&mut self) -> u64 {
        if self.agent.check_fork().is_err() {
            return 0;
        }
        self.writer().keys()
    }

    fn writer(&mut self) -> &mut Writer<Window> {
        &mut self.slot().writer
    }

    fn slot(&mut self) -> &mut Slot {
        self.agent.tables.get_mut(&self.service).expect("a table of this agent's services has its slot")
    }

    /// Asks for a region twice as large, copies everything over, and publishes it.
    fn grow(&mut self, more: usize, full: TableError) -> Result<(), Error> {
        let writer = self.writer();
        let keys = (writer.keys() * 2).max(64);
        let bytes = (writer.live_bytes() + more as u64) * 2 + 4096;
        let service = self.service as u32;
        let deadline = Instant::now() + GROW;
        let mut asked = None;
        let next = loop {
            if let Some(next) = self.slot().take_next(Why::Wanted) {
                break next;
            }
            // A broker that is started anew meanwhile knows what it has sealed, and nothing of a wish.
            if !self.agent.has_broker() && self.agent.await_broker("a larger table", deadline).is_err() {
                return Err(full.into());
            }
            if asked != Some(self.agent.returns) && self.slot().next.is_none() {
                asked = Some(self.agent.returns);
                self.agent.tell(Up::Grow(Grow { service, keys, bytes }))?;
                step::at(Step::GrowthAsked);
            }
            let Some(broker) = &mut self.agent.broker else { continue };
            match broker.await_message("a larger table", deadline) {
                Ok(received) => self.agent.follow(received)?,
                Err(error) if error.is_hang_up() => self.agent.broker_is_away(error)?,
                Err(error) => return Err(error),
            }
        };
        step::at(Step::GrowthSealed);
        let new = next.region.id;
        let old = self.slot().go_over(next)?;
        step::at(Step::GrowthCopied);
        self.agent.published(old, new)
    }
}
