//! The C ABI of podshm: what `include/podshm.h` declares.
//!
//! ```text
//!   C ── pointers, lengths ──► exported function (safe) ── Ref, Data, Out … ──► border (unsafe) ── &T, &[u8] ──► podshm
//!     ◄─ podshm_result ─────── entry: panics and errors end here; the message stays with the thread
//! ```
//! Rules of this room:
//! * `unsafe` is in `border` alone; elsewhere the only unsafe word is the attribute that exports a name;
//! * exported functions take pointers as types that only C can make (`Ref`, `Mut`, `Own`, `Out`, `Data`, `Room`, `Text`, `User`), so that
//!   a safe function can take them on trust: whoever made them has promised what the header asks for;
//! * what can be noticed of a broken promise (null, misaligned, freed, another kind of handle, another thread) is an error;
//! * no panic crosses the border: functions go through `last::entry`, but for those that have nothing to fail by (`podshm_last_*`,
//!   `podshm_version`, `podshm_result_name`) and the common case of `podshm_key_get`, in which nothing panics;
//! * the header is generated from these sources: `scripts/c-header`.
#![allow(non_camel_case_types)]

mod border;
mod last;

mod result;

pub mod version;

mod client;

mod table;

mod key;

mod snapshot;

mod queue;

mod call;

mod pending;

mod builder;

mod agent;

mod handler;

mod answer;

mod waker;

mod writer;
