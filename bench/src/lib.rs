//! podshm beside its peers, in one run.
//!
//! ```text
//!   podshm-bench (core 0)                   podshm-bench peer (core 1)
//!   ┌──────────────────────┐    control     ┌──────────────────────┐
//!   │ Row::measure         │◄──────────────►│ Row::serve           │
//!   │  or Session::rtt, …  │◄══════════════►│  or serve_pipe       │
//!   └──────────────────────┘ what is timed  └──────────────────────┘
//!      for each round: for each row: a fresh peer process, every metric of the row
//! ```
//!
//! Rounds are interleaved over all rows (A B C A B C …), and a ratio is the median over rounds of
//! a row's figure divided by its baseline's *in the same round*, so that a machine that slows down
//! half-way doesn't tilt it. How far apart the cores are is measured around each row ([`placement`]),
//! and rounds of near and of far cores are added up, reported and judged apart ([`outcome`]). The sender writes every payload byte and the receiver sums it; sums
//! are checked, so a transport that skips work fails instead of winning.
//!
//! # Adding a row
//!
//! One file in `rows/`, one line in [`rows::all`]. Pick the smallest that fits:
//!
//! - **Both ends are `send` and `recv`** (rings, sockets): implement [`transport::Pipe`] for one
//!   end, and [`transport::Transport`] whose `connect` returns
//!   [`transport::PipeSession`] and whose `serve` calls [`transport::serve_pipe`].
//!   `rows/unix_stream.rs` is the shortest example.
//! - **Calls and queues are different things** (podshm, request-response): implement
//!   [`transport::Transport`] and [`transport::Session`] yourself. In the `connect` half send the
//!   peer what it needs through [`control::Control`] (any serde value, or a descriptor), and in
//!   each `Session` method tell it what to do with a [`transport::Order`];
//!   [`transport::timed_rtt`] and [`transport::timed_oneway`] size the run and take the times.
//!   `rows/iceoryx2_reqres.rs` is the example.
//! - **Not a message transport** (table reads, look-ups by key, join time, memory a client costs):
//!   implement [`row::Row`] directly: `metrics` says what it yields, `measure` yields one
//!   [`row::Sample`] of each. `rows/seqlock.rs` has a peer that writes at 1 kHz (reuse
//!   [`record::write_at_1_khz`]), `rows/hashbrown_map.rs` has none; take keys, values and the
//!   query order from [`routes`] so that content is the same.
//!
//! What a row must reach is said beside it, in [`row::Row::targets`]; the report prints each as
//! met or missed, and a target marked `fatal` fails the run.

pub mod cli;
pub mod clock;
pub mod control;
pub mod harness;
pub mod machine;
pub mod metric;
pub mod outcome;
pub mod payload;
pub mod peer;
pub mod placement;
pub mod record;
pub mod report;
pub mod routes;
pub mod row;
pub mod rows;
pub mod shm;
pub mod transport;
pub mod watchdog;
