//! Serving.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use podshm::{Progress as Made, process};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::border::Data;
use crate::fault::{busy, closed, duration, raised};
use crate::handler::Functions;
use crate::services::Services;
use crate::waiting::waiting;
use crate::writer::TableWriter;

/// Between two looks at signals and at `stop`.
const LOOK: Duration = Duration::from_millis(20);

/// What `Agent.poll` did.
#[pyclass(frozen, eq, eq_int, hash, module = "podshm")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Records or requests were handled.
    #[pyo3(name = "HANDLED")]
    Handled = 1,
    /// Nothing to do now.
    #[pyo3(name = "IDLE")]
    Idle = 2,
    /// A successor is ready: close the agent, and end.
    #[pyo3(name = "CLOSE_ASKED")]
    CloseAsked = 3,
}

impl From<Made> for Progress {
    fn from(made: Made) -> Self {
        match made {
            Made::Handled(_) => Progress::Handled,
            Made::Idle => Progress::Idle,
            Made::CloseAsked => Progress::CloseAsked,
        }
    }
}

/// Where the agent is, until it is closed. One thread at a time; its own handler finds it in use.
pub struct Place {
    /// Whose it is: in a forked child the lock may be held for ever, by a thread that is not there.
    process: u32,
    agent: Mutex<Option<podshm::Agent>>,
}

impl Place {
    fn check_fork(&self) -> PyResult<()> {
        if process::epoch() == self.process { Ok(()) } else { Err(raised(process::forked())) }
    }

    /// Uses it.
    pub fn with<R>(&self, work: impl FnOnce(&mut podshm::Agent) -> Result<R, podshm::Error>) -> PyResult<R> {
        // First: where another thread of the parent's had it, it is never let go of in the child.
        self.check_fork()?;
        match self.agent.try_lock() {
            Ok(mut agent) => work(agent.as_mut().ok_or_else(|| closed("agent"))?).map_err(raised),
            Err(TryLockError::WouldBlock) => Err(busy("agent")),
            Err(TryLockError::Poisoned(_)) => Err(closed("agent")),
        }
    }
}

/// A connected agent. It serves from `ready` on, once the broker lets it take over.
#[pyclass(frozen, module = "podshm")]
pub struct Agent(Arc<Place>);

#[pymethods]
impl Agent {
    #[new]
    #[pyo3(signature = (directory, services, *, timeout = 5.0))]
    fn new(py: Python<'_>, directory: PathBuf, services: &Services, timeout: Option<f64>) -> PyResult<Self> {
        let (builder, timeout) = (services.builder.clone(), duration(timeout)?);
        let agent = waiting(py, || builder.connect(directory, timeout).map_err(raised))?;
        Ok(Agent(Arc::new(Place { process: process::install(), agent: Mutex::new(Some(agent)) })))
    }

    /// The writer of the table of this name.
    fn table(&self, name: String) -> PyResult<TableWriter> {
        self.0.with(|agent| agent.table(&name).map(drop))?;
        Ok(TableWriter { agent: Arc::clone(&self.0), name })
    }

    /// Says that the tables are filled.
    fn ready(&self) -> PyResult<()> {
        self.0.with(podshm::Agent::ready)
    }

    /// One round: a bounded batch from each client that has something goes to the handler's `record`, `call` and `part`. What the first
    /// of them raised is raised when the round is over.
    fn poll(&self, py: Python<'_>, handler: &Bound<'_, PyAny>) -> PyResult<Progress> {
        let mut functions = Functions::new(handler)?;
        let progress = self.0.with(|agent| agent.poll(&mut functions));
        functions.outcome(py)?;
        Ok(progress?.into())
    }

    /// Sleeps until something comes, for at most `timeout`. While clients were busy a moment ago it returns at once.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = duration(Some(timeout))?;
        py.detach(|| self.0.with(|agent| agent.wait(timeout)))
    }

    /// Serves until `stop()` is true, which is asked every 20 ms at least, or a successor is ready; then closes in order, leaving no state.
    #[pyo3(signature = (handler, stop = None))]
    fn run(&self, py: Python<'_>, handler: &Bound<'_, PyAny>, stop: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let mut functions = Functions::new(handler)?;
        loop {
            let close_asked = py.detach(|| self.rounds(&mut functions));
            functions.outcome(py)?;
            py.check_signals()?;
            let stopped = stop.map(|stop| stop.call0()?.is_truthy()).transpose()?.unwrap_or(false);
            if close_asked? || stopped {
                return self.close(py, None);
            }
        }
    }

    /// Readable when there is something to do. Wait for it only after `park` has said True; don't read it.
    fn fileno(&self) -> PyResult<i32> {
        self.0.with(|agent| Ok(agent.event_fd().as_raw_fd()))
    }

    /// Gets ready to sleep on the descriptor, and looks once more: whether nobody has anything. If not, call `poll` again.
    fn park(&self) -> PyResult<bool> {
        self.0.with(podshm::Agent::park)
    }

    /// Seconds that the agent goes on polling after the last record before it sleeps; 50 us by default.
    fn set_spin(&self, spin: f64) -> PyResult<()> {
        let spin = duration(Some(spin))?;
        self.0.with(|agent| {
            agent.set_spin(spin);
            Ok(())
        })
    }

    /// How many agents have served the domain up to this one; 0 before it serves.
    #[getter]
    fn epoch(&self) -> PyResult<u64> {
        self.0.with(|agent| Ok(agent.epoch()))
    }

    /// Clients that are served now.
    #[getter]
    fn clients(&self) -> PyResult<usize> {
        self.0.with(|agent| Ok(agent.clients()))
    }

    /// What the predecessor left by `close`: None before this agent serves, empty after a crash.
    #[getter]
    fn inherited_state<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let state = self.0.with(|agent| Ok(agent.inherited_state().map(<[u8]>::to_vec)))?;
        Ok(state.map(|state| PyBytes::new(py, &state)))
    }

    /// Finishes what is in hand, closes every ring where it stands, leaves `state` to the successor and hangs up.
    #[pyo3(signature = (state = None))]
    fn close(&self, py: Python<'_>, state: Option<Data<'_>>) -> PyResult<()> {
        let state = state.map(|state| state.bytes(py).to_vec()).unwrap_or_default();
        py.detach(|| self.0.with(|agent| agent.close(state)))?;
        self.drop_it(py)
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// Closes in order; after an exception it hangs up as one that has crashed, so that what was in hand is not taken for handled.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let open = self.0.agent.try_lock().is_ok_and(|agent| agent.is_some());
        match (open, kind.is_none()) {
            (true, true) => self.close(py, None),
            _ => self.drop_it(py),
        }
    }
}

impl Agent {
    /// Some rounds without the interpreter's lock; the handler takes it for each of its calls. Whether a successor is ready.
    fn rounds(&self, functions: &mut Functions) -> PyResult<bool> {
        let begun = Instant::now();
        let mut handled = 0u32;
        while !functions.has_failed() {
            let made = self.0.with(|agent| {
                let made = agent.poll(functions)?;
                if made == Made::Idle {
                    agent.wait(LOOK)?;
                }
                Ok(made)
            })?;
            handled = handled.wrapping_add(1);
            match made {
                Made::CloseAsked => return Ok(true),
                Made::Idle if begun.elapsed() >= LOOK => break,
                _ if handled.is_multiple_of(64) && begun.elapsed() >= LOOK => break,
                _ => {}
            }
        }
        Ok(false)
    }

    fn drop_it(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| match self.0.agent.try_lock() {
            Ok(mut agent) => {
                drop(agent.take());
                Ok(())
            }
            Err(_) => self.0.check_fork().and(Err(busy("agent"))),
        })
    }
}
