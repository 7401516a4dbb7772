//! Who calls: the socket says which member, the kernel which uid, gid and process; the rest of its credentials are read from
//! /proc where a decision needs them.

use crate::permissions::Caller;
use crate::segments::Process;
use podshm_region::peer::credentials;
use std::fs;
use std::io;
use std::os::fd::AsFd;

const CAP_IPC_LOCK: u32 = 14;
const CAP_IPC_OWNER: u32 = 15;
const CAP_SYS_ADMIN: u32 = 21;
/// What the kernel shows for an id that a user namespace has no name for.
const OVERFLOW: u32 = 65_534;

/// The process at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The member whose socket it came through.
    pub member: String,
    /// Its pid on the node; 0 where it can't be seen from here.
    pub node_pid: i32,
    /// Its pid as it counts itself; for display only.
    pub pid: i32,
    /// Credentials: uid and gid, and with [`in_full`](Peer::in_full) the others.
    pub caller: Caller,
}

impl Peer {
    /// Of a connected socket.
    pub fn of(socket: impl AsFd, member: &str, pid: i32) -> io::Result<Self> {
        let who = credentials(socket)?;
        let caller = Caller { uid: who.uid, gid: who.gid, ..Caller::default() };
        Ok(Peer { member: member.to_owned(), node_pid: who.pid, pid, caller })
    }

    /// Groups and capabilities too. What can't be read is what the caller hasn't.
    pub fn in_full(&self) -> Caller {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node_pid)).unwrap_or_default();
        let groups = field(&status, "Groups:").split_whitespace().filter_map(|gid| gid.parse().ok()).collect();
        // Capabilities count in the user namespace that owns the domain: the daemon's.
        let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let ours = space("self");
        let effective = match space(&self.node_pid.to_string()) == ours && ours.is_some() {
            true => u64::from_str_radix(field(&status, "CapEff:"), 16).unwrap_or(0),
            false => 0,
        };
        let has = |capability: u32| effective & 1 << capability != 0;
        Caller {
            groups,
            ipc_owner: has(CAP_IPC_OWNER),
            sys_admin: has(CAP_SYS_ADMIN),
            ipc_lock: has(CAP_IPC_LOCK),
            ..self.caller.clone()
        }
    }

    /// Its umask.
    pub fn umask(&self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node_pid)).unwrap_or_default();
        u32::from_str_radix(field(&status, "Umask:"), 8).unwrap_or(0o022)
    }

    /// As what segments remember.
    pub fn process(&self) -> Process {
        Process { member: self.member.clone(), pid: self.pid, node_pid: self.node_pid, started: 0 }
    }

    /// With the time at which it started, which makes the pid unmistakable.
    pub fn process_in_full(&self) -> Process {
        Process { started: started(self.node_pid).unwrap_or(0), ..self.process() }
    }

    /// How its user namespace calls the node's ids.
    pub fn ids(&self) -> Ids {
        let map = |file| parse_map(&fs::read_to_string(format!("/proc/{}/{file}", self.node_pid)).unwrap_or_default());
        Ids { uids: map("uid_map"), gids: map("gid_map") }
    }
}

/// A user namespace's names for the node's ids, and back: `(inside, outside, count)`.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    uids: Vec<(u32, u32, u32)>,
    gids: Vec<(u32, u32, u32)>,
}

impl Ids {
    /// Of a uid and a gid of the node.
    pub fn inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let inside = |map: &[(u32, u32, u32)], id: u32| {
            let hit = map.iter().find(|(_, outside, count)| id.checked_sub(*outside).is_some_and(|off| off < *count));
            hit.map_or(if map.is_empty() { id } else { OVERFLOW }, |(inside, outside, _)| inside + (id - outside))
        };
        (inside(&self.uids, uid), inside(&self.gids, gid))
    }

    /// Of a uid and a gid as the caller says them; `u32::MAX` for one that it has no right to name.
    pub fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let outside = |map: &[(u32, u32, u32)], id: u32| {
            let hit = map.iter().find(|(inside, _, count)| id.checked_sub(*inside).is_some_and(|off| off < *count));
            hit.map_or(if map.is_empty() { id } else { u32::MAX }, |(inside, outside, _)| outside + (id - inside))
        };
        (outside(&self.uids, uid), outside(&self.gids, gid))
    }
}

fn parse_map(text: &str) -> Vec<(u32, u32, u32)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().map_while(|word| word.parse().ok());
        Some((words.next()?, words.next()?, words.next()?))
    };
    text.lines().filter_map(line).collect()
}

/// When a process started, in clock ticks since boot; None when it is gone.
pub fn started(node_pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{node_pid}/stat")).ok()?;
    // The name may have anything in it but is the only thing in brackets.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_user_namespace() {
        let ids = Ids { uids: parse_map("  0  100000  65536\n"), gids: parse_map("5 7 1\n") };
        assert_eq!(ids.inside(100_033, 7), (33, 5));
        assert_eq!(ids.inside(33, 8), (OVERFLOW, OVERFLOW));
        assert_eq!(ids.outside(33, 5), (100_033, 7));
        assert_eq!(ids.outside(65_536, 6), (u32::MAX, u32::MAX));
        assert_eq!(Ids::default().inside(33, 8), (33, 8), "where the map can't be read");
    }

    #[test]
    fn this_process_has_started() {
        let own = started(std::process::id() as i32).expect("it runs");
        assert!(own > 0 && started(own_parent()).is_some_and(|parent| parent <= own));
    }

    fn own_parent() -> i32 {
        rustix::process::getppid().expect("a parent").as_raw_nonzero().get()
    }
}
