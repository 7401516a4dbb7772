//! Table lookups.

use super::link::TableGeneration;
use super::{Client, Shared};
use crate::clock;
use crate::error::Error;
use podshm_layout::table::{Found, Lane, ReadError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A table of the agent's, read-only. Lookups make no system call and wait for nobody.
///
/// ```no_run
/// # fn main() -> Result<(), podshm::Error> {
/// use std::time::Duration;
/// let client = podshm::Client::join("/run/podshm/routing", Duration::from_secs(5))?;
/// let routes = client.table("routes")?;
/// let mut buffer = [0; 4096];
/// if let Some(len) = routes.get(b"shop/cart:http", &mut buffer)? {
///     println!("{} bytes, {:?} old", len, routes.age()?);
/// }
/// let mut cart = routes.key(b"shop/cart:http");
/// cart.get(&mut buffer)?; // skips the hash
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Table {
    client: Client,
    service: usize,
}

impl Table {
    pub(super) fn new(client: Client, service: usize) -> Self {
        Table { client, service }
    }

    /// Copies the value of `key` into `buffer` and returns its length; `None` where there is no such key.
    pub fn get(&self, key: &[u8], buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        self.with(|table| Ok(table.reader.copy(key, buffer)?))
    }

    /// The value of `key` without copying it: a guard that copies what is asked for, as long as the value is the same.
    pub fn guard(&self, key: &[u8]) -> Result<Option<Guard>, Error> {
        let table = self.generation()?;
        let found = table.reader.find(key)?;
        Ok(found.map(|found| Guard { table, found, shared: Arc::clone(&self.client.shared) }))
    }

    /// A handle to one key, which skips the hash on every further lookup. One per thread; clones are cheap.
    pub fn key(&self, key: &[u8]) -> Key {
        Key { table: self.clone(), key: key.into(), cached: None, version: 0 }
    }

    /// A handle for many lookups from one thread.
    pub fn reader(&self) -> Result<Reader, Error> {
        let version = self.client.shared.version.load(Ordering::Acquire);
        Ok(Reader { generation: self.generation()?, table: self.clone(), version })
    }

    /// A read of several keys at one version.
    pub fn snapshot(&self) -> Result<TableSnapshot, Error> {
        let table = self.generation()?;
        let version = table.reader.version();
        Ok(TableSnapshot { table, version, shared: Arc::clone(&self.client.shared) })
    }

    /// Keys in the table.
    pub fn len(&self) -> Result<u64, Error> {
        self.with(|table| Ok(table.reader.len()))
    }

    /// Whether the table has no keys.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// The table's number in its line of successors: it changes when the agent is replaced or the table grows.
    pub fn generation_number(&self) -> Result<u64, Error> {
        self.with(|table| Ok(table.generation))
    }

    /// Publications in this generation.
    pub fn version(&self) -> Result<u64, Error> {
        self.with(|table| Ok(table.reader.version()))
    }

    /// How long ago the agent published, or said that all is still true.
    pub fn age(&self) -> Result<Duration, Error> {
        self.with(|table| Ok(Duration::from_nanos(clock::now().saturating_sub(table.reader.published_at()))))
    }

    fn with<R>(&self, read: impl FnOnce(&TableGeneration) -> Result<R, Error>) -> Result<R, Error> {
        let shared = &self.client.shared;
        shared.check_fork()?;
        let link = shared.link.load();
        read(link.tables.get(&self.service).ok_or(Error::AgentAway)?)
    }

    fn generation(&self) -> Result<Arc<TableGeneration>, Error> {
        self.client.shared.check_fork()?;
        let link = self.client.shared.link.load();
        link.tables.get(&self.service).cloned().ok_or(Error::AgentAway)
    }
}

/// A table as one thread reads it: it keeps the current generation at hand and looks for a newer one by one cached word.
#[derive(Clone, Debug)]
pub struct Reader {
    table: Table,
    generation: Arc<TableGeneration>,
    version: u64,
}

impl Reader {
    /// [`Table::get`], cheaper.
    #[inline]
    pub fn get(&mut self, key: &[u8], buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let shared = &*self.table.client.shared;
        shared.check_fork()?;
        // Acquire: pairs with the release in the library thread's swap.
        let version = shared.version.load(Ordering::Acquire);
        if version != self.version {
            self.generation = self.table.generation()?;
            self.version = version;
        }
        Ok(self.generation.reader.copy(key, buffer)?)
    }
}

/// A resolved key.
#[derive(Clone, Debug)]
pub struct Key {
    table: Table,
    key: Box<[u8]>,
    cached: Option<(Arc<TableGeneration>, Option<Lane>)>,
    version: u64,
}

impl Key {
    /// Copies the value into `buffer` and returns its length; `None` where there is no such key now.
    #[inline]
    pub fn get(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        match self.get_unchanged(buffer) {
            Some(len) => Ok(Some(len)),
            None => self.get_anew(buffer),
        }
    }

    /// [`Key::get`] in the common case: the same process, generation and value as last time, and room for it. `None` says that it isn't that,
    /// and nothing else: [`Key::get`] then. Never panics. For the C library alone.
    #[doc(hidden)]
    #[inline(always)]
    pub fn get_unchanged(&self, buffer: &mut [u8]) -> Option<usize> {
        let shared = &*self.table.client.shared;
        match &self.cached {
            Some((table, Some(lane)))
                if shared.is_of_this_process() && shared.version.load(Ordering::Acquire) == self.version =>
            {
                table.reader.copy_unchanged(lane, buffer)
            }
            _ => None,
        }
    }

    #[cold]
    fn get_anew(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let key = std::mem::take(&mut self.key);
        let result = self.resolved().and_then(|(table, lane)| match lane {
            Some(lane) => Ok(table.reader.copy_in_lane(lane, &key, buffer)?),
            None => {
                let found = table.reader.find(&key)?;
                *lane = found.map(|f| f.lane());
                Ok(table.reader.copy(&key, buffer)?)
            }
        });
        self.key = key;
        result
    }

    /// Reads parts of the value through `read`, which is called again with the newer value if it changes meanwhile.
    #[inline]
    pub fn read<R>(
        &mut self,
        mut read: impl FnMut(&mut dyn FnMut(usize, &mut [u8]) -> Result<(), Error>, usize) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        let key = std::mem::take(&mut self.key);
        let result = self.resolved().and_then(|(table, lane)| {
            for _ in 0..podshm_layout::table::ATTEMPTS {
                let found = match lane {
                    Some(lane) => table.reader.find_in(lane, &key)?,
                    None => {
                        let found = table.reader.find(&key)?;
                        *lane = found.map(|f| f.lane());
                        found
                    }
                };
                let Some(found) = found else { return Ok(None) };
                let mut changed = false;
                let mut at = |offset: usize, dst: &mut [u8]| match table.reader.read(&found, offset, dst) {
                    Err(ReadError::Changed) => {
                        changed = true;
                        Err(Error::Read(ReadError::Changed))
                    }
                    other => Ok(other?),
                };
                let result = read(&mut at, found.value_len());
                if !changed {
                    return result.map(Some);
                }
            }
            Err(Error::Read(podshm_layout::table::Contended.into()))
        });
        self.key = key;
        result
    }

    #[inline]
    fn resolved(&mut self) -> Result<(&TableGeneration, &mut Option<Lane>), Error> {
        let shared = &self.table.client.shared;
        shared.check_fork()?;
        // Acquire: pairs with the release in the library thread's swap. The one cached word.
        let version = shared.version.load(Ordering::Acquire);
        if version != self.version || self.cached.is_none() {
            self.version = version;
            let table = self.table.generation()?;
            if self.cached.as_ref().is_none_or(|(old, _)| !Arc::ptr_eq(old, &table)) {
                self.cached = Some((table, None));
            }
        }
        let (table, lane) = self.cached.as_mut().ok_or(Error::AgentAway)?;
        Ok((table, lane))
    }
}

/// One value, at one moment.
#[derive(Clone, Debug)]
pub struct Guard {
    table: Arc<TableGeneration>,
    found: Found,
    shared: Arc<Shared>,
}

impl Guard {
    /// The value's length.
    pub fn value_len(&self) -> usize {
        self.found.value_len()
    }

    /// Copies a part of the value; `Contended` once the agent has replaced it.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> Result<(), Error> {
        self.shared.check_fork()?;
        Ok(self.table.reader.read(&self.found, offset, buffer)?)
    }
}

/// Several values at one version.
#[derive(Clone, Debug)]
pub struct TableSnapshot {
    table: Arc<TableGeneration>,
    version: u64,
    shared: Arc<Shared>,
}

impl TableSnapshot {
    /// Copies the value of `key` into `buffer`.
    pub fn get(&self, key: &[u8], buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        self.shared.check_fork()?;
        Ok(self.table.reader.copy(key, buffer)?)
    }

    /// The version that everything was read at; `None` if the table changed meanwhile: read again. In a forked child always `None`.
    pub fn finish(self) -> Option<u64> {
        self.check().ok()
    }

    /// [`TableSnapshot::finish`] for what was read so far; `Contended` if the table changed meanwhile.
    pub fn check(&self) -> Result<u64, Error> {
        self.shared.check_fork()?;
        podshm_layout::sync::fence(Ordering::Acquire);
        if self.version.is_multiple_of(2) && self.table.reader.version() == self.version {
            return Ok(self.version);
        }
        Err(Error::Read(ReadError::Changed))
    }
}
