//! Namespaces: making, mapping, joining; and the loopback interface.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{Step, StepError};

pub(super) fn unshare(flags: UnshareFlags, what: &str) -> Result<(), StepError> {
    assert!(!flags.contains(UnshareFlags::FILES), "the descriptor table is never unshared");
    // SAFETY: the one hazard that the function names is FILES, with which threads would see different descriptor
    // tables; the assertion above excludes it.
    unsafe { unshare_unsafe(flags) }.unavailable(what)
}

/// Maps one inner id to the one outer id that an unprivileged process may map: its own.
pub(super) fn map_ids(uid: (u32, u32), gid: (u32, u32)) -> Result<(), StepError> {
    let put =
        |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text).unavailable(format!("writing {file}"));
    put("setgroups", "deny".into())?;
    put("uid_map", format!("{} {} 1", uid.0, uid.1))?;
    put("gid_map", format!("{} {} 1", gid.0, gid.1))
}

/// Joins namespaces of a process, in the order given; all are opened before the first is joined, since joining a mount
/// namespace changes what /proc shows.
pub(super) fn join(pid: u32, spaces: &[(&str, LinkNameSpaceType)]) -> Result<(), StepError> {
    let mut open = Vec::new();
    for (name, kind) in spaces {
        let path = format!("/proc/{pid}/ns/{name}");
        open.push((File::open(&path).failed(format!("opening {path}, is the pod still there?"))?, *kind, path));
    }
    for (file, kind, path) in open {
        move_into_link_name_space(file.as_fd(), Some(kind)).failed(format!("joining {path}"))?;
    }
    Ok(())
}

/// Sets `lo` up, with a netlink message: the ioctl would need unsafe code.
pub(super) fn loopback_up() -> Result<(), StepError> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const LO: i32 = 1;
    const IFF_UP: u32 = 1;
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
    let socket = socket.failed("opening a netlink socket")?;
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence, port: none
    message.extend([0; 4]); // family, padding, device type: any
    message.extend(LO.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // the flags to change
    send(&socket, &message, SendFlags::empty()).failed("setting lo up")?;
    let mut answer = [0u8; 256];
    let (read, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).failed("setting lo up")?;
    let error = answer[..read].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match error {
        Some(0) => Ok(()),
        other => Err(StepError::Failed(format!("setting lo up: netlink answered {other:?}"))),
    }
}
