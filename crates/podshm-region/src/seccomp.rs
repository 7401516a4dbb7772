//! System V and message queue calls of whoever is started from here on are refused with ENOSYS, and told of: for programs that a
//! preload library does not reach.
//!
//! ```text
//!  Listener::install() ── a filter on this thread; children inherit it
//!  child: shmget(2) by hand ──► the kernel holds it and wakes the listener ──► Listener::next_call(): ENOSYS, and who called what
//! ```
//! Without a listener any more the kernel answers ENOSYS by itself.

use std::io;
use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The calls, by number; the same names in each table.
type Table = &'static [(&'static str, u32)];

macro_rules! numbers {
    ($($name:literal = $number:ident),*) => { &[$(($name, libc::$number as u32)),*] };
}

const NATIVE: Table = numbers!(
    "shmget" = SYS_shmget,
    "shmat" = SYS_shmat,
    "shmdt" = SYS_shmdt,
    "shmctl" = SYS_shmctl,
    "semget" = SYS_semget,
    "semop" = SYS_semop,
    "semtimedop" = SYS_semtimedop,
    "semctl" = SYS_semctl,
    "msgget" = SYS_msgget,
    "msgsnd" = SYS_msgsnd,
    "msgrcv" = SYS_msgrcv,
    "msgctl" = SYS_msgctl,
    "mq_open" = SYS_mq_open
);

// linux/audit.h
#[cfg(target_arch = "x86_64")]
const NATIVE_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCH: u32 = 0xc000_00b7;

/// Programs of 32 bits on a 64-bit machine: `ipc` is all of them in one, the others have numbers since Linux 5.1.
#[cfg(target_arch = "x86_64")]
const COMPAT: (u32, Table) = (
    0x4000_0003,
    &[
        ("ipc", 117),
        ("mq_open", 277),
        ("semget", 393),
        ("semctl", 394),
        ("shmget", 395),
        ("shmctl", 396),
        ("shmat", 397),
        ("shmdt", 398),
        ("msgget", 399),
        ("msgsnd", 400),
        ("msgrcv", 401),
        ("msgctl", 402),
    ],
);
/// 32-bit ARM has the calls one by one.
#[cfg(target_arch = "aarch64")]
const COMPAT: (u32, Table) = (
    0x4000_0028,
    &[
        ("mq_open", 274),
        ("semop", 298),
        ("semget", 299),
        ("semctl", 300),
        ("msgsnd", 301),
        ("msgrcv", 302),
        ("msgget", 303),
        ("msgctl", 304),
        ("shmat", 305),
        ("shmdt", 306),
        ("shmget", 307),
        ("shmctl", 308),
        ("semtimedop", 312),
    ],
);

/// In a number of x86's x32 calls, which are the 64-bit ones otherwise.
const X32: u32 = 0x4000_0000;

fn step(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Loads the architecture, finds its table, and refuses what stands in it.
fn program() -> Vec<libc::sock_filter> {
    let load = |offset: usize| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    let equal = |k: u32| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k);
    let answer = |k: u32| step(libc::BPF_RET | libc::BPF_K, k);
    let mut all = vec![load(offset_of!(libc::seccomp_data, arch))];
    for (arch, table) in [(NATIVE_ARCH, NATIVE), COMPAT] {
        let skipped = table.len() + 3;
        all.push(libc::sock_filter { jf: skipped as u8, ..equal(arch) });
        all.push(load(offset_of!(libc::seccomp_data, nr)));
        all.push(step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !X32));
        all.extend(table.iter().map(|(_, number)| equal(*number)));
        all.push(answer(libc::SECCOMP_RET_ALLOW));
    }
    all.push(answer(libc::SECCOMP_RET_ALLOW));
    let end = all.len();
    all.push(answer(libc::SECCOMP_RET_USER_NOTIF));
    let tables: Vec<u32> = NATIVE.iter().chain(COMPAT.1).map(|(_, number)| *number).collect();
    for (at, one) in all.iter_mut().enumerate() {
        if one.code == equal(0).code && tables.contains(&one.k) {
            one.jt = (end - at - 1) as u8;
        }
    }
    all
}

/// A call that is refused; its caller waits until this is dropped.
#[derive(Debug)]
pub struct Refused<'a> {
    /// Which.
    pub call: &'static str,
    /// The thread that calls, as the listener's pid namespace counts.
    pub tid: u32,
    id: u64,
    listener: &'a Listener,
}

/// Where the kernel tells of them.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Sets the filter up for this thread and what it starts from here on. Needs no_new_privs, and that no filter with a listener
    /// is there yet.
    pub fn install() -> io::Result<Self> {
        let mut all = program();
        let filter = libc::sock_fprog { len: all.len() as u16, filter: all.as_mut_ptr() };
        // Speculation stays as it is: kernels before 5.16 make programs under a filter slower otherwise, and this is no sandbox.
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        let set = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel copies the program, which lives through the call.
        match unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const filter) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: a new descriptor, which nobody else has.
            fd => Ok(Listener(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        }
    }

    /// Waits for the next call.
    pub fn next_call(&self) -> io::Result<Refused<'_>> {
        // _IOWR('!', 0, struct seccomp_notif)
        const RECEIVE: u32 = 0xc000_2100 | (size_of::<libc::seccomp_notif>() as u32) << 16;
        loop {
            // SAFETY: all zeros are a value of it, and what the kernel asks for.
            let mut notice: libc::seccomp_notif = unsafe { zeroed() };
            // SAFETY: the kernel fills a structure of this size.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE as _, &raw mut notice) } != 0 {
                match io::Error::last_os_error() {
                    // Interrupted, or the caller has been killed in between.
                    error if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => continue,
                    error => return Err(error),
                }
            }
            let table = if notice.data.arch == COMPAT.0 { COMPAT.1 } else { NATIVE };
            let number = notice.data.nr as u32 & !X32;
            let call = table.iter().find(|(_, known)| *known == number).map_or("a call", |(call, _)| call);
            return Ok(Refused { call, tid: notice.pid, id: notice.id, listener: self });
        }
    }
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        // _IOWR('!', 1, struct seccomp_notif_resp)
        const SEND: u32 = 0xc000_2101 | (size_of::<libc::seccomp_notif_resp>() as u32) << 16;
        let answer = libc::seccomp_notif_resp { id: self.id, val: 0, error: -libc::ENOSYS, flags: 0 };
        // SAFETY: the kernel reads a structure of this size. A caller that is gone needs no answer.
        let _ = unsafe { libc::ioctl(self.listener.0.as_raw_fd(), SEND as _, &raw const answer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: a filter can't be taken off again.
    #[test]
    fn calls_are_refused_and_told_of_and_others_go_on() {
        let (told, listener) = std::sync::mpsc::channel();
        let filtered = std::thread::spawn(move || {
            // SAFETY: numbers only.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            told.send((Listener::install().unwrap(), rustix::thread::gettid())).unwrap();
            let refused: Vec<_> = [libc::SYS_shmget, libc::SYS_mq_open, libc::SYS_semtimedop]
                .map(|number| {
                    // SAFETY: refused before anything is done; null pointers besides.
                    let result = unsafe { libc::syscall(number, 0, 0, 0, 0) };
                    (result, io::Error::last_os_error().raw_os_error())
                })
                .into();
            assert!(std::fs::metadata("/").is_ok(), "others are as they were");
            refused
        });
        let (listener, tid) = listener.recv().unwrap();
        for call in ["shmget", "mq_open", "semtimedop"] {
            let refused = listener.next_call().unwrap();
            assert_eq!((refused.call, refused.tid), (call, tid.as_raw_nonzero().get() as u32));
        }
        assert_eq!(filtered.join().unwrap(), [(-1, Some(libc::ENOSYS)); 3]);
    }
}
