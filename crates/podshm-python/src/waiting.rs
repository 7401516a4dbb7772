//! Ctrl-C while something waits.
//!
//! ```text
//!   waiting ─▶ lock let go ─▶ wait of the library ──each 50 ms──▶ heard: lock taken, Python's handlers run
//!                                    ▲                               │ one raised: the wait ends,
//!                                    └──────────── it did not ◀──────┘ and that is what is raised
//! ```

use std::cell::RefCell;

use podshm::stop;
use pyo3::prelude::*;

thread_local! {
    static HEARD: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Works without the interpreter's lock. Where the handler of a signal raises meanwhile, no wait in it goes on.
pub fn waiting<R: Send>(py: Python<'_>, work: impl FnOnce() -> PyResult<R> + Send) -> PyResult<R> {
    let done = py.detach(|| stop::unless(heard, work));
    match HEARD.take() {
        Some(raised) => Err(raised),
        None => done,
    }
}

/// Python runs handlers in its main thread only: no other has to take the lock for it.
fn heard() -> bool {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return false;
    }
    Python::attach(|py| match py.check_signals() {
        Ok(()) => false,
        Err(raised) => {
            HEARD.set(Some(raised));
            true
        }
    })
}
