//! Pods out of namespaces and fault injection for tests and for the demo.
//!
//! ```text
//!  harness ──spawns──▶ podshm-pod (supervisor, host namespaces, owns the cgroup)
//!     │  control socket    ├─▶ init     pid 1 of the pod: made every namespace and mount
//!     │                    └─▶ payload  your program: uid 20001, no capabilities, in the cgroup
//!     └──Pod::exec──▶ podshm-pod (waiter) ─▶ a second payload in the same namespaces
//! ```
//!
//! No mocks: a [`Pod`] has its own mount, pid, ipc, uts and net namespaces, its own `/dev/shm`, `/proc`, `/tmp`, host
//! name and memory cgroup, and of the host's run tree it sees its own socket directory only, at [`SOCKET_DIR`].
//! Dropping it, or killing the harness with -9, leaves nothing behind.
//!
//! The crate depends on no other podshm crate.

#![deny(unsafe_code)]

pub mod cgroup;
pub mod fault;
pub mod numbered;
mod pod;
mod process;
#[doc(hidden)]
pub mod sandbox;
mod spec;

pub use cgroup::Memory;
pub use pod::{Pod, PodBuilder};
pub use process::{Lines, PodError, PodProcess, Stderr, Stdout};
pub use spec::Isolation;

/// Where a pod finds its own socket directory (with [`Isolation::None`]: see [`SOCKET_DIR_ENV`]).
pub const SOCKET_DIR: &str = "/run/podshm";

/// Set in every pod that was given a socket directory: the path at which *this process* finds it. It is [`SOCKET_DIR`]
/// in a sandbox and the host's path with [`Isolation::None`].
pub const SOCKET_DIR_ENV: &str = "PODSHM_SOCKET_DIR";

/// Path of the `podshm-pod` helper, for harnesses that don't live in cargo's target directory.
pub const HELPER_ENV: &str = "PODSHM_POD_HELPER";

/// Forces an isolation: `root`, `user` or `none`. Without it the strongest that works is taken.
pub const ISOLATION_ENV: &str = "PODSHM_POD_ISOLATION";
