//! The directory where a broker keeps its state, and that it has it for itself.

use crate::BrokerError;
use crate::ledger::Ledger;
use crate::upgrade::{ask_to_give_way, listen_for_successor};
use podshm_region::Memory;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a broker that runs may take to give way.
const PATIENCE: Duration = Duration::from_secs(15);

/// A broker's directory, for as long as it runs: the kernel lets the lock go when it dies.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the directory, from a broker that runs there if need be; with what that one has passed on.
    pub(crate) fn take(directory: &Path) -> Result<(Self, BTreeMap<u64, Memory>), BrokerError> {
        let fail = |source: io::Error| {
            let what = format!("using {} for the broker's state", directory.display());
            BrokerError::System { what, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fail)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join("lock"));
        let lock = lock.map_err(fail)?;
        let (mut passed, until) = (BTreeMap::new(), Instant::now() + PATIENCE);
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok((Place { directory: directory.to_owned(), _lock: lock }, passed)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    passed.extend(ask_to_give_way(directory));
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(BrokerError::Running { root: directory.to_owned() });
                }
                Err(e) => return Err(fail(e.into())),
            }
        }
    }

    /// See [`listen_for_successor`].
    pub(crate) fn door(&self) -> Result<OwnedFd, BrokerError> {
        listen_for_successor(&self.directory)
    }

    pub(crate) fn open_ledger(&self) -> Result<Ledger, BrokerError> {
        Ledger::open(&self.directory.join("ledger"))
    }
}
