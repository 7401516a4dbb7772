//! Fast shared memory between pods on the same node, without giving up the pods' isolation.
//!
//! An *agent* serves a domain; *clients* in other pods use it through three kinds of service:
//!
//! ```text
//!  Table   agent ──► clients   key to value, wait-free lookups
//!  Queue   clients ──► agent   records, each delivered at least once
//!  Call    client ⇄ agent      request and response with deadlines
//! ```
//! A broker makes the memory and gives each participant what it may write and what it may read; the kernel keeps it so.
//! No data path makes a system call unless somebody sleeps.
#![forbid(unsafe_code)]

mod absence;
pub mod agent;
mod broker_socket;
pub mod client;
mod clock;
mod doorbell;
mod error;
mod frames;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod stop;
mod wakes;

pub use agent::{
    Agent, AgentBuilder, AgentWaker, Answer, DEFAULT_CALL_RING, DEFAULT_RING, Deferred, Handler, Progress, Record,
    Request, TableWriter,
};
pub use client::{Caller, Client, Key, QueueSender, Spin, Table};
pub use error::{Error, ErrorKind};
pub use podshm_proto::ServiceKind;
#[doc(hidden)]
pub use podshm_region::place::{this_number, this_place};
/// Which process this is, and what a handle of another one says: for borders to other languages, whose own state needs it too.
#[doc(hidden)]
pub mod process {
    pub use crate::client::forked;
    pub use podshm_region::fork::{epoch, install};
}
/// Named steps at which a test can stop or kill this process.
#[cfg(feature = "steps")]
pub use podshm_region::steps;
pub use wakes::WakeStats;
