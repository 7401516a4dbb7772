//! EndpointSlices (`discovery.k8s.io/v1`), parsed once into what the agent needs.
//!
//! Tolerant where the API says so, strict elsewhere. What is missing or null means:
//!
//! | field | missing |
//! |---|---|
//! | `conditions.ready` | true |
//! | `conditions.serving` | as `ready` |
//! | `conditions.terminating` | false |
//! | `endpoints`, `ports`, `labels`, `hints` | none |
//! | a port's `name` | unnamed; the route goes by the port's number |
//! | a port's `port` | "all ports": there is no number to route to, so the port is skipped |
//! | a port's `protocol` | TCP |
//!
//! An endpoint's first address counts; the API gives the others no meaning. A slice is taken whole or not at all: one
//! bad address makes it an error that names the slice, and the others go on.

mod check;
mod raw;
pub mod read;

use std::{fmt, sync::Arc};

use route_client::wire::{Address, Protocol};

pub use read::{List, WatchEvent, WatchLines, parse_event, parse_list, parse_value};

/// The label that says which service a slice belongs to.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The version of the API that is understood.
pub const API_VERSION: &str = "discovery.k8s.io/v1";
/// The API's own limit on endpoints in a slice.
pub const MAX_ENDPOINTS: usize = 1000;
/// The API's own limit on ports in a slice (100 before Kubernetes 1.21).
pub const MAX_PORTS: usize = 20_000;
/// Each port of a slice makes a route to each of its endpoints, so a slice within both limits above could still become 20 million
/// entries out of half a megabyte. This is 2,000 ports of the 100 endpoints that the controller puts into a slice, 50 MB or so.
pub const MAX_PORTS_TIMES_ENDPOINTS: usize = 200_000;
/// The API's own limit on zones that a hint names, and room beyond.
pub const MAX_HINTS: usize = 64;

/// Which slice: namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A slice, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Which slice it is.
    pub name: SliceName,
    /// The service that it belongs to; none for slices that people made for something else.
    pub service: Option<Arc<str>>,
    /// The version of this object, or 0 if it has none. Comparable as numbers, as client-go has come to do too.
    pub resource_version: u64,
    /// Its ports, without those that have no number.
    pub ports: Vec<Port>,
    /// How many ports had no number.
    pub ports_skipped: usize,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of all endpoints in a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its first address.
    pub address: Address,
    /// It takes new work.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is going away.
    pub terminating: bool,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// The zones that should use it.
    pub hints: Vec<Arc<str>>,
}

/// Why an input can't be used. The names are cut to what is printable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// The JSON is broken or of another shape.
    #[error("{what}: expected {expected}, found {found}; skipped, look at what wrote it")]
    Json {
        /// What was read: a slice's name, or a place in the input.
        what: String,
        /// The slice, where its name could be made out.
        name: Option<SliceName>,
        /// What should be there.
        expected: &'static str,
        /// What the parser says of it.
        found: String,
    },
    /// A field has a value that it can't have.
    #[error("slice {name}: expected {field} to be {expected}, found {found}; skipped, {action}")]
    Field {
        /// Which slice.
        name: SliceName,
        /// Which field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is, cut to 80 characters.
        found: String,
        /// What to do.
        action: &'static str,
    },
    /// One object is bigger than anything an API server would store.
    #[error("{what}: expected at most {limit} bytes in one object, found more; skipped, look at what wrote it")]
    TooLong {
        /// Where.
        what: String,
        /// The bound in bytes.
        limit: usize,
    },
    /// The input itself failed.
    #[error("reading {what}: expected more input, found: {found}; the agent goes on with what it has")]
    Input {
        /// What was read.
        what: String,
        /// The system's error.
        found: String,
    },
}

impl SliceError {
    /// The slice that is at fault, where its name could be made out. Its last good version stays in use.
    pub fn name(&self) -> Option<&SliceName> {
        match self {
            SliceError::Json { name, .. } => name.as_ref(),
            SliceError::Field { name, .. } => Some(name),
            SliceError::TooLong { .. } | SliceError::Input { .. } => None,
        }
    }
}

/// Foreign text in an error stays short.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
