//! Joining.

use std::path::PathBuf;
use std::sync::Arc;

use podshm::Spin;
use pyo3::prelude::*;

use crate::call::Caller;
use crate::fault::{duration, raised};
use crate::queue::Queue;
use crate::slot::{Close, Made, Slot};
use crate::table::Table;
use crate::waiting::waiting;

/// A joined client. For many threads.
#[pyclass(frozen, module = "podshm")]
pub struct Client {
    client: Arc<Slot<podshm::Client>>,
    made: Arc<Made>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (directory, *, timeout = 5.0))]
    fn new(py: Python<'_>, directory: PathBuf, timeout: Option<f64>) -> PyResult<Self> {
        let timeout = duration(timeout)?;
        let client = waiting(py, || podshm::Client::join(directory, timeout).map_err(raised))?;
        Ok(Client { client: Slot::new("client", client), made: Arc::default() })
    }

    /// The table of this name.
    fn table(&self, name: &str) -> PyResult<Table> {
        let table = Slot::new("table", self.client.get()?.table(name).map_err(raised)?);
        self.made.keep(&table);
        Ok(Table { table, made: Arc::clone(&self.made) })
    }

    /// The queue of this name.
    fn queue(&self, name: &str) -> PyResult<Queue> {
        let queue = Slot::new("queue", self.client.get()?.queue(name).map_err(raised)?);
        self.made.keep(&queue);
        Ok(Queue { queue })
    }

    /// The call of this name. `spin`: seconds that a wait spins before it sleeps, `math.inf` for ever. `wait_for_agent`: a call that comes
    /// while no agent serves waits for the next one within its timeout, in place of `AgentAwayError` at once.
    #[pyo3(signature = (name, *, spin = None, wait_for_agent = false))]
    fn call(&self, name: &str, spin: Option<f64>, wait_for_agent: bool) -> PyResult<Caller> {
        let mut call = self.client.get()?.call(name).map_err(raised)?.wait_for_agent(wait_for_agent);
        if let Some(seconds) = spin {
            call = call.spin(match seconds {
                0.0 => Spin::Never,
                f64::INFINITY => Spin::Always,
                _ => Spin::For(duration(spin)?),
            });
        }
        let call = Slot::new("call", call);
        self.made.keep(&call);
        Ok(Caller { call, made: Arc::clone(&self.made) })
    }

    /// This client's number in the domain, as the agent sees it.
    #[getter]
    fn id(&self) -> PyResult<u64> {
        Ok(self.client.get()?.id())
    }

    /// The domain's name.
    #[getter]
    fn domain(&self) -> PyResult<String> {
        Ok(self.client.get()?.domain().to_owned())
    }

    /// Who this pod is, as the broker knows it.
    #[getter]
    fn member(&self) -> PyResult<String> {
        Ok(self.client.get()?.member().to_owned())
    }

    /// How many agents have served this domain so far.
    fn agent_epoch(&self) -> PyResult<u64> {
        self.client.get()?.agent_epoch().map_err(raised)
    }

    /// Whether the agent has not hung up.
    fn agent_present(&self) -> PyResult<bool> {
        Ok(self.client.get()?.agent_present())
    }

    /// Leaves. What was made of this client is closed, too.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            self.made.close();
            self.client.close();
        });
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}
