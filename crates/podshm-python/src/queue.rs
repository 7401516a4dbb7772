//! Pushing records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podshm::{ErrorKind, QueueSender};
use pyo3::prelude::*;
use pyo3::types::PyAny;

use crate::border::Data;
use crate::fault::{duration, raised};
use crate::slot::Slot;

/// The way to a queue of the agent's. For many threads.
#[pyclass(frozen, module = "podshm")]
pub struct Queue {
    pub(crate) queue: Arc<Slot<QueueSender>>,
}

#[pymethods]
impl Queue {
    /// Accepts the record now, or raises FullError. Returns its position.
    fn try_push(&self, py: Python<'_>, record: Data<'_>) -> PyResult<u64> {
        self.queue.get()?.try_push(record.bytes(py)).map_err(raised)
    }

    /// Accepts the record, waiting for room until `timeout`.
    #[pyo3(signature = (record, *, timeout = 5.0))]
    fn push(&self, py: Python<'_>, record: Data<'_>, timeout: Option<f64>) -> PyResult<u64> {
        let (queue, timeout) = (self.queue.get()?, duration(timeout)?);
        match queue.try_push(record.bytes(py)) {
            Err(error) if error.kind() == ErrorKind::Full => {}
            other => return other.map_err(raised),
        }
        // Only who waits lets go of the lock, and only he copies what somebody could change.
        let record = record.lasting(py);
        push_slowly(py, &queue, &record, timeout)
    }

    /// Accepts the record or counts it as dropped; says which.
    fn push_or_drop(&self, py: Python<'_>, record: Data<'_>) -> PyResult<bool> {
        self.queue.get()?.push_or_drop(record.bytes(py)).map_err(raised)
    }

    /// Accepts several records together. Where there is no room for all: FullError, whose `accepted` says how many were.
    fn push_all(&self, py: Python<'_>, records: &Bound<'_, PyAny>) -> PyResult<usize> {
        let queue = self.queue.get()?;
        let records = records.try_iter()?.map(|record| record?.extract()).collect::<PyResult<Vec<Data<'_>>>>()?;
        let mut accepted = 0;
        let result = queue.batch().and_then(|mut batch| {
            for record in &records {
                batch.try_push(record.bytes(py))?;
                accepted += 1;
            }
            Ok(())
        });
        match result {
            Ok(()) => Ok(accepted),
            Err(error) => {
                let raised = raised(error);
                raised.value(py).setattr("accepted", accepted)?;
                Err(raised)
            }
        }
    }

    /// Records that `push_or_drop` has dropped.
    #[getter]
    fn dropped(&self) -> PyResult<u64> {
        Ok(self.queue.get()?.dropped())
    }
}

/// Waits a tenth of a second at a time, so that Ctrl-C is heard.
fn push_slowly(py: Python<'_>, queue: &QueueSender, record: &[u8], timeout: Duration) -> PyResult<u64> {
    let begun = Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        match py.detach(|| queue.push(record, left.min(Duration::from_millis(100)))) {
            Err(error) if error.kind() == ErrorKind::Deadline && left > Duration::from_millis(100) => {
                py.check_signals()?
            }
            other => return other.map_err(raised),
        }
    }
}
