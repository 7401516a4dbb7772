//! Who may do what with a segment: `ipcperms` of the kernel.

/// Who calls, as the kernel told the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// CAP_IPC_OWNER in the user namespace that owns the domain: permission bits don't bind.
    pub ipc_owner: bool,
    /// CAP_SYS_ADMIN there: may remove and change what others own.
    pub sys_admin: bool,
    /// CAP_IPC_LOCK there.
    pub ipc_lock: bool,
}

/// Owner, creator and mode of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owned {
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// Creator's group.
    pub cgid: u32,
    /// Permission bits, and above them those of the kind.
    pub mode: u16,
}

impl Owned {
    /// Whether `caller` gets what `wanted` asks for: permission bits of any of the three classes, as in `shmflg`.
    pub fn allows(&self, caller: &Caller, wanted: u32) -> bool {
        let wanted = wanted >> 6 | wanted >> 3 | wanted;
        let granted = if self.is_owner(caller) {
            self.mode >> 6
        } else if self.is_group(caller) {
            self.mode >> 3
        } else {
            self.mode
        };
        wanted & !u32::from(granted) & 0o7 == 0 || caller.ipc_owner
    }

    /// Owner or creator.
    pub fn is_owner(&self, caller: &Caller) -> bool {
        caller.uid == self.uid || caller.uid == self.cuid
    }

    /// Whether `caller` may remove it or change its owner and mode.
    pub fn may_change(&self, caller: &Caller) -> bool {
        self.is_owner(caller) || caller.sys_admin
    }

    fn is_group(&self, caller: &Caller) -> bool {
        [self.gid, self.cgid].iter().any(|gid| *gid == caller.gid || caller.groups.contains(gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, gid: u32) -> Caller {
        Caller { uid, gid, ..Caller::default() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let owned = Owned { uid: 1, gid: 10, cuid: 2, cgid: 20, mode: 0o604 };
        for uid in [1, 2] {
            assert!(owned.allows(&caller(uid, 99), 0o600));
        }
        for gid in [10, 20] {
            assert!(!owned.allows(&caller(3, gid), 0o400), "the group has less than others, and that counts");
        }
        let member = Caller { groups: vec![7, 20], ..caller(3, 99) };
        assert!(!owned.allows(&member, 0o004));
        assert!(owned.allows(&caller(3, 99), 0o400) && !owned.allows(&caller(3, 99), 0o600));
        assert!(owned.allows(&caller(3, 10), 0), "asking for nothing is granted");
        assert!(owned.allows(&Caller { ipc_owner: true, ..caller(3, 10) }, 0o777));
        assert!(!owned.may_change(&caller(3, 10)) && owned.may_change(&caller(2, 10)));
        assert!(owned.may_change(&Caller { sys_admin: true, ..caller(3, 10) }));
    }
}
