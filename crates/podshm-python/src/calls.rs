//! Calls of one event loop: `podshm.aio` gives the descriptor to asyncio.
//!
//! ```text
//!   library's thread: response ─▶ Waker: token into `ready`, eventfd      (no interpreter, no waiting)
//!   event loop:       eventfd ─▶ Calls.ready(): polls those ─▶ [(token, response)]
//! ```

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use podshm::client::CallFuture;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::event::{EventfdFlags, eventfd};

use crate::border::Data;
use crate::call::Caller;
use crate::fault::{duration, raised};

/// Calls that are out, by number.
#[pyclass(frozen, module = "podshm")]
pub struct Calls {
    bell: Arc<Bell>,
    out: Mutex<HashMap<u64, CallFuture>>,
    next: AtomicU64,
}

struct Bell {
    event: OwnedFd,
    ready: Mutex<Vec<u64>>,
}

struct Rope {
    bell: Arc<Bell>,
    token: u64,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        let mut ready = lock(&self.bell.ready);
        ready.push(self.token);
        if ready.len() == 1 {
            // It can't be full: it is read before the list is taken.
            let _ = rustix::io::write(&self.bell.event, &1u64.to_ne_bytes());
        }
    }
}

/// What a call came to.
type Outcome<'py> = Result<Bound<'py, PyBytes>, PyErr>;

#[pymethods]
impl Calls {
    #[new]
    fn new() -> PyResult<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = event.map_err(|e| PyOSError::new_err(e.raw_os_error()))?;
        let bell = Arc::new(Bell { event, ready: Mutex::default() });
        Ok(Calls { bell, out: Mutex::default(), next: AtomicU64::new(1) })
    }

    /// Readable when `ready` has something.
    fn fileno(&self) -> i32 {
        self.bell.event.as_raw_fd()
    }

    /// Begins a call: its number, and its response where that is there at once.
    #[pyo3(signature = (caller, request, timeout))]
    fn begin<'py>(
        &self,
        py: Python<'py>,
        caller: &Caller,
        request: Data<'py>,
        timeout: Option<f64>,
    ) -> PyResult<(u64, Option<Bound<'py, PyBytes>>)> {
        let future = caller.call.get()?.call_async(request.bytes(py), duration(timeout)?);
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.out).insert(token, future);
        Ok((token, self.poll(py, token).transpose()?))
    }

    /// Calls that have come to an end: number, response, exception.
    #[allow(clippy::type_complexity)]
    fn ready<'py>(&self, py: Python<'py>) -> Vec<(u64, Option<Bound<'py, PyBytes>>, Option<PyErr>)> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.bell.event, &mut count);
        let ready = std::mem::take(&mut *lock(&self.bell.ready));
        let ended = ready.into_iter().filter_map(|token| self.poll(py, token).map(|outcome| (token, outcome)));
        ended
            .map(|(token, outcome)| match outcome {
                Ok(response) => (token, Some(response), None),
                Err(error) => (token, None, Some(error)),
            })
            .collect()
    }

    /// Nobody waits for this call any more.
    fn cancel(&self, token: u64) {
        let future = lock(&self.out).remove(&token);
        drop(future);
    }

    /// How many are out.
    fn __len__(&self) -> usize {
        lock(&self.out).len()
    }
}

impl Calls {
    fn poll<'py>(&self, py: Python<'py>, token: u64) -> Option<Outcome<'py>> {
        let mut out = lock(&self.out);
        let future = out.get_mut(&token)?;
        let waker = Waker::from(Arc::new(Rope { bell: Arc::clone(&self.bell), token }));
        let polled = Pin::new(future).poll(&mut Context::from_waker(&waker));
        let Poll::Ready(outcome) = polled else { return None };
        let ended = out.remove(&token);
        drop((out, ended));
        Some(outcome.map(|response| PyBytes::new(py, &response)).map_err(raised))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
