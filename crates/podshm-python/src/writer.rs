//! Publishing tables.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::agent::Place;
use crate::border::Data;
use crate::waiting::waiting;

/// The writer of one table. Every publication is atomic.
#[pyclass(frozen, module = "podshm")]
pub struct TableWriter {
    pub(crate) agent: Arc<Place>,
    pub(crate) name: String,
}

/// Keys and values; no value where the key is to go.
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[pymethods]
impl TableWriter {
    /// Publishes a value under a key.
    fn put(&self, py: Python<'_>, key: Data<'_>, value: Data<'_>) -> PyResult<()> {
        // It waits for the broker where the table has to grow.
        let (key, value) = (key.lasting(py), value.lasting(py));
        let (key, value) = (&*key, &*value);
        waiting(py, || self.agent.with(|agent| agent.table(&self.name)?.put(key, value)))
    }

    /// Removes a key; says whether it was there.
    fn remove(&self, py: Python<'_>, key: Data<'_>) -> PyResult<bool> {
        self.agent.with(|agent| Ok(agent.table(&self.name)?.remove(key.bytes(py))))
    }

    /// Publishes several changes so that a snapshot sees all of them or none: a dict whose values are bytes, or None to remove the key.
    fn publish(&self, py: Python<'_>, changes: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut all = Changes::with_capacity(changes.len());
        for (key, value) in changes {
            let value: Option<Data<'_>> = value.extract()?;
            all.push((key.extract::<Data<'_>>()?.bytes(py).to_vec(), value.map(|value| value.bytes(py).to_vec())));
        }
        waiting(py, || self.agent.with(|agent| agent.table(&self.name)?.publish(&all)))
    }

    /// Says that the content is still true, so that readers see a young age.
    fn touch(&self) -> PyResult<()> {
        self.agent.with(|agent| {
            agent.table(&self.name)?.touch();
            Ok(())
        })
    }

    fn __setitem__(&self, py: Python<'_>, key: Data<'_>, value: Data<'_>) -> PyResult<()> {
        self.put(py, key, value)
    }

    fn __delitem__(&self, py: Python<'_>, key: Data<'_>) -> PyResult<()> {
        if self.agent.with(|agent| Ok(agent.table(&self.name)?.remove(key.bytes(py))))? {
            return Ok(());
        }
        Err(pyo3::exceptions::PyKeyError::new_err(key.bytes(py).to_vec()))
    }

    fn __len__(&self) -> PyResult<usize> {
        self.agent.with(|agent| Ok(agent.table(&self.name)?.keys() as usize))
    }
}
