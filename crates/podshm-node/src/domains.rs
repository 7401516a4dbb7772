//! The domains that there are: the cluster's ShmDomains, as the API server last told them (`watch.rs`), or one JSON file each in a
//! directory, where there is no cluster.
//!
//! ```text
//!  API server ──► watch.rs ──► Known ──► ROOT/.domains.json     what the next daemon begins with
//!                               │
//!  a directory ─────────────────┴──► find, all
//! ```

pub use podshm_api::{Bytes, DomainSpec, Mode, PartySpec};

use crate::request::is_label;
use podshm_broker::DomainConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

/// Why there is no such domain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// Nobody has described it.
    #[error(
        "no domain {name:?} here; correct the name in volumeAttributes.domain (kubectl get shmdomains), or have the platform's engineers add the domain"
    )]
    Absent {
        /// The name.
        name: String,
    },
    /// The cluster may well have it.
    #[error(
        "domain {name:?}: this node has not heard yet which domains there are; it asks the API server for its ShmDomains, and the volume is tried again"
    )]
    Unheard {
        /// The name.
        name: String,
    },
    /// It is not as it should be.
    #[error("domain {name:?} is not described as it should be: {source}")]
    Malformed {
        /// The name.
        name: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Something that nobody knows.
    #[error("domain {name:?} has the unknown field {field}; see podshmd's docs/kubernetes.md for those that there are")]
    Unknown {
        /// The name.
        name: String,
        /// The field.
        field: String,
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

/// A ShmDomain as the API server has told it. Not parsed before somebody asks: one that is odd is no reason to forget the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec`.
    pub spec: Value,
}

/// By name.
pub type AllTold = BTreeMap<String, Told>;

/// The domains. Each time anew: they change meanwhile.
#[derive(Clone, Debug)]
pub struct Domains(Source);

#[derive(Clone, Debug)]
enum Source {
    Directory(PathBuf),
    Cluster(Arc<Known>),
}

/// What the API server has told, and keeps being told.
#[derive(Debug)]
pub struct Known {
    file: PathBuf,
    /// None before anything was heard, by this daemon or one before it.
    told: Mutex<Option<AllTold>>,
}

impl Known {
    /// What a daemon before this one has heard.
    pub fn on_node(root: &Path) -> io::Result<Arc<Self>> {
        let file = root.join(".domains.json");
        let told = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .inspect_err(|error| tracing::error!(%error, "what was kept of the domains can't be read; asking anew"))
                .ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Known { file, told: Mutex::new(told) }))
    }

    /// All of them, in place of what was known.
    pub fn replace(&self, all: AllTold) {
        let mut told = self.lock();
        if told.as_ref() != Some(&all) {
            self.keep(&all);
            *told = Some(all);
        }
    }

    /// One that is new, or another than it was; or that is gone. Nothing before all were heard.
    pub fn change(&self, name: &str, to: Option<Told>) {
        let mut told = self.lock();
        let Some(all) = told.as_mut().filter(|all| all.get(name) != to.as_ref()) else { return };
        match to {
            Some(to) => drop(all.insert(name.to_owned(), to)),
            None => drop(all.remove(name)),
        }
        self.keep(all);
    }

    fn lock(&self) -> MutexGuard<'_, Option<AllTold>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a daemon that begins while the API server is away.
    fn keep(&self, all: &AllTold) {
        let next = self.file.with_extension("json.next");
        let write = || fs::write(&next, serde_json::to_vec(all)?).and_then(|()| fs::rename(&next, &self.file));
        if let Err(error) = write() {
            tracing::error!(%error, file = %self.file.display(), "domains are not kept for the next daemon");
        }
    }
}

impl Domains {
    /// In a directory.
    pub fn at(directory: &Path) -> Self {
        Domains(Source::Directory(directory.to_owned()))
    }

    /// Of the cluster.
    pub fn of_cluster(known: &Arc<Known>) -> Self {
        Domains(Source::Cluster(Arc::clone(known)))
    }

    /// One of them.
    pub fn find(&self, name: &str) -> Result<DomainSpec, DomainError> {
        let absent = || DomainError::Absent { name: name.to_owned() };
        if !is_label(name) {
            return Err(absent());
        }
        match &self.0 {
            Source::Directory(directory) => in_file(name, &directory.join(name)),
            Source::Cluster(known) => {
                let told = known.lock();
                let all = told.as_ref().ok_or_else(|| DomainError::Unheard { name: name.to_owned() })?;
                parsed(name, all.get(name).ok_or_else(absent)?.spec.clone())
            }
        }
    }

    /// Which generation of its ShmDomain that is; 0 where it has none.
    pub fn generation(&self, name: &str) -> i64 {
        match &self.0 {
            Source::Directory(_) => 0,
            Source::Cluster(known) => {
                known.lock().as_ref().and_then(|all| all.get(name)).map_or(0, |told| told.generation)
            }
        }
    }

    /// All of them, those that can't be read left out, each with the reason in the log.
    pub fn all(&self) -> BTreeMap<String, DomainSpec> {
        let names: Vec<String> = match &self.0 {
            Source::Directory(directory) => {
                let entries = fs::read_dir(directory).into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
            Source::Cluster(known) => known.lock().iter().flat_map(BTreeMap::keys).cloned().collect(),
        };
        let find = |name: String| match self.find(&name) {
            Ok(spec) => Some((name, spec)),
            Err(error) => {
                tracing::error!(%error, "a domain is left out");
                None
            }
        };
        names.into_iter().filter(|name| is_label(name)).filter_map(find).collect()
    }
}

/// For the broker.
pub fn config(name: &str, spec: &DomainSpec) -> DomainConfig {
    DomainConfig { limits: spec.limits(), ..DomainConfig::new(name) }
}

fn in_file(name: &str, file: &Path) -> Result<DomainSpec, DomainError> {
    let text = fs::read(file).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DomainError::Absent { name: name.to_owned() },
        _ => DomainError::Unreadable { name: name.to_owned(), source },
    })?;
    let spec: Value =
        serde_json::from_slice(&text).map_err(|source| DomainError::Malformed { name: name.to_owned(), source })?;
    // In a cluster the API server does this.
    let crd = podshm_api::crd::crd("shmdomains").unwrap_or_default();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    match unknown(&spec, schema) {
        Some(field) => Err(DomainError::Unknown { name: name.to_owned(), field }),
        None => parsed(name, spec),
    }
}

/// Fields that this daemon does not know are a newer definition's: the API server has let them pass.
fn parsed(name: &str, spec: Value) -> Result<DomainSpec, DomainError> {
    serde_json::from_value(spec).map_err(|source| DomainError::Malformed { name: name.to_owned(), source })
}

/// The first field that a schema does not have.
fn unknown(value: &Value, schema: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| match &schema["properties"][name] {
            Value::Null => Some(name.clone()),
            schema => unknown(value, schema).map(|field| format!("{name}.{field}")),
        }),
        Value::Array(items) => items.iter().find_map(|item| unknown(item, &schema["items"])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("podshm-domains-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_field_that_nobody_knows_is_an_error_and_a_name_is_no_path() {
        let directory = directory("files");
        fs::write(directory.join("routing"), r#"{"modes": ["channel"], "join": [{"namespace": "shop"}]}"#).unwrap();
        fs::write(directory.join("odd"), r#"{"modes": ["channel"], "bugdet": "1Gi"}"#).unwrap();
        fs::write(directory.join("deep"), r#"{"modes": ["channel"], "join": [{"namespaces": "shop"}]}"#).unwrap();
        fs::write(directory.join("endless"), r#"{"modes": ["posix"], "shmSize": "0"}"#).unwrap();
        let domains = Domains::at(&directory);
        assert!(domains.find("endless").unwrap_err().to_string().contains("not 0"));
        assert_eq!(domains.find("routing").unwrap().budget, Bytes(64 << 20));
        assert!(domains.find("odd").unwrap_err().to_string().contains("field bugdet"));
        assert!(domains.find("deep").unwrap_err().to_string().contains("field join.namespaces"));
        for absent in ["other", "../routing", ".", ""] {
            assert!(matches!(domains.find(absent), Err(DomainError::Absent { .. })), "{absent}");
        }
        assert_eq!(domains.all().into_keys().collect::<Vec<_>>(), ["routing"]);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_the_api_server_last_told_is_what_the_next_daemon_begins_with() {
        let root = directory("kept");
        let told = |generation, spec| Told { generation, spec };
        let known = Known::on_node(&root).unwrap();
        let domains = Domains::of_cluster(&known);
        assert!(
            matches!(domains.find("routing"), Err(DomainError::Unheard { .. })),
            "nobody knows whether there is one"
        );
        known.change("early", Some(told(1, json!({"modes": ["channel"]}))));
        assert!(matches!(domains.find("early"), Err(DomainError::Unheard { .. })), "one is not all");
        let routing = told(3, json!({"modes": ["channel"], "join": [{"namespace": "shop"}], "later": true}));
        known.replace(
            [("routing".to_owned(), routing), ("odd".to_owned(), told(1, json!({"modes": ["later"]})))].into(),
        );
        assert_eq!(domains.generation("routing"), 3);
        assert!(matches!(domains.find("odd"), Err(DomainError::Malformed { .. })));
        assert!(matches!(domains.find("other"), Err(DomainError::Absent { .. })));
        known.change("routing", Some(told(4, json!({"modes": ["channel"]}))));
        known.change("audit", Some(told(1, json!({"modes": ["channel"]}))));
        known.change("odd", None);

        let next = Domains::of_cluster(&Known::on_node(&root).unwrap());
        assert_eq!(next.all().into_keys().collect::<Vec<_>>(), ["audit", "routing"]);
        assert_eq!((next.generation("routing"), next.find("routing").unwrap().join.len()), (4, 0));
        fs::write(root.join(".domains.json"), "half").unwrap();
        assert!(matches!(
            Domains::of_cluster(&Known::on_node(&root).unwrap()).find("routing"),
            Err(DomainError::Unheard { .. })
        ));
        fs::remove_dir_all(&root).unwrap();
    }
}
