//! A rollout at scale: `tests/scale.rs`. A package of its own, since it needs next to nothing of what the cluster's other tests do.

#![forbid(unsafe_code)]
