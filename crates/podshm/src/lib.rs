//! Fast shared memory between pods on the same node.
