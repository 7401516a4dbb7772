//! The structures that `shmctl` fills, byte by byte: the kernel's, glibc's and musl's on 64-bit Linux.

use crate::ids::INDEX_BITS;
use crate::peer::Ids;
use crate::segments::{Process, Segment, Segments};
use podshm_preload::wire::SHMID_DS;

struct Writer(Vec<u8>);

impl Writer {
    fn word(&mut self, value: u32) {
        self.0.extend(value.to_ne_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_ne_bytes());
    }
}

/// `struct shmid_ds`, as a caller with these names for ids and in this member sees it. Pids of other members are 0, as the
/// kernel shows those of other pid namespaces.
pub fn of_segment(segment: &Segment, attached: u64, ids: &Ids, member: &str) -> Vec<u8> {
    let mut to = Writer(Vec::with_capacity(SHMID_DS));
    let owned = segment.owned;
    let ((uid, gid), (cuid, cgid)) = (ids.inside(owned.uid, owned.gid), ids.inside(owned.cuid, owned.cgid));
    [segment.key as u32, uid, gid, cuid, cgid, u32::from(owned.mode)].into_iter().for_each(|word| to.word(word));
    to.word(segment.id as u32 >> INDEX_BITS);
    to.word(0);
    [0, 0, segment.size].into_iter().for_each(|long| to.long(long));
    [segment.atime, segment.dtime, segment.ctime].into_iter().for_each(|time| to.long(time as u64));
    let pid = |process: &Process| if process.member == member { process.pid as u32 } else { 0 };
    to.word(pid(&segment.creator));
    to.word(pid(&segment.last));
    [attached, 0, 0].into_iter().for_each(|long| to.long(long));
    debug_assert_eq!(to.0.len(), SHMID_DS);
    to.0
}

/// Owner and mode of the `struct shmid_ds` that IPC_SET brings.
pub fn to_change(bytes: &[u8]) -> Option<(u32, u32, u16)> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    (bytes.len() == SHMID_DS).then_some(())?;
    Some((word(4)?, word(8)?, word(20)? as u16))
}

/// `struct shminfo`.
pub fn limits(segments: &Segments) -> Vec<u8> {
    let limits = segments.limits();
    let mni = u64::from(limits.shmmni);
    let mut to = Writer(Vec::new());
    [limits.shmmax, 1, mni, mni, limits.shmall, 0, 0, 0, 0].into_iter().for_each(|long| to.long(long));
    to.0
}

/// `struct shm_info`. All pages are resident, since all were allocated.
pub fn usage(segments: &Segments) -> Vec<u8> {
    let mut to = Writer(Vec::new());
    to.word(segments.count() as u32);
    to.word(0);
    [segments.pages(), segments.pages(), 0, 0, 0].into_iter().for_each(|long| to.long(long));
    to.0
}
