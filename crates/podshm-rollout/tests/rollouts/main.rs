//! Rollouts on a cluster in memory. One program, since each would have all kinds of Kubernetes in it.

mod again;
mod back;
mod edits;
mod faults;
mod gone;
mod health;
mod planned;
mod progress;
mod refusals;
mod room;
mod simulated;
mod steps;
mod warnings;
