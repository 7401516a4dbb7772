//! `podshmd`, the node daemon: a CSI driver for inline ephemeral volumes around the broker.
//!
//! ```text
//!  kubelet ── csi.sock ──► services.rs ──► request.rs (what is asked, checked)
//!     │                        │
//!     │                        ▼
//!     │                    volumes.rs ──► domains.rs   which domains there are, who may do what  ◄── watch.rs ◄── API server
//!     │                        │     ◄── ended.rs      pods that ended while no daemon was here       ◄── API server
//!     │                        │     ──► memory.rs     which budgets fit into the daemon's own limit
//!     │                        │     ──► broker        a socket for each pod
//!     │                        │     ──► unmodified    the domain's /dev/shm, and System V memory (sysv.rs)
//!     │                        │     ◄─► nri           the container runtime asks about containers (sysv native)
//!     │                        ▼
//!     │                    helper.rs  ──► mounts.rs, in a process of its own: KUBELET_DIR/pods/UID/volumes/…/mount
//!     ├─ podshm.dev@reg.sock ◄── sockets.rs, run.rs
//!     └─ probes, Prometheus, podshm-controller ──► port.rs ──► metrics.rs, report.rs
//! ```
//! What a volume is made of lies on the node, below ROOT, and is written down there before the pod can see it: a daemon that is
//! killed between publish and unpublish is followed by one that goes on.
#![forbid(unsafe_code)]

pub mod domains;
pub mod ended;
pub mod helper;
pub mod memory;
pub mod messages;
pub mod metrics;
pub mod mounts;
pub mod nri;
pub mod port;
pub mod report;
pub mod request;
pub mod run;
pub mod services;
pub mod sockets;
pub mod sweep;
pub mod sysv;
pub mod volumes;
pub mod watch;

pub use podshm_api::DRIVER;
