//! The domains that there are: one JSON file each, named as the domain, in one directory (a ConfigMap's, say).

use crate::request::is_label;
use podshm_broker::{DomainConfig, Limits};
use podshm_domain::{Party, Policy};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What members of a domain share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Tables, queues and calls, through the library.
    Channel,
    /// /dev/shm.
    Posix,
    /// System V memory.
    Sysv,
}

/// How System V calls reach a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// By the preload library, which the domain's volumes have.
    #[default]
    Preload,
    /// By the kernel, in an IPC namespace of the domain that the container runtime joins (NRI).
    Native,
}

/// A domain's System V memory on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SysvSpec {
    /// How calls reach it.
    pub mechanism: Mechanism,
    /// The largest segment.
    pub shmmax: Bytes,
    /// All segments together; in bytes here, where the kernel counts pages.
    pub shmall: Bytes,
    /// How many segments.
    pub shmmni: u32,
}

impl Default for SysvSpec {
    /// 256 MiB, all of it in one segment or in 4,096.
    fn default() -> Self {
        SysvSpec { mechanism: Mechanism::default(), shmmax: budget(), shmall: budget(), shmmni: 4096 }
    }
}

/// A size as Kubernetes writes it: `256Mi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

/// Pods of a namespace; of some service accounts of it, or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartySpec {
    namespace: String,
    #[serde(default)]
    service_accounts: Vec<String>,
}

/// A domain, as the platform's engineers describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DomainSpec {
    /// What its members share.
    pub modes: BTreeSet<Mode>,
    /// All regions of the domain on a node, the agent's successor included.
    #[serde(default = "budget")]
    pub budget: Bytes,
    /// One pod's part of it.
    #[serde(default = "per_pod")]
    pub per_pod: Bytes,
    /// Size of /dev/shm.
    #[serde(default = "budget", deserialize_with = "bounded")]
    pub shm_size: Bytes,
    /// Mode sysv.
    #[serde(default)]
    pub sysv: SysvSpec,
    /// Who may serve it.
    #[serde(default)]
    serve: Vec<PartySpec>,
    /// Who may join it.
    #[serde(default)]
    join: Vec<PartySpec>,
}

fn budget() -> Bytes {
    Bytes(256 << 20)
}

fn per_pod() -> Bytes {
    Bytes(64 << 20)
}

/// A tmpfs of size 0 has no limit at all.
fn bounded<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
    match Bytes::deserialize(from)? {
        Bytes(0) => Err(D::Error::custom("shmSize is 0; expected a size, as in \"256Mi\", or no mode posix")),
        size => Ok(size),
    }
}

impl DomainSpec {
    /// For the broker.
    pub fn config(&self, name: &str) -> DomainConfig {
        let limits = Limits { budget: self.budget.0, member_share: self.per_pod.0, ..Limits::default() };
        DomainConfig { limits, ..DomainConfig::new(name) }
    }

    /// What of its System V memory may be charged to the daemon on a node, at most; and, by programs with the library, of its /dev/shm.
    pub fn charged_by_preload(&self) -> u64 {
        match self.sysv.mechanism {
            Mechanism::Preload => self.sysv.shmall.0.saturating_add(self.shm_size.0),
            Mechanism::Native => 0,
        }
    }

    /// Who may do what.
    pub fn policy(&self) -> Policy {
        let party = |spec: &PartySpec| Party {
            namespace: spec.namespace.clone(),
            service_accounts: spec.service_accounts.clone(),
        };
        Policy { serve: self.serve.iter().map(party).collect(), join: self.join.iter().map(party).collect() }
    }
}

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// No file of that name.
    #[error(
        "no domain {name:?} here; correct the name in volumeAttributes.domain, or have the platform's engineers add the domain"
    )]
    Absent {
        /// The name.
        name: String,
    },
    /// Its file is not as it should be.
    #[error("domain {name:?} is not described as it should be: {source}")]
    Malformed {
        /// The name.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Its file can't be read.
    #[error("domain {name:?}: {source}")]
    Unreadable {
        /// The name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// The directory. Read anew each time: a ConfigMap changes under it.
#[derive(Clone, Debug)]
pub struct Domains(PathBuf);

impl Domains {
    /// In a directory.
    pub fn at(directory: &Path) -> Self {
        Domains(directory.to_owned())
    }

    /// One of them.
    pub fn find(&self, name: &str) -> Result<DomainSpec, DomainError> {
        let text = if is_label(name) { fs::read(self.0.join(name)) } else { Err(io::ErrorKind::NotFound.into()) };
        let text = text.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DomainError::Absent { name: name.to_owned() },
            _ => DomainError::Unreadable { name: name.to_owned(), source },
        })?;
        serde_json::from_slice(&text).map_err(|source| DomainError::Malformed { name: name.to_owned(), source })
    }

    /// All of them, those that can't be read left out, each with the reason in the log.
    pub fn all(&self) -> BTreeMap<String, DomainSpec> {
        let names = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_label(name));
        names
            .filter_map(|name| match self.find(&name) {
                Ok(spec) => Some((name, spec)),
                Err(error) => {
                    tracing::error!(%error, "a domain is left out");
                    None
                }
            })
            .collect()
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad =
            || format!("size {text:?}: expected a whole number of bytes, or one with Ki, Mi or Gi, as in \"256Mi\"");
        let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
        let unit = units.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (number, shift) = unit.unwrap_or((&text, 0));
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(bad)
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
        let fits = units.into_iter().find(|(_, shift)| bytes.0 != 0 && bytes.0.is_multiple_of(1 << shift));
        fits.map_or_else(|| bytes.0.to_string(), |(unit, shift)| format!("{}{unit}", bytes.0 >> shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_kubernetes_own() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("3Ki", 3 << 10), ("256Mi", 256 << 20), ("2Gi", 2 << 30)] {
            assert_eq!(Bytes::try_from(text.to_owned()), Ok(Bytes(bytes)));
        }
        assert_eq!(String::from(Bytes(256 << 20)), "256Mi");
        for text in ["", "-1", "1.5Gi", "1 Mi", "99999999999Gi", "1MB", "Mi"] {
            assert!(Bytes::try_from(text.to_owned()).unwrap_err().contains("256Mi"), "{text}");
        }
    }

    #[test]
    fn a_field_that_nobody_knows_is_an_error_and_a_name_is_no_path() {
        let directory = std::env::temp_dir().join(format!("podshm-domains-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("routing"), r#"{"modes": ["channel"], "join": [{"namespace": "shop"}]}"#).unwrap();
        fs::write(directory.join("odd"), r#"{"modes": ["channel"], "bugdet": "1Gi"}"#).unwrap();
        fs::write(directory.join("endless"), r#"{"modes": ["posix"], "shmSize": "0"}"#).unwrap();
        let domains = Domains::at(&directory);
        assert!(domains.find("endless").unwrap_err().to_string().contains("shmSize"));
        assert_eq!(domains.find("routing").unwrap().budget, Bytes(256 << 20));
        assert!(domains.find("odd").unwrap_err().to_string().contains("bugdet"));
        for absent in ["other", "../routing", ".", ""] {
            assert!(matches!(domains.find(absent), Err(DomainError::Absent { .. })), "{absent}");
        }
        assert_eq!(domains.all().into_keys().collect::<Vec<_>>(), ["routing"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
