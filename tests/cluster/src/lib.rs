//! A real Kubernetes cluster on one machine, and what tests need of one.
//!
//! ```text
//!  host ── veth ──┐   podshm-cluster up | down | kubectl
//!  ┌──────────────▼───────────────┐
//!  │ control: a set of namespaces │  etcd, API server (:443), controller manager, scheduler
//!  │   bridge 198.18.1.1/24       │
//!  └───┬──────────────────────┬───┘
//!  ┌───▼────────────┐  ┌──────▼─────────┐
//!  │ node a         │  │ node b         │  mount, net, pid, ipc, uts namespaces each:
//!  │ containerd     │  │ containerd     │  own /proc, /run, /dev/shm, /var/lib/kubelet
//!  │ kubelet        │  │ kubelet        │
//!  └────────────────┘  └────────────────┘
//! ```
//! The first process of each set ([`supervise`]) is its pid 1: when that is killed, the kernel ends everything in it, mounts and
//! interfaces included. What else there is, cgroups and one directory, [`down`] removes.
#![forbid(unsafe_code)]

pub mod cgroups;
pub mod control;
pub mod down;
pub mod images;
pub mod loads;
pub mod machine;
pub mod network;
pub mod node;
pub mod pki;
pub mod place;
pub mod programs;
pub mod rollouts;
pub mod scene;
pub mod supervise;
pub mod testing;
pub mod up;
