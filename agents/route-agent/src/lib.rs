//! A node agent that serves routes from EndpointSlices.
//!
//! ```text
//! Source ─ slices, events ─▶ Store ─ changed route values ─▶ table ─▶ business pods
//!                              ▲                                          │
//!                              └─ weights ─ Health ◀─ reports ◀─ queue ◀──┘
//! ```
//! [`serve`] ties it to a podshm domain. With the feature `kubernetes` a source watches an API server, and `probes` answers the
//! kubelet. All else is pure: no shared memory, no clock (time is a parameter, in monotonic nanoseconds), and no I/O but the files that a
//! [`FileSource`] reads and a [`delivered`] log. Whatever the input is, the answer is a route or an error that names the slice, and nothing
//! else is affected.
#![forbid(unsafe_code)]

pub mod delivered;
pub mod health;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "kubernetes")]
pub mod probes;
pub mod serve;
pub mod slices;
pub mod source;
pub mod store;

pub use health::{EndpointHealth, Health, HealthConfig, HealthCounts, SnapshotError};
#[cfg(feature = "kubernetes")]
pub use kubernetes::{KubernetesError, KubernetesSource};
#[cfg(feature = "kubernetes")]
pub use probes::{Phase, Probes};
pub use serve::{Config, ServeError, Server, Stats, Step};
pub use slices::{Slice, SliceError, SliceName, WatchEvent};
pub use source::{FileSource, Pace, Source, SourceEvent};
pub use store::{Change, Changes, FullWeights, Member, Store, Weights};
