//! Regions: sealed memory with one writer, and everything `unsafe` about them.
//!
//! ```text
//!   broker                       writer                        reader
//!   Memory::create ── fd ──────► WriteMap::map
//!                  ◄── "mapped" ─┘
//!   Memory::seal (SEAL_FUTURE_WRITE | SEAL_SEAL, refill, check blocks)
//!                  ── fd ────────────────────────────────────► ReadMap::map (checks seals, size, blocks)
//! ```
//! Rules of this room:
//! * memory that another process can write is touched only through raw pointers: aligned atomic words and [`copy`] for bytes;
//!   there is no reference to it, ever;
//! * memory that only this process can write may be lent as `&mut [u8]` from a [`Window`] that owns those bytes alone;
//! * a mapping can't shrink under us: it is made only of a memfd that carries `F_SEAL_SHRINK`;
//! * mappings are not inherited by a forked child; [`mod@fork`] tells a child that it is one.
#![deny(missing_docs)]

pub mod barrier;
pub mod biased;
pub mod copy;
pub mod descriptors;
pub mod fork;
pub mod futex;
pub mod locks;
pub mod map;
pub mod memory;
pub mod peer;
pub mod place;
pub mod seccomp;
#[cfg(feature = "steps")]
pub mod steps;
pub mod sysv;

pub use map::{ReadMap, Window, WriteMap};
pub use memory::{Memory, MemoryId, RegionError};
