//! What the fuzz targets do: each is a function of bytes that asserts something, over everything that decodes a peer's bytes.
//!
//! ```text
//!  fuzz/fuzz_targets/NAME.rs ──┐ (nightly, libFuzzer: make fuzz)
//!                              ├──► podshm_fuzz::NAME(bytes) ──► the code under test, beside a plain model of it
//!  tests/seeds.rs ─────────────┘ (stable: make test replays fuzz/seeds/NAME/*)
//! ```
//! A target takes its input as *choices* (`input::Input`), so that any bytes are a valid run and a small change of bytes is a
//! small change of the run. "No crash" is never all that it asserts: work is counted, errors must name what was found, and
//! wherever the peer happened to be honest the outcome must be the model's.
#![forbid(unsafe_code)]

mod agent;
mod broker;
mod client;
mod cursors;
mod frames;
mod health;
mod input;
mod live;
mod messages;
mod producer;
mod racing;
mod region;
mod ring;
mod route;
mod slices;
mod table;

pub use agent::agent;
pub use broker::broker;
pub use client::client;
pub use cursors::cursors;
pub use frames::frames;
pub use health::health;
pub use messages::messages;
pub use producer::producer;
pub use region::region;
pub use ring::ring;
pub use route::route;
pub use slices::slices;
pub use table::table;

/// A target: a name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by the name that its program and its seeds have.
pub const TARGETS: &[Target] = &[
    ("agent", agent),
    ("broker", broker),
    ("client", client),
    ("cursors", cursors),
    ("frames", frames),
    ("health", health),
    ("messages", messages),
    ("producer", producer),
    ("region", region),
    ("ring", ring),
    ("route", route),
    ("slices", slices),
    ("table", table),
];
