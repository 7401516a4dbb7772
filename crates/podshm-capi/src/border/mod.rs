//! Where pointers of C's become references: everything unsafe of this crate.
//!
//! The types here have no constructor: a value of one comes from a call by C. That call is the caller's promise to keep the
//! header's rules, and each safety comment below rests on one of them:
//!
//! * **alive**: a handle is one that this library gave out and that has not been freed, until the function returns;
//! * **bytes**: the length that follows a pointer to bytes is what may be read there (`Data`) or written (`Room`), and nobody
//!   else changes it until the function returns;
//! * **place**: an out-parameter is null or points to a place for one value of its type;
//! * **callback**: a callback may be called with the user pointer beside it, and returns (it doesn't unwind or jump out).

mod batch;
mod bound;
mod callback;
mod handle;
mod offered;
mod pointers;

pub use callback::{Each, Fill, Stop, User, podshm_each, podshm_fill, podshm_release, podshm_stop};
pub use handle::{Mut, Own, Ref};
pub use offered::Table;
pub use pointers::{Data, Len, Out, Room, Runs, Text};

pub(crate) use batch::OwnedBatch;
pub(crate) use bound::Bound;
pub(crate) use offered::Offered;

/// What a function of ours returns as text.
#[cfg(test)]
pub(crate) fn text_that_is_given(text: *const std::ffi::c_char) -> String {
    // SAFETY: never null, ends with a zero byte, and valid until this thread's next error.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_str().unwrap().to_owned()
}
