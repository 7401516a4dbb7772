//! Whose a handle is.

use crate::error::Error;
use podshm_region::fork;

/// The process that a handle is of, for bindings that keep handles behind locks of their own: in a forked child those may be held for
/// ever, by a thread that is not there.
#[derive(Clone, Copy, Debug)]
pub struct Process(u32);

impl Process {
    /// This one.
    pub fn this() -> Self {
        Process(fork::install())
    }

    /// [`Error::Forked`] in a child of it.
    pub fn check(self) -> Result<(), Error> {
        if fork::epoch() == self.0 { Ok(()) } else { Err(crate::client::forked()) }
    }
}
