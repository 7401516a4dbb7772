//! What a business program uses to pick endpoints and report on them.
//!
//! ```text
//! route agent ── table: RouteKey → route value ──▶ pick() ──▶ call the endpoint
//!      ▲                                                            │
//!      └────────────── queue: 48-byte Report ◀── report ────────────┘
//! ```
//!
//! [`RouteClient`] joins a domain and does all of this over shared memory. The other modules are pure: they know the bytes
//! that both sides agree on and nothing about shared memory. [`pick()`] reads a route value through [`ReadAt`], so the same code runs over a `&[u8]` and over a table's guard in a region that the
//! agent may be rewriting. Nothing read is trusted: whatever the bytes are, the answer is an endpoint or an error.
#![forbid(unsafe_code)]

pub mod client;
pub mod key;
pub mod pick;
pub mod report;
pub mod wire;

pub use client::{ClientError, ClientErrorKind, RouteClient, RouteHandle};
pub use key::{KeyError, RouteKey};
pub use pick::{Choice, Locality, PickError, Picked, Random, SmallRandom, Why, pick};
pub use report::{Outcome, Report, ReportError, Trailer};
pub use wire::{Address, Endpoint, ReadAt, Record, Route, WireError};

/// The full weight of a healthy endpoint. An endpoint that comes back after an ejection has less; 0 is ejected.
pub const FULL_WEIGHT: u16 = 256;

/// The longest route value in bytes, which is also the longest value that a podshm table takes.
pub const MAX_VALUE_LEN: usize = 64 * 1024;
