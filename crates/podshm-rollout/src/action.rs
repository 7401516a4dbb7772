//! What a controller is to do. Each may be done twice.

use podshm_api::rollout::NodeMark;
use serde::{Deserialize, Serialize};

/// Whether something is put on, taken off, or left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// As it is.
    #[default]
    Keep,
    /// On.
    On,
    /// Off.
    Off,
}

/// Annotation [`podshm_api::rollout::ASKED`] of a fat workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Uid of the rollout that moves it.
    pub rollout: String,
    /// Replicas that its owner asked for.
    pub replicas: u32,
    /// Replicas that the rollout has left in the fat form.
    pub fat: u32,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Puts the finalizer on the rollout, before anything else is touched: it can't be gone before what it did has gone back.
    Hold,
    /// Takes the finalizer off: nothing is left to be done, and who deletes the rollout has it gone.
    LetGo,
    /// Changes a node; all of it in one write, so that state, label and taint are never apart.
    Node {
        /// Its name.
        name: String,
        /// Its annotation, if that changes.
        mark: Option<NodeMark>,
        /// The rollout's label.
        label: Change,
        /// The rollout's taint.
        taint: Change,
    },
    /// Creates a node's verification pod.
    Verify {
        /// The node.
        node: String,
    },
    /// Deletes a node's verification pod.
    CleanUp {
        /// The node.
        node: String,
    },
    /// Creates a workload's slim form, with no replicas, or brings its template up to date.
    Slim {
        /// Its place in `spec.workloads`.
        workload: usize,
    },
    /// Sets replicas of a Deployment.
    Scale {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// So many.
        replicas: u32,
        /// Annotation of a fat form that changes with them.
        asked: Option<Asked>,
    },
    /// Deletes a workload's slim form, which has no replicas.
    Remove {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Marks a pod as one that goes first, or no longer.
    GoesFirst {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Whether.
        first: bool,
    },
    /// Deletes an agent's pod, so that its DaemonSet makes one of its newest version.
    Replace {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Brings a DaemonSet's template back to a former revision.
    Restore {
        /// Its place in `spec.agents`.
        agent: usize,
        /// Name of the ControllerRevision.
        revision: String,
    },
}

impl Action {
    /// Only the annotation of a node changes.
    pub(crate) fn mark(name: &str, mark: NodeMark) -> Self {
        Action::Node { name: name.into(), mark: Some(mark), label: Change::Keep, taint: Change::Keep }
    }
}
