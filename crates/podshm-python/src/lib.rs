//! The Python module `podshm._podshm`; what programs import is `python/podshm`.
//!
//! ```text
//!   Python ── bytes, buffers ──► class of this crate ──► podshm
//!      ▲        the interpreter's lock is let go while anything waits (waiting: Ctrl-C is heard meanwhile)
//!      └── exception of the error's kind (python/podshm/errors.py)
//! ```
//! * Handles are closed by `with`, or by their client's: `slot`.
//! * A value or a record is copied once, out of the shared memory into the `bytes` that Python gets; numpy takes those as they are.
//! * No thread of the library ever waits for the interpreter's lock; none that has it waits for a thread that needs it.
//! * `unsafe` is in `border` alone: memory that Python's buffer protocol lends.

mod agent;
mod border;
mod call;
mod calls;
mod client;
mod fault;
mod handler;
mod queue;
mod services;
mod slot;
mod table;
mod waiting;
mod writer;

use pyo3::prelude::*;

#[pymodule]
fn _podshm(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("DEFAULT_RING", podshm::DEFAULT_RING)?;
    module.add("DEFAULT_CALL_RING", podshm::DEFAULT_CALL_RING)?;
    module.add_class::<client::Client>()?;
    module.add_class::<table::Table>()?;
    module.add_class::<table::Key>()?;
    module.add_class::<table::Value>()?;
    module.add_class::<table::Snapshot>()?;
    module.add_class::<queue::Queue>()?;
    module.add_class::<call::Caller>()?;
    module.add_class::<call::Pending>()?;
    module.add_class::<calls::Calls>()?;
    module.add_class::<services::Services>()?;
    module.add_class::<agent::Agent>()?;
    module.add_class::<agent::Progress>()?;
    module.add_class::<writer::TableWriter>()?;
    module.add_class::<handler::Record>()?;
    module.add_class::<handler::Request>()?;
    module.add_class::<handler::Later>()
}
