//! A node agent that answers authorization requests from Cedar policies.
//!
//! ```text
//!  directory ─ Bundle ─▶ Policies ──▶ Shared ◀── Server ◀─ call "decide" ─ business pods
//!     ▲                     │ bad: the last good ones stay       ▲
//!     └── Watch: inotify ───┘ and the log and the health say so  └─ call "health"
//! ```
//! [`serve`] ties it to a podshm domain; [`watch`] follows the directory in a thread of its own; [`policies`] is pure. Who asks is who
//! the broker says it is, never what the question says: policies find it in `context.podshm`, and as the principal where none is named.
//! Whatever a question is, the answer is a verdict, or that there is none and why; nobody else is affected.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod health;
pub mod policies;
pub mod serve;
pub mod watch;

pub use bundle::{Bundle, BundleError};
pub use health::{Health, Stats};
pub use policies::{Policies, PolicyError};
pub use serve::{Config, ServeError, Server, Step};
pub use watch::{Shared, Watch};
