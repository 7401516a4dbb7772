//! Rollouts on a cluster in memory. One program, since each would have all kinds of Kubernetes in it.

mod again;
mod back;
mod faults;
mod health;
mod planned;
mod refusals;
mod simulated;
mod steps;
mod warnings;
