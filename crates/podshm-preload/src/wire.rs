//! Messages between the preload library and the daemon: one `SOCK_SEQPACKET` connection per call, one request, one reply.
//!
//! Both are eight words in native byte order (both ends are on one machine), then a tail that the operation names. Nothing
//! in them says who the caller is: that is the socket's directory (which member) and `SO_PEERCRED` (which uid, gid, pid).

/// Words of a message.
pub const WORDS: usize = 8;
/// The words.
pub type Words = [u64; WORDS];
/// Bytes of the words.
pub const HEAD: usize = WORDS * 8;
/// Longest tail.
pub const TAIL: usize = 512;
/// Upper half of the first word of either message; the lower one is the operation.
pub const MAGIC: u64 = 0x7073_0001;
/// Attachments in one [`FORK`].
pub const FORK_BATCH: usize = 32;
/// Bytes of `struct shmid_ds`, the same with every libc on 64-bit Linux.
pub const SHMID_DS: usize = 112;

/// Asks whether anybody is there.
pub const HELLO: u32 = 1;
/// `shmget`: key, size, flags.
pub const GET: u32 = 2;
/// `shmat`: id, flags. Reply: size, token, and the segment's descriptor.
pub const ATTACH: u32 = 3;
/// The mapping of ATTACH failed: id, token.
pub const UNDO: u32 = 4;
/// `shmdt` has unmapped: id, token.
pub const DETACH: u32 = 5;
/// A fork is about to happen: count, then `(id, token)` pairs. Reply: a token for each,
/// 0 for what is attached no more, and descriptors for the child, one for each that is not 0.
pub const FORK: u32 = 6;
/// `shmctl`: id, command, then a `shmid_ds` for IPC_SET. Reply: the structure that the command fills.
pub const CONTROL: u32 = 7;
/// `shm_open`: flags, mode, then the name. Reply: a descriptor.
pub const OPEN: u32 = 8;
/// `shm_unlink`: the name.
pub const UNLINK: u32 = 9;
/// `ftruncate` of a file in the domain's /dev/shm that makes it larger: size, and its descriptor. EXDEV where the file is
/// none of the domain's.
pub const GROW: u32 = 10;

/// A child has what its parent's [`FORK`] was answered: count, then `(id, token)` pairs. No reply: it only tells who it is.
pub const ADOPT: u32 = 11;

/// A request's words: the operation, three arguments, and the process as it counts itself.
pub fn request(operation: u32, arguments: [u64; 3], pid: i32) -> Words {
    [MAGIC << 32 | u64::from(operation), arguments[0], arguments[1], arguments[2], pid as u64, 0, 0, 0]
}

/// The operation of a request, if it is one.
pub fn operation(words: &Words) -> Option<u32> {
    (words[0] >> 32 == MAGIC).then_some(words[0] as u32)
}

/// A reply's words: a result or a negative errno, and up to two values.
pub fn reply(operation: u32, result: i64, values: [u64; 2]) -> Words {
    [MAGIC << 32 | u64::from(operation), result as u64, values[0], values[1], 0, 0, 0, 0]
}

/// Bit 0 of a token: the attachment is read-only.
pub const READ_ONLY: u64 = 1;

/// What [`CONTROL`] may be asked for: `shmctl`'s commands, as linux/ipc.h and linux/shm.h number them.
#[allow(missing_docs)]
pub mod command {
    pub const IPC_RMID: i32 = 0;
    pub const IPC_SET: i32 = 1;
    pub const IPC_STAT: i32 = 2;
    pub const IPC_INFO: i32 = 3;
    pub const SHM_LOCK: i32 = 11;
    pub const SHM_UNLOCK: i32 = 12;
    pub const SHM_STAT: i32 = 13;
    pub const SHM_INFO: i32 = 14;
    pub const SHM_STAT_ANY: i32 = 15;
}
