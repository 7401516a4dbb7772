//! What an agent offers.

use podshm::{Agent, AgentBuilder};
use pyo3::prelude::*;

/// What an agent offers: a table, a queue, a call, in this order. Each method returns the object, so that they chain.
#[pyclass(module = "podshm")]
#[derive(Default)]
pub struct Services {
    pub(crate) builder: AgentBuilder,
}

#[pymethods]
impl Services {
    #[new]
    fn new() -> Self {
        Services { builder: Agent::builder() }
    }

    /// A table with room for so many keys whose records take so many bytes in all; it grows when that is not enough.
    #[pyo3(signature = (name, *, keys, bytes))]
    fn table<'py>(mut this: PyRefMut<'py, Self>, name: &str, keys: u64, bytes: u64) -> PyRefMut<'py, Self> {
        this.change(|builder| builder.table(name, keys, bytes));
        this
    }

    /// A queue with a ring of so many bytes in each client, for records up to `longest`.
    #[pyo3(signature = (name, *, ring = podshm::DEFAULT_RING, longest))]
    fn queue<'py>(mut this: PyRefMut<'py, Self>, name: &str, ring: u32, longest: u32) -> PyRefMut<'py, Self> {
        this.change(|builder| builder.queue(name, ring, longest));
        this
    }

    /// A call with a ring of so many bytes each way, for requests and responses up to `longest`, which is at most 1 GiB. Idempotent:
    /// a successor repeats what its predecessor may have handled.
    #[pyo3(signature = (name, *, ring = podshm::DEFAULT_CALL_RING, longest, idempotent = false))]
    fn call<'py>(
        mut this: PyRefMut<'py, Self>,
        name: &str,
        ring: u32,
        longest: u32,
        idempotent: bool,
    ) -> PyRefMut<'py, Self> {
        this.change(|builder| {
            if idempotent { builder.idempotent_call(name, ring, longest) } else { builder.call(name, ring, longest) }
        });
        this
    }
}

impl Services {
    fn change(&mut self, change: impl FnOnce(AgentBuilder) -> AgentBuilder) {
        self.builder = change(std::mem::take(&mut self.builder));
    }
}
