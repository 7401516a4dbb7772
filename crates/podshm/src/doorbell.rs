//! The pair's two ends: a byte wakes the other side, a hang-up tells of its death.

use rustix::net::{SendFlags, send};
use std::os::fd::AsFd;

/// Wakes the other side. If the socket is full it is awake, if it has hung up it is gone; neither blocks or, in a program that
/// does not ignore SIGPIPE, kills this process.
#[cold]
pub(crate) fn ring(doorbell: impl AsFd) {
    let _ = send(doorbell, &[1], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
