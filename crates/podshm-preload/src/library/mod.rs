//! The library's modules, without std and without libc.
//!
//! ```text
//!  sysv.rs posix.rs refused.rs   the functions that programs call
//!  fork.rs                       what fork means for attachments
//!  attachments.rs maps.rs        what is attached here, and what of it is still mapped
//!  call.rs domain.rs             the daemon; whether there is a domain at all
//!  libc.rs sys.rs lock.rs log.rs errno, system calls, a futex lock, one line on stderr
//! ```
//! Rules of this room: nothing is kept open between calls (programs close descriptors that they don't know, and put others
//! in their place); nothing is allocated but by mmap; signals are blocked while the lock is held; no call ever falls back
//! to the kernel's own System V memory once there is a domain.

pub mod attachments;
pub mod call;
pub mod domain;
pub mod fork;
pub mod libc;
pub mod lock;
pub mod log;
pub mod maps;
pub mod posix;
pub mod refused;
pub mod sys;
pub mod sysv;
