//! What can be in a volume's way.

use crate::domains::DomainError;
use crate::memory::OverLimit;
use crate::mounts::MountError;
use podshm_broker::BrokerError;
use podshm_domain::NotAllowed;
use podshm_unmodified::PlaceError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a volume could not be published or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// There is no such domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The domain is not for this pod.
    #[error("domain {domain}: {source}")]
    NotAllowed {
        /// The domain.
        domain: String,
        /// Which rule.
        source: NotAllowed,
    },
    /// There, but otherwise.
    #[error(
        "volume {volume} is published already, for {found} at {at}; expected the same pod, domain, role and path as then"
    )]
    Otherwise {
        /// Its name.
        volume: String,
        /// Whose it is.
        found: String,
        /// Where it is.
        at: PathBuf,
    },
    /// There is no room for the domain.
    #[error("domain {domain}: {source}")]
    OverLimit {
        /// The domain.
        domain: String,
        /// By how much, and what to change.
        source: OverLimit,
    },
    /// More System V memory than the daemon may pay for.
    #[error("domain {domain}, mode sysv (budget is sysv.shmall and shmSize here): {source}")]
    SysvOverLimit {
        /// The domain.
        domain: String,
        /// By how much, and what to change.
        source: OverLimit,
    },
    /// Nobody would have a container join the domain's IPC namespace.
    #[error(
        "domain {domain}: sysv.mechanism is native, and {why}: a container that started now would silently have System V memory of its \
         own; once the runtime calls podshmd the pod goes on by itself. Or have sysv.mechanism: preload"
    )]
    NoRuntime {
        /// The domain.
        domain: String,
        /// What is in the way.
        why: String,
    },
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Mounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The domain's /dev/shm.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The file system.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// The answer.
        source: io::Error,
    },
}

impl VolumeError {
    /// Which rule, in a word, where it is the pod or the domain that is in the way.
    pub fn rule(&self) -> Option<&'static str> {
        match self {
            VolumeError::Domain(_) => Some("domain"),
            VolumeError::NotAllowed { source, .. } => Some(source.list),
            VolumeError::Otherwise { .. } => Some("published_otherwise"),
            VolumeError::OverLimit { .. } | VolumeError::SysvOverLimit { .. } => Some("over_limit"),
            VolumeError::NoRuntime { .. } => Some("no_runtime"),
            _ => None,
        }
    }
}

pub(super) fn doing<T>(what: &str, path: &Path, result: io::Result<T>) -> Result<T, VolumeError> {
    result.map_err(|source| VolumeError::System { what: format!("{what} {}", path.display()), source })
}
