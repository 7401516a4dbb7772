//! Calls.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use podshm::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::border::{Data, Room};
use crate::fault::{busy, closed, duration, raised};
use crate::slot::{Made, Slot};
use crate::waiting::waiting;

/// Answers up to this come by way of the stack.
const SMALL: usize = 4096;

/// The way to call the agent. For many threads.
#[pyclass(frozen, module = "podshm")]
pub struct Caller {
    pub(crate) call: Arc<Slot<podshm::Caller>>,
    pub(crate) made: Arc<Made>,
}

/// A call that is out.
#[pyclass(frozen, module = "podshm")]
pub struct Pending {
    pending: Arc<Slot<Mutex<Option<podshm::client::Pending>>>>,
}

#[pymethods]
impl Caller {
    /// Sends the request, waits for the response until `timeout`, and returns it.
    #[pyo3(signature = (request, *, timeout = 5.0))]
    fn call<'py>(&self, py: Python<'py>, request: Data<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyBytes>> {
        self.answered(py, request, timeout, |response| Ok(PyBytes::new(py, response)))
    }

    /// `call` whose response is copied into a buffer; returns its length.
    #[pyo3(signature = (request, buffer, *, timeout = 5.0))]
    fn call_into(&self, py: Python<'_>, request: Data<'_>, mut buffer: Room, timeout: Option<f64>) -> PyResult<usize> {
        // Not into the buffer as it comes: others may use that while this one waits.
        self.answered(py, request, timeout, |response| {
            let (needed, room) = (response.len(), buffer.bytes(py));
            let found = room.len();
            let room = room.get_mut(..needed).ok_or_else(|| raised(podshm::Error::BufferTooSmall { needed, found }))?;
            room.copy_from_slice(response);
            Ok(needed)
        })
    }

    /// Sends the request and returns at once, unless the ring is full, or no agent is there and it is to be waited for.
    #[pyo3(signature = (request, *, timeout = 5.0))]
    fn start(&self, py: Python<'_>, request: Data<'_>, timeout: Option<f64>) -> PyResult<Pending> {
        let (call, timeout, request) = (self.call.get()?, duration(timeout)?, request.lasting(py));
        let request = &*request;
        let pending = waiting(py, || call.start(request, timeout).map_err(raised))?;
        let pending = Slot::new("call", Mutex::new(Some(pending)));
        self.made.keep(&pending);
        Ok(Pending { pending })
    }

    /// A descriptor that becomes readable when responses may have come. Read 8 bytes of it before you look by `Pending.take`;
    /// `Pending.arm` asks for the next event. Programs with asyncio use `podshm.aio`.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.call.get()?.event_fd().map_err(raised)?.as_raw_fd())
    }
}

impl Caller {
    /// Calls, and gives the response to `then`.
    fn answered<R>(
        &self,
        py: Python<'_>,
        request: Data<'_>,
        timeout: Option<f64>,
        then: impl FnOnce(&[u8]) -> PyResult<R>,
    ) -> PyResult<R> {
        let (call, timeout, request) = (self.call.get()?, duration(timeout)?, request.lasting(py));
        let request = &*request;
        let mut small = [0; SMALL];
        let (mut large, mut taken) = (Vec::new(), 0);
        let fill = |offset: usize, place: &mut [u8]| place.copy_from_slice(&request[offset..offset + place.len()]);
        let len = waiting(py, || {
            let each = |offset: usize, total, part: &[u8]| {
                if total <= SMALL {
                    small[offset..offset + part.len()].copy_from_slice(part);
                } else {
                    // A successor answers again from the start.
                    large.truncate(offset);
                    large.extend_from_slice(part);
                }
                taken = offset + part.len();
            };
            call.call_with(request.len(), fill, timeout, each).map_err(raised)
        })?;
        then(if taken > SMALL { &large } else { &small[..len] })
    }
}

#[pymethods]
impl Pending {
    /// The response if it has come, else None.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let slot = self.pending.get()?;
        let mut held = slot.try_lock().map_err(|_| busy("call"))?;
        let pending = held.as_mut().ok_or_else(|| closed("call"))?;
        match pending.try_take() {
            Ok(None) => Ok(None),
            Ok(Some(response)) => {
                *held = None;
                Ok(Some(PyBytes::new(py, &response)))
            }
            Err(error) => {
                if error.kind() != ErrorKind::Reentered {
                    *held = None;
                }
                Err(raised(error))
            }
        }
    }

    /// Waits for the response until the call's deadline.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let slot = self.pending.get()?;
        let mut pending = slot.try_lock().map_err(|_| busy("call"))?.take().ok_or_else(|| closed("call"))?;
        let response = waiting(py, || pending.wait().map_err(raised))?;
        Ok(PyBytes::new(py, &response))
    }

    /// Asks for an event on the caller's descriptor with the next response. Look by `take` once more after this.
    fn arm(&self) -> PyResult<()> {
        if let Some(pending) = &*self.pending.get()?.try_lock().map_err(|_| busy("call"))? {
            pending.arm();
        }
        Ok(())
    }

    /// Nobody waits for the response any more; the agent may still handle the call.
    fn cancel(&self) {
        drop(self.pending.take());
    }
}
