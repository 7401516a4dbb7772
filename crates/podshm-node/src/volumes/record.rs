//! A volume in writing: what the next daemon finds it again by.

use crate::domains::DomainSpec;
use crate::mounts::PodVolume;
use crate::request::Wanted;
use podshm_domain::{Identity, Role};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A volume as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) volume: String,
    pub(super) target: PathBuf,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    pub(super) service_account: String,
    pub(super) domain: String,
    pub(super) agent: bool,
    /// As it was then: the domain may be gone from the cluster when the next daemon looks.
    pub(super) spec: DomainSpec,
}

impl Record {
    pub(super) fn of(wanted: &Wanted, spec: DomainSpec) -> Self {
        Record {
            volume: wanted.volume.as_str().to_owned(),
            target: wanted.target.path().to_owned(),
            namespace: wanted.who.namespace.clone(),
            pod: wanted.who.pod.clone(),
            uid: wanted.who.uid.clone(),
            service_account: wanted.who.service_account.clone(),
            domain: wanted.domain.clone(),
            agent: wanted.role == Role::Agent,
            spec,
        }
    }

    pub(super) fn who(&self) -> Identity {
        Identity {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Where it is mounted.
    pub(super) fn at(&self) -> Option<PodVolume> {
        PodVolume::of(&self.target)
    }

    /// Whether it is for the same pod, domain, role and path.
    pub(super) fn is_of(&self, wanted: &Wanted) -> bool {
        *self == Record::of(wanted, self.spec.clone())
    }
}
