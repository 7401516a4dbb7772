//! The segments of a domain: keys, ids, permissions, limits, what each call answers. Pure: no I/O, no clock; how many are
//! attached is told by who can count (see [`crate::store`]).

use crate::ids::{Cursor, MOST, index_of};
use crate::permissions::{Caller, Owned};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// A page.
pub const PAGE: u64 = 4096;
/// Never found by a key.
pub const IPC_PRIVATE: i32 = 0;
/// Removed as soon as nobody has it attached; in a segment's mode.
pub const DEST: u16 = 0o1000;
/// SHM_LOCK; in a segment's mode.
pub const LOCKED: u16 = 0o2000;

const IPC_CREAT: u32 = 0o1000;
const IPC_EXCL: u32 = 0o2000;
const SHM_HUGETLB: u32 = 0o4000;
const SHM_RDONLY: u32 = 0o10000;
const SHM_EXEC: u32 = 0o100000;
const RIGHTS: u16 = 0o777;

/// Limits of a domain on this node, named as the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Largest segment in bytes.
    pub shmmax: u64,
    /// All segments together, in pages: the domain's budget.
    pub shmall: u64,
    /// Segments at once.
    pub shmmni: u32,
}

/// A process, for people and for `shm_cpid`, `shm_lpid`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The member that it belongs to; empty where nobody knows.
    pub member: String,
    /// As the member counts.
    pub pid: i32,
    /// As the node counts; 0 where nobody knows.
    pub node_pid: i32,
    /// When it started, in clock ticks since boot: with `node_pid` it names one process.
    pub started: u64,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its id.
    pub id: i32,
    /// Its key; IPC_PRIVATE once it is to be removed.
    pub key: i32,
    /// Bytes asked for.
    pub size: u64,
    /// Owner, creator, mode.
    pub owned: Owned,
    /// Last attach, seconds since 1970; 0 never.
    pub atime: i64,
    /// Last detach.
    pub dtime: i64,
    /// Made or last changed.
    pub ctime: i64,
    /// Who made it.
    pub creator: Process,
    /// Who attached or detached last.
    pub last: Process,
}

impl Segment {
    /// Pages that it has.
    pub fn pages(&self) -> u64 {
        self.size.div_ceil(PAGE)
    }

    /// Is it to go with its last attachment?
    pub fn is_doomed(&self) -> bool {
        self.owned.mode & DEST != 0
    }

    /// Somebody attached it.
    pub fn attached(&mut self, by: Process, now: i64) {
        (self.atime, self.last) = (now, by);
    }

    /// Somebody let go of it.
    pub fn detached(&mut self, by: Process, now: i64) {
        (self.dtime, self.last) = (now, by);
    }
}

/// What `shmget` comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Get {
    /// It is there.
    There(i32),
    /// It is to be made, and there is room.
    Make,
}

/// What IPC_RMID comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Gone.
    Now,
    /// It goes with its last attachment.
    Later,
}

/// All of a domain's segments.
#[derive(Clone, Debug)]
pub struct Segments {
    limits: Limits,
    cursor: Cursor,
    by_index: BTreeMap<u32, Segment>,
    used: BTreeSet<u32>,
    by_key: BTreeMap<i32, u32>,
    pages: u64,
}

impl Segments {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { shmmni: limits.shmmni.min(MOST), ..limits };
        Segments {
            limits,
            cursor: Cursor::default(),
            by_index: BTreeMap::new(),
            used: BTreeSet::new(),
            by_key: BTreeMap::new(),
            pages: 0,
        }
    }

    /// Those that a predecessor left.
    pub fn restore(limits: Limits, cursor: Cursor, left: impl IntoIterator<Item = Segment>) -> Self {
        let mut all = Segments { cursor, ..Segments::new(limits) };
        left.into_iter().for_each(|segment| all.put(segment));
        all
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Where ids go on.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Pages of all of them.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// In order of index.
    pub fn all(&self) -> impl Iterator<Item = &Segment> {
        self.by_index.values()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.by_index.len()
    }

    /// The highest index in use, 0 where there is none: what IPC_INFO and SHM_INFO return.
    pub fn highest_index(&self) -> u32 {
        self.by_index.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// `shmget`, before anything is made.
    pub fn get(&self, caller: &Caller, key: i32, size: u64, flags: u32) -> Result<Get, Errno> {
        let found = self.by_key.get(&key).filter(|_| key != IPC_PRIVATE).and_then(|index| self.by_index.get(index));
        let Some(segment) = found else {
            if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
                return Err(Errno::NOENT);
            }
            return self.room_for(size, flags).map(|()| Get::Make);
        };
        if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
            Err(Errno::EXIST)
        } else if segment.size < size {
            Err(Errno::INVAL)
        } else if !segment.owned.allows(caller, flags) {
            Err(Errno::ACCESS)
        } else {
            Ok(Get::There(segment.id))
        }
    }

    fn room_for(&self, size: u64, flags: u32) -> Result<(), Errno> {
        if size < 1 || size > self.limits.shmmax {
            return Err(Errno::INVAL);
        }
        let pages = size.checked_add(PAGE - 1).ok_or(Errno::NOSPC)? / PAGE;
        if self.pages.checked_add(pages).is_none_or(|pages| pages > self.limits.shmall) {
            return Err(Errno::NOSPC);
        }
        if flags & SHM_HUGETLB != 0 {
            return Err(Errno::NOMEM);
        }
        if self.by_index.len() >= self.limits.shmmni as usize { Err(Errno::NOSPC) } else { Ok(()) }
    }

    /// The segment that [`Get::Make`] allowed, once its memory is there.
    pub fn make(&mut self, caller: &Caller, key: i32, size: u64, flags: u32, creator: Process, now: i64) -> &Segment {
        let id = self.cursor.take(&self.used);
        let mode = flags as u16 & RIGHTS;
        let owned = Owned { uid: caller.uid, gid: caller.gid, cuid: caller.uid, cgid: caller.gid, mode };
        let last = Process::default();
        self.put(Segment { id, key, size, owned, atime: 0, dtime: 0, ctime: now, creator, last });
        &self.by_index[&index_of(id)]
    }

    fn put(&mut self, segment: Segment) {
        let index = index_of(segment.id);
        if segment.key != IPC_PRIVATE {
            self.by_key.insert(segment.key, index);
        }
        self.pages += segment.pages();
        self.used.insert(index);
        self.by_index.insert(index, segment);
    }

    /// By id: EINVAL where there never was or is nothing, EIDRM where another has its place.
    pub fn find(&self, id: i32) -> Result<&Segment, Errno> {
        if id < 0 {
            return Err(Errno::INVAL);
        }
        let segment = self.by_index.get(&index_of(id)).ok_or(Errno::INVAL)?;
        if segment.id == id { Ok(segment) } else { Err(Errno::IDRM) }
    }

    /// By index, as SHM_STAT names them.
    pub fn find_index(&self, index: i32) -> Result<&Segment, Errno> {
        let index = u32::try_from(index).map_err(|_| Errno::INVAL)?;
        self.by_index.get(&index_of(index as i32)).ok_or(Errno::INVAL)
    }

    /// To change what a call changes.
    pub fn find_mut(&mut self, id: i32) -> Option<&mut Segment> {
        self.by_index.get_mut(&index_of(id)).filter(|segment| segment.id == id)
    }

    /// `shmat`: whether the caller may attach it so.
    pub fn attach(&self, caller: &Caller, id: i32, flags: u32) -> Result<&Segment, Errno> {
        let segment = self.find(id)?;
        let mut wanted = if flags & SHM_RDONLY != 0 { 0o444 } else { 0o666 };
        if flags & SHM_EXEC != 0 {
            wanted |= 0o111;
        }
        if segment.owned.allows(caller, wanted) { Ok(segment) } else { Err(Errno::ACCESS) }
    }

    /// Whether the caller may see it.
    pub fn readable<'a>(&self, caller: &Caller, segment: &'a Segment) -> Result<&'a Segment, Errno> {
        if segment.owned.allows(caller, 0o444) { Ok(segment) } else { Err(Errno::ACCESS) }
    }

    /// IPC_RMID.
    pub fn remove(&mut self, caller: &Caller, id: i32, attached: u64) -> Result<Removal, Errno> {
        if !self.find(id)?.owned.may_change(caller) {
            return Err(Errno::PERM);
        }
        if attached == 0 {
            self.forget(id);
            return Ok(Removal::Now);
        }
        let segment = self.find_mut(id).expect("found above");
        segment.owned.mode |= DEST;
        let key = std::mem::replace(&mut segment.key, IPC_PRIVATE);
        if key != IPC_PRIVATE {
            self.by_key.remove(&key);
        }
        Ok(Removal::Later)
    }

    /// It is gone.
    pub fn forget(&mut self, id: i32) -> Option<Segment> {
        self.find_mut(id)?;
        let segment = self.by_index.remove(&index_of(id))?;
        self.used.remove(&index_of(id));
        if segment.key != IPC_PRIVATE {
            self.by_key.remove(&segment.key);
        }
        self.pages -= segment.pages();
        Some(segment)
    }

    /// IPC_SET.
    pub fn set(&mut self, caller: &Caller, id: i32, owner: (u32, u32), mode: u16, now: i64) -> Result<(), Errno> {
        if !self.find(id)?.owned.may_change(caller) {
            return Err(Errno::PERM);
        }
        if owner.0 == u32::MAX || owner.1 == u32::MAX {
            return Err(Errno::INVAL);
        }
        let segment = self.find_mut(id).expect("found above");
        (segment.owned.uid, segment.owned.gid) = owner;
        segment.owned.mode = segment.owned.mode & !RIGHTS | mode & RIGHTS;
        segment.ctime = now;
        Ok(())
    }

    /// SHM_LOCK and SHM_UNLOCK: noted; a domain's pages are all there from the start.
    pub fn lock(&mut self, caller: &Caller, id: i32, lock: bool) -> Result<(), Errno> {
        let owned = self.find(id)?.owned;
        if !caller.ipc_lock && !owned.is_owner(caller) {
            return Err(Errno::PERM);
        }
        let segment = self.find_mut(id).expect("found above");
        segment.owned.mode = if lock { owned.mode | LOCKED } else { owned.mode & !LOCKED };
        Ok(())
    }
}
