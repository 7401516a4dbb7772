//! The directory where a broker keeps its state, and that it has it for itself.

use crate::BrokerError;
use crate::ledger::Ledger;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A broker's directory, for as long as it runs: the kernel lets the lock go when it dies.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    _lock: File,
}

impl Place {
    pub(crate) fn take(directory: &Path) -> Result<Self, BrokerError> {
        let fail = |source: io::Error| {
            let what = format!("using {} for the broker's state", directory.display());
            BrokerError::System { what, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fail)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join("lock"));
        let lock = lock.map_err(fail)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Place { directory: directory.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(BrokerError::Running { root: directory.to_owned() }),
            Err(e) => Err(fail(e.into())),
        }
    }

    pub(crate) fn open_ledger(&self) -> Result<Ledger, BrokerError> {
        Ledger::open(&self.directory.join("ledger"))
    }
}
