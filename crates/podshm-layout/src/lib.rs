//! The bytes in podshm's shared memory, and the algorithms over them.
//!
//! ```text
//!   client's region C (client writes)          agent's region A, one per client (agent writes)
//!  ┌────────┬───────┬─────────┬─────────┐     ┌────────┬───────┬─────────┬───────────┐
//!  │ header │ armed │ cursors │ rings   │     │ header │ armed │ cursors │ rings     │
//!  │        │       │ of A's  │ queues, │     │        │       │ of C's  │ responses │
//!  │        │       │ rings   │ requests│     │        │       │ rings   │           │
//!  └────────┴───────┴─────────┴─────────┘     └────────┴───────┴─────────┴───────────┘
//!   table region T (agent writes, all read)    notice page N (broker writes, all read)
//! ```
//!
//! Everything here is generic over [`Load`] and [`Store`], so that the same code runs over a mapped region, over plain
//! memory in property tests and over loom's atomics in models. Nothing here does I/O, allocates for a reader, or is `unsafe`.
//!
//! Rules for every reader, because a peer's memory is bad input:
//! * each shared word is loaded once, into a local, and checked there;
//! * positions and lengths are checked against the geometry that the *broker* told, never against the region's own header;
//! * a check that fails is an error value that names offset, expected and found; it never panics.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom, feature = "steps"))]
extern crate std;

pub mod cursor;
pub mod geometry;
pub mod header;
pub mod heap;
pub mod layouts;
pub mod mem;
pub mod ring;
pub mod step;
pub mod sync;
pub mod table;
pub mod wake;

pub use geometry::{ChannelGeometry, GeometryError, RingGeometry, TableGeometry};
pub use header::{HeaderError, RegionHeader, RegionKind};
pub use layouts::{Layout, Layouts, UnknownLayout};
pub use mem::{Load, Store};

/// The layout that this release writes when every participant of a domain speaks it.
pub const LAYOUT_VERSION: u32 = Layout::NEWEST.number();
/// The oldest layout that this release reads and writes.
pub const LAYOUT_OLDEST: u32 = Layout::OLDEST.number();
/// Bytes of a cache line; words that different processes write never share one.
pub const CACHE_LINE: usize = 64;
/// Bytes of a page; regions are whole pages.
pub const PAGE: usize = 4096;
