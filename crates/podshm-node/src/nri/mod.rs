//! Mode `sysv` by the kernel: the container runtime has the containers of a domain's pods join the domain's IPC namespace. It asks us before
//! it makes a container (NRI), and we know the pod by the volume that the kubelet has had published for it before that.
//!
//! ```text
//!  kubelet ── publish ──► Volumes ── add(pod's UID, domain) ──► Native ◄── is it one of them? ── plugin.rs ◄── CreateContainer ── runtime
//!                            │                                     │
//!                            └── why_not(): publish refuses ───────┘       ROOT/domains/NAME/ipc    instead of the pod's IPC namespace
//!                                                                          ROOT/domains/NAME/shm    instead of its /dev/shm (mode posix)
//! ```

pub mod messages;
mod plugin;
pub mod relay;
pub mod wire;

pub use plugin::Plugin;

use messages::{Adjustment, LinuxAdjustment, Mount, Namespace, SynchronizeRequest};
use podshm_unmodified::Place;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A container that has ended, in NRI's numbers.
const STOPPED: i32 = 4;

/// What a pod's containers get.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Joins {
    domain: String,
    pod: String,
    ipc: String,
    shm: Option<String>,
}

#[derive(Debug)]
struct State {
    pods: BTreeMap<String, Joins>,
    /// What is in the way of being asked; None where the runtime asks us.
    in_the_way: Option<String>,
    is_wanted: bool,
    /// Domains, and containers that run without that one's namespace.
    private: Vec<(String, String)>,
}

/// The pods of domains in native mode, and whether the runtime asks about them. Held for moments only: the runtime waits.
#[derive(Debug)]
pub struct Native(Mutex<State>);

impl Default for Native {
    fn default() -> Self {
        let in_the_way =
            "podshmd has not been given the container runtime's NRI socket (chart value podshmd.nri)".to_owned();
        Native(Mutex::new(State {
            pods: BTreeMap::new(),
            in_the_way: Some(in_the_way),
            is_wanted: false,
            private: Vec::new(),
        }))
    }
}

impl Native {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a container that is made now would not join its domain; None where it would.
    pub fn why_not(&self) -> Option<String> {
        self.state().in_the_way.clone()
    }

    /// Whether the runtime asks us.
    pub fn is_connected(&self) -> bool {
        self.state().in_the_way.is_none()
    }

    /// Whether there is a plugin at all.
    pub fn is_wanted(&self) -> bool {
        self.state().is_wanted
    }

    /// Containers that run without a domain's namespace, `namespace/pod/container`: they were started while nobody asked us.
    pub fn private(&self, domain: &str) -> Vec<String> {
        self.state().private.iter().filter(|(of, _)| of == domain).map(|(_, container)| container.clone()).collect()
    }

    /// A pod's containers join a domain from now on.
    pub fn add(&self, uid: &str, pod: String, place: &Place, has_shm: bool) {
        let path = |name| place.path(name).display().to_string();
        let joins = Joins { domain: place.name(), pod, ipc: path("ipc"), shm: has_shm.then(|| path("shm")) };
        self.state().pods.insert(uid.to_owned(), joins);
    }

    /// It has gone.
    pub fn remove(&self, uid: &str) {
        self.state().pods.remove(uid);
    }

    fn is_asked(&self) {
        self.state().in_the_way = None;
    }

    fn is_not_asked(&self, why: String) {
        let mut state = self.state();
        (state.in_the_way, state.is_wanted) = (Some(why), true);
    }

    /// What is to be changed in a container of a pod.
    fn adjust(&self, uid: &str) -> Option<Adjustment> {
        let joins = self.state().pods.get(uid)?.clone();
        let options = ["rbind", "rprivate", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        let mount = |source| Mount { destination: "/dev/shm".into(), kind: "bind".into(), source, options };
        let namespaces = vec![Namespace { kind: "ipc".into(), path: joins.ipc }];
        Some(Adjustment {
            mounts: joins.shm.map(mount).into_iter().collect(),
            linux: Some(LinuxAdjustment { namespaces }),
        })
    }

    /// Looks for containers that were made while nobody asked us.
    fn look_at(&self, there: &SynchronizeRequest) {
        let mut state = self.state();
        let uids: BTreeMap<&str, &str> = there.pods.iter().map(|pod| (pod.id.as_str(), pod.uid.as_str())).collect();
        let private = there.containers.iter().filter(|container| container.state != STOPPED).filter_map(|container| {
            let joins = state.pods.get(*uids.get(container.pod_sandbox_id.as_str())?)?;
            let namespaces = container.linux.iter().flat_map(|linux| &linux.namespaces);
            let is_in = namespaces.into_iter().any(|namespace| namespace.kind == "ipc" && namespace.path == joins.ipc);
            (!is_in).then(|| (joins.domain.clone(), format!("{}/{}", joins.pod, container.name)))
        });
        let private: Vec<(String, String)> = private.collect();
        for (domain, container) in &private {
            tracing::error!(
                domain,
                container,
                "it was started while the container runtime did not ask podshmd, and has System V memory of its own: restart it"
            );
        }
        state.private = private;
    }
}
