//! What a domain does not have over the preload: semaphores and message queues. A private semaphore that guards shared memory
//! is corruption, so these fail with ENOSYS and point to native mode.

use super::log::{Cause, explain};
use super::sys::{errno, nr, raw};
use super::{domain, libc};
use core::ffi::{c_char, c_int};

fn refuse(number: usize, arguments: [usize; 4], cause: Cause, what: &[u8]) -> isize {
    if !domain::present() {
        let [a, b, c, d] = arguments;
        // SAFETY: the program's own call.
        return libc::to_c(unsafe { raw(number, [a, b, c, d, 0, 0]) });
    }
    explain(
        cause,
        &[what, b" can't be shared over the preload (ENOSYS); run the domain in native mode, which has them"],
    );
    libc::to_c(Err(errno::ENOSYS))
}

macro_rules! refused {
    ($($name:ident($($argument:ident),*) -> $result:ty = $number:ident, $cause:ident, $what:literal;)*) => {$(
        /// # Safety
        /// As of the system call of that name.
        #[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($argument: usize),*) -> $result {
            let mut arguments = [0usize; 4];
            for (slot, value) in arguments.iter_mut().zip([$($argument),*]) {
                *slot = value;
            }
            refuse(nr::$number, arguments, Cause::$cause, $what) as $result
        }
    )*};
}

// Arguments by register, as every one of them is passed on these architectures.
refused! {
    semget(key, count, flags) -> c_int = SEMGET, Semaphores, b"System V semaphores";
    semop(id, operations, count) -> c_int = SEMOP, Semaphores, b"System V semaphores";
    semtimedop(id, operations, count, timeout) -> c_int = SEMTIMEDOP, Semaphores, b"System V semaphores";
    semctl(id, index, command, argument) -> c_int = SEMCTL, Semaphores, b"System V semaphores";
    msgget(key, flags) -> c_int = MSGGET, Queues, b"System V message queues";
    msgsnd(id, message, size, flags) -> c_int = MSGSND, Queues, b"System V message queues";
    msgctl(id, command, buffer) -> c_int = MSGCTL, Queues, b"System V message queues";
}

/// # Safety
/// As of msgrcv(2).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn msgrcv(id: usize, message: usize, size: usize, kind: usize, flags: usize) -> isize {
    if domain::present() {
        return refuse(nr::MSGRCV, [0; 4], Cause::Queues, b"System V message queues");
    }
    // SAFETY: the program's own call.
    libc::to_c(unsafe { raw(nr::MSGRCV, [id, message, size, kind, flags, 0]) })
}

/// POSIX queues belong to the IPC namespace, which is the member's own here.
///
/// # Safety
/// As of mq_open(3).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn mq_open(name: *const c_char, flags: usize, mode: usize, attributes: usize) -> c_int {
    // SAFETY: the program says that it is a C string.
    if !domain::present() && unsafe { *name } as u8 != b'/' {
        return libc::to_c(Err(errno::EINVAL)) as c_int;
    }
    // The kernel wants the name without its slash.
    let name = (name as usize).wrapping_add(1);
    refuse(nr::MQ_OPEN, [name, flags, mode, attributes], Cause::Queues, b"POSIX message queues") as c_int
}

/// Named semaphores are files in /dev/shm: the domain's where that is mounted, private otherwise and so refused.
///
/// # Safety
/// As of sem_open(3).
#[cfg_attr(podshm_cdylib, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_open(name: *const c_char, flags: c_int, mode: usize, value: usize) -> *mut u8 {
    if domain::present() && !domain::posix_mounted() {
        explain(
            Cause::NamedSemaphores,
            &[b"sem_open: this member's /dev/shm is its own, and a semaphore there would be private (ENOSYS); mount the domain's as /dev/shm, as `podshm run` does in either mode, or run the domain in native mode"],
        );
        libc::set_errno(errno::ENOSYS);
        return core::ptr::null_mut();
    }
    match libc::next(c"sem_open") {
        0 => {
            libc::set_errno(errno::ENOSYS);
            core::ptr::null_mut()
        }
        real => {
            type SemOpen = unsafe extern "C" fn(*const c_char, c_int, ...) -> *mut u8;
            // SAFETY: the libc's sem_open, which has this type; its arguments are the program's own, and it reads of them
            // what the flags say.
            unsafe { core::mem::transmute::<usize, SemOpen>(real)(name, flags, mode, value) }
        }
    }
}
