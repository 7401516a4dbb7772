//! What the agent decides by, as files of one directory: `*.cedar` policies, at most one schema (`schema.cedarschema` or
//! `schema.json`), and `entities.json`. Subdirectories and other names are left alone, and so are names that begin with a dot, of which a mounted
//! ConfigMap has some.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// Most bytes that all files may have together.
pub const MOST_BYTES: u64 = 16 << 20;
/// A schema in Cedar's own words.
pub const SCHEMA: &str = "schema.cedarschema";
/// A schema in JSON.
pub const SCHEMA_JSON: &str = "schema.json";
/// Entities in JSON.
pub const ENTITIES: &str = "entities.json";

/// Why a directory can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It, or a file in it.
    #[error("policies in {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Too much of it.
    #[error("policies in {path}: expected at most {MOST_BYTES} bytes in all, found {found} or more; split the domain")]
    TooLarge {
        /// The directory.
        path: PathBuf,
        /// How much was seen.
        found: u64,
    },
    /// A last good copy that is none.
    #[error("last good policies in {path}: {source}; remove the file")]
    Copy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The files, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bundle {
    /// Their text.
    pub files: BTreeMap<String, String>,
}

impl Bundle {
    /// Reads what of `directory` counts.
    pub fn read(directory: &Path) -> Result<Self, BundleError> {
        let fault = |path: &Path| {
            let path = path.to_path_buf();
            move |source| BundleError::Read { path, source }
        };
        let (mut files, mut found) = (BTreeMap::new(), 0);
        for entry in std::fs::read_dir(directory).map_err(fault(directory))? {
            let entry = entry.map_err(fault(directory))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            // Follows links: a ConfigMap's files are some.
            if !counts(&name) || !std::fs::metadata(&path).map_err(fault(&path))?.is_file() {
                continue;
            }
            found += std::fs::metadata(&path).map_err(fault(&path))?.len();
            if found > MOST_BYTES {
                return Err(BundleError::TooLarge { path: directory.to_path_buf(), found });
            }
            files.insert(name, std::fs::read_to_string(&path).map_err(fault(&path))?);
        }
        Ok(Self { files })
    }

    /// A copy that [`Bundle::write_copy`] wrote.
    pub fn read_copy(path: &Path) -> Result<Self, BundleError> {
        let fault = |source| BundleError::Read { path: path.to_path_buf(), source };
        let text = std::fs::read(path).map_err(fault)?;
        serde_json::from_slice(&text).map_err(|source| BundleError::Copy { path: path.to_path_buf(), source })
    }

    /// Writes it all to one file, which is the old one or the new one at any moment.
    pub fn write_copy(&self, path: &Path) -> io::Result<()> {
        replace(path, &serde_json::to_vec(self)?)
    }

    /// The same for the same names and texts, and for nothing else that anybody comes across.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        for part in self.files.iter().flat_map(|(name, text)| [name, text]) {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.digest()
    }
}

fn counts(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".cedar") || [SCHEMA, SCHEMA_JSON, ENTITIES].contains(&name))
}

/// Writes `path` by a rename, so that nobody reads half of it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut other = path.as_os_str().to_owned();
    other.push(format!(".{}.new", std::process::id()));
    let other = PathBuf::from(other);
    std::fs::write(&other, bytes)?;
    std::fs::rename(&other, path)
}
