//! Domains for unmodified programs: System V and POSIX shared memory of a chosen set of pods, without hostIPC and without the
//! host's /dev/shm. Mutual trust: members can corrupt each other, as before; nobody outside sees them.
//!
//! ```text
//!  place.rs     where a domain is on the node: two tmpfs, the library, a pinned IPC namespace
//!  segments.rs  System V's rules (with ids.rs, permissions.rs): pure
//!  store.rs     segments as files, who has them attached by locks (with record.rs)
//!  posix.rs     shm_open, and ftruncate that allocates; alert.rs when it is nearly full,
//!               reaper.rs what nobody comes back to
//!  answer.rs    one request, one answer (with peer.rs, shmid_ds.rs)
//!  server.rs    the event loop; turn.rs one daemon at a time; runs.rs members of `podshm run`; control.rs what `podshm run`, `ls` and `rm` ask;
//!               events.rs what somebody should hear of
//! ```
//! The memory outlives this process: files on a tmpfs, and locks that the mappings keep. A restarted daemon reads both.
#![forbid(unsafe_code)]

pub mod alert;
pub mod answer;
pub mod control;
pub mod events;
pub mod ids;
pub mod native;
pub mod peer;
pub mod permissions;
pub mod place;
pub mod posix;
pub mod probe;
pub mod reaper;
pub mod record;
pub mod runs;
pub mod segments;
pub mod server;
pub mod shmid_ds;
pub mod store;
pub mod turn;

pub use place::{Config, Mode, Place, PlaceError};
pub use segments::Limits;
pub use server::Server;
