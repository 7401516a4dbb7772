//! The preload library for unmodified programs, and the messages that it exchanges with the daemon.
//!
//! ```text
//!  program ── shmget, shmat … ──► libpodshm-preload.so ── one connection per call ──► podshm-unmodified (in podshmd)
//!     │                                                ◄── descriptor of the segment ──┘
//!     └── loads and stores ──► the mapping: nothing of ours is on the way
//! ```
//! The third unsafe room. The library itself ([`LIBRARY`]) is another build of `library/`, made by `build.rs` from
//! `cdylib.rs`: it links to nothing, so that every dynamic program can load it, whatever its libc. This crate carries its
//! bytes, and has the same modules checked and unit-tested as ordinary Rust.
#![deny(missing_docs)]

#[doc(hidden)]
pub mod library;
pub mod wire;

/// The shared object, to be written where members can load it.
pub static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libpodshm-preload.so"));

/// What it is called.
pub const FILE_NAME: &str = "libpodshm-preload.so";

/// Path of the daemon's socket as the member sees it. Without this variable, and without such a socket in the directory that has the
/// library's own `lib`, the library does nothing of its own.
pub const SOCKET_ENV: &str = "PODSHM_SHM_SOCKET";

/// `mounted` where /dev/shm is the domain's; anything else has `shm_open` ask the daemon.
pub const POSIX_ENV: &str = "PODSHM_SHM_POSIX";
