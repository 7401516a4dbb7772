//! What an agent's author writes in Python, and what it gets.

use std::sync::{Mutex, MutexGuard, PoisonError};

use podshm::{Answer, Deferred};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::border::Data;

/// What a caller gets whose handler failed or said nothing.
const FAILED: u32 = 1;

/// A record of a queue. It is acknowledged when the handler returns.
#[pyclass(frozen, get_all, module = "podshm")]
pub struct Record {
    /// The queue's name.
    service: Py<PyString>,
    /// Who pushed it.
    member: Py<PyString>,
    /// Number of the client that pushed it.
    client: u64,
    /// Its position in the client's ring: with the client's number, its identity.
    position: u64,
    /// A predecessor that died may have handled it already.
    maybe_seen: bool,
    /// Its bytes, copied once: from the client's memory to here.
    data: Py<PyBytes>,
}

/// A request. What the handler returns is the answer.
#[pyclass(frozen, get_all, module = "podshm")]
pub struct Request {
    /// The call's name.
    service: Py<PyString>,
    /// Who sent it.
    member: Py<PyString>,
    /// Number of the client that sent it.
    client: u64,
    /// A predecessor that died may have handled it already (only where the call is idempotent).
    maybe_seen: bool,
    /// Seconds that its caller waits from now on; None for no end.
    time_left: Option<f64>,
    /// Length of all of it.
    total: usize,
    /// Its bytes, or those of this part; none where `part` took them as they came.
    data: Py<PyBytes>,
}

/// An answer that comes later: returned by a handler in place of one, and given by any thread.
#[pyclass(frozen, module = "podshm")]
pub struct Later(Mutex<State>);

/// A response, or the status of a failure.
type Given = Result<Vec<u8>, u32>;

enum State {
    /// Not returned by a handler yet.
    Unbound,
    /// Its caller waits.
    Bound(Deferred),
    /// Given before the handler returned.
    Early(Given),
    Given,
}

#[pymethods]
impl Later {
    #[new]
    fn new() -> Self {
        Later(Mutex::new(State::Unbound))
    }

    /// Answers.
    fn reply(&self, py: Python<'_>, response: Data<'_>) -> PyResult<()> {
        self.give(Ok(response.bytes(py).to_vec()))
    }

    /// Says that the call failed, with a status of the agent's own from 16 on; 1 for no more than that.
    #[pyo3(signature = (status = 1))]
    fn fail(&self, status: u32) -> PyResult<()> {
        self.give(Err(status))
    }
}

impl Later {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, given: Given) -> PyResult<()> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Given) {
            State::Unbound => *state = State::Early(given),
            State::Bound(deferred) => match given {
                Ok(response) => deferred.reply(response),
                Err(status) => deferred.fail(status),
            },
            before => {
                *state = before;
                return Err(PyValueError::new_err("this call has been answered already"));
            }
        }
        Ok(())
    }

    fn bind(&self, answer: &mut Answer<'_>) -> PyResult<()> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Given) {
            State::Unbound => *state = State::Bound(answer.defer()),
            State::Early(Ok(response)) => answer.reply_owned(response),
            State::Early(Err(status)) => answer.fail(status),
            before => {
                *state = before;
                return Err(PyValueError::new_err("this Later is another call's answer"));
            }
        }
        Ok(())
    }
}

/// The functions of a handler. Each takes the interpreter's lock for itself.
pub struct Functions {
    record: Option<Py<PyAny>>,
    call: Option<Py<PyAny>>,
    part: Option<Py<PyAny>>,
    /// Names come again and again.
    service: Option<Py<PyString>>,
    member: Option<Py<PyString>>,
    failed: Option<PyErr>,
}

impl Functions {
    /// Those that `handler` has.
    pub fn new(handler: &Bound<'_, PyAny>) -> PyResult<Self> {
        let find = |name: &str| -> PyResult<Option<Py<PyAny>>> {
            let found = handler.getattr_opt(name)?;
            Ok(found.filter(|found| !found.is_none()).map(Bound::unbind))
        };
        let (record, call, part) = (find("record")?, find("call")?, find("part")?);
        if record.is_none() && call.is_none() && part.is_none() {
            return Err(PyTypeError::new_err(
                "a handler has at least one of the methods record, call and part; this has none",
            ));
        }
        Ok(Functions { record, call, part, service: None, member: None, failed: None })
    }

    /// Whether one of them has raised.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// What the first of them has raised.
    pub fn outcome(&mut self, _py: Python<'_>) -> PyResult<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn keep(&mut self, failed: PyErr) {
        self.failed.get_or_insert(failed);
    }

    fn request(&mut self, py: Python<'_>, request: &podshm::Request<'_>) -> Request {
        let &podshm::Request { client, maybe_seen, time_left, len: total, bytes, .. } = request;
        Request {
            service: named(py, &mut self.service, request.service),
            member: named(py, &mut self.member, request.member),
            client,
            maybe_seen,
            time_left: (time_left.as_secs() < u64::from(u32::MAX)).then_some(time_left.as_secs_f64()),
            total,
            data: PyBytes::new(py, bytes).unbind(),
        }
    }

    fn answer(&mut self, py: Python<'_>, request: &podshm::Request<'_>, answer: &mut Answer<'_>) -> PyResult<()> {
        let asked = self.request(py, request);
        let Some(call) = &self.call else { return Ok(()) };
        let response = call.bind(py).call1((asked,))?;
        if response.is_none() {
            return Ok(());
        }
        if let Ok(later) = response.cast::<Later>() {
            return later.get().bind(answer);
        }
        answer.reply(response.extract::<Data<'_>>()?.bytes(py));
        Ok(())
    }
}

impl podshm::Handler for Functions {
    fn record_in_place(
        &mut self,
        record: podshm::Record<'_>,
        len: usize,
        copy: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> bool {
        Python::attach(|py| {
            let Some(function) = &self.record else { return false };
            let function = function.clone_ref(py);
            let mut is_ours = true;
            let data = PyBytes::new_with(py, len, |place| {
                is_ours = copy(place);
                Ok(())
            });
            if !is_ours {
                return true;
            }
            let handled = data.and_then(|data| {
                let record = Record {
                    service: named(py, &mut self.service, record.service),
                    member: named(py, &mut self.member, record.member),
                    client: record.client,
                    position: record.position,
                    maybe_seen: record.maybe_seen,
                    data: data.unbind(),
                };
                function.call1(py, (record,))
            });
            if let Err(error) = handled {
                self.keep(error);
            }
            true
        })
    }

    fn call(&mut self, request: podshm::Request<'_>, answer: &mut Answer<'_>) {
        Python::attach(|py| {
            if let Err(error) = self.answer(py, &request, answer) {
                match error.value(py).getattr("podshm_status").and_then(|status| status.extract::<u32>()) {
                    // A handler that says so by `podshm.Fail`.
                    Ok(status) => answer.fail(status),
                    Err(_) => {
                        answer.fail(FAILED);
                        self.keep(error);
                    }
                }
            }
        });
    }

    fn part(&mut self, request: podshm::Request<'_>, offset: usize) -> bool {
        Python::attach(|py| {
            let part = self.request(py, &request);
            let Some(function) = &self.part else { return false };
            let taken = function.bind(py).call1((part, offset)).and_then(|taken| taken.is_truthy());
            taken.unwrap_or_else(|error| {
                self.keep(error);
                false
            })
        })
    }
}

/// A name as Python has it; the one before is mostly the same.
fn named(py: Python<'_>, last: &mut Option<Py<PyString>>, name: &str) -> Py<PyString> {
    match last {
        Some(known) if known.bind(py).to_str().is_ok_and(|known| known == name) => known.clone_ref(py),
        _ => last.insert(PyString::new(py, name).unbind()).clone_ref(py),
    }
}
