//! Lookups. They wait for nobody, so the interpreter's lock is kept.

use std::sync::{Arc, Mutex};

use podshm::ErrorKind;
use podshm::client::Guard;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::border::{Data, Room};
use crate::fault::{busy, raised};
use crate::slot::{Made, Slot};

/// Times that a value which changes while it is copied is looked up again.
const ATTEMPTS: usize = 64;

/// A table of the agent's.
#[pyclass(frozen, module = "podshm")]
pub struct Table {
    pub(crate) table: Arc<Slot<podshm::Table>>,
    pub(crate) made: Arc<Made>,
}

/// One key, whose hash is skipped. For one thread at a time.
#[pyclass(frozen, module = "podshm")]
pub struct Key {
    key: Arc<Slot<Mutex<(podshm::Key, usize)>>>,
}

/// One value at one moment, of which parts are read.
#[pyclass(frozen, module = "podshm")]
pub struct Value {
    guard: Arc<Slot<Guard>>,
}

/// Several values at one version.
#[pyclass(frozen, module = "podshm")]
pub struct Snapshot {
    snapshot: Arc<Slot<podshm::client::TableSnapshot>>,
}

/// Copies a value once: its length first, its bytes into what Python gets.
fn copied<'py>(
    py: Python<'py>,
    mut look: impl FnMut() -> Result<Option<Guard>, podshm::Error>,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let mut attempts = ATTEMPTS;
    loop {
        let Some(guard) = look().map_err(raised)? else { return Ok(None) };
        let mut failed = None;
        let bytes = PyBytes::new_with(py, guard.value_len(), |place| {
            failed = guard.read(0, place).err();
            Ok(())
        })?;
        match failed {
            None => return Ok(Some(bytes)),
            Some(error) if error.kind() == ErrorKind::Contended && attempts > 0 => attempts -= 1,
            Some(error) => return Err(raised(error)),
        }
    }
}

#[pymethods]
impl Table {
    /// The value, or None.
    fn get<'py>(&self, py: Python<'py>, key: Data<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let table = self.table.get()?;
        copied(py, || table.guard(key.bytes(py)))
    }

    /// Copies the value into a buffer; returns its length, or None.
    fn get_into(&self, py: Python<'_>, key: Data<'_>, mut buffer: Room) -> PyResult<Option<usize>> {
        // They may be one buffer.
        let key = key.beside(py, &buffer);
        self.table.get()?.get(&key, buffer.bytes(py)).map_err(raised)
    }

    fn __getitem__<'py>(&self, py: Python<'py>, key: Data<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let table = self.table.get()?;
        let found = copied(py, || table.guard(key.bytes(py)))?;
        found.ok_or_else(|| PyKeyError::new_err(key.bytes(py).to_vec()))
    }

    fn __contains__(&self, py: Python<'_>, key: Data<'_>) -> PyResult<bool> {
        Ok(self.table.get()?.guard(key.bytes(py)).map_err(raised)?.is_some())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.table.get()?.len().map_err(raised)? as usize)
    }

    /// The value at this moment, for reading parts of it; or None.
    fn value(&self, py: Python<'_>, key: Data<'_>) -> PyResult<Option<Value>> {
        let guard = self.table.get()?.guard(key.bytes(py)).map_err(raised)?;
        Ok(guard.map(|guard| {
            let guard = Slot::new("value", guard);
            self.made.keep(&guard);
            Value { guard }
        }))
    }

    /// A handle to one key.
    fn key(&self, py: Python<'_>, key: Data<'_>) -> PyResult<Key> {
        let key = Slot::new("key", Mutex::new((self.table.get()?.key(key.bytes(py)), 256)));
        self.made.keep(&key);
        Ok(Key { key })
    }

    /// A read of several keys at one version.
    fn snapshot(&self) -> PyResult<Snapshot> {
        let snapshot = Slot::new("snapshot", self.table.get()?.snapshot().map_err(raised)?);
        self.made.keep(&snapshot);
        Ok(Snapshot { snapshot })
    }

    /// Seconds since the agent published, or said that all is still true.
    fn age(&self) -> PyResult<f64> {
        Ok(self.table.get()?.age().map_err(raised)?.as_secs_f64())
    }

    /// Publications in this generation.
    fn version(&self) -> PyResult<u64> {
        self.table.get()?.version().map_err(raised)
    }

    /// Changes when the agent is replaced or the table grows.
    fn generation(&self) -> PyResult<u64> {
        self.table.get()?.generation_number().map_err(raised)
    }
}

#[pymethods]
impl Key {
    /// The value, or None.
    fn get<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let slot = self.key.get()?;
        let mut held = slot.try_lock().map_err(|_| busy("key"))?;
        let (key, room) = &mut *held;
        // Small ones by way of the stack, so that the common lookup is one call.
        let mut buffer = [0; 1024];
        if *room <= buffer.len() {
            match key.get(&mut buffer) {
                Ok(found) => return Ok(found.map(|len| PyBytes::new(py, &buffer[..len]))),
                Err(error) => *room = error.needed().ok_or_else(|| raised(error))?,
            }
        }
        let read = key.read(|at, len| {
            let mut failed = None;
            let bytes = PyBytes::new_with(py, len, |place| {
                failed = at(0, place).err();
                Ok(())
            });
            failed.map_or(Ok(bytes), Err)
        });
        read.map_err(raised)?.transpose()
    }

    /// Copies the value into a buffer; returns its length, or None.
    fn get_into(&self, py: Python<'_>, mut buffer: Room) -> PyResult<Option<usize>> {
        let slot = self.key.get()?;
        slot.try_lock().map_err(|_| busy("key"))?.0.get(buffer.bytes(py)).map_err(raised)
    }
}

#[pymethods]
impl Value {
    fn __len__(&self) -> PyResult<usize> {
        Ok(self.guard.get()?.value_len())
    }

    /// A part of the value. ContendedError once the agent has replaced it.
    #[pyo3(signature = (offset = 0, length = None))]
    fn read<'py>(&self, py: Python<'py>, offset: usize, length: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let guard = self.guard.get()?;
        let length = length.unwrap_or_else(|| guard.value_len().saturating_sub(offset));
        // Before there is memory for it: one byte past the end is the same error.
        if offset.checked_add(length).is_none_or(|end| end > guard.value_len()) {
            guard.read(guard.value_len(), &mut [0]).map_err(raised)?;
        }
        PyBytes::new_with(py, length, |place| guard.read(offset, place).map_err(raised))
    }

    /// Copies a part of the value into all of a buffer.
    #[pyo3(signature = (buffer, offset = 0))]
    fn read_into(&self, py: Python<'_>, mut buffer: Room, offset: usize) -> PyResult<()> {
        self.guard.get()?.read(offset, buffer.bytes(py)).map_err(raised)
    }
}

#[pymethods]
impl Snapshot {
    /// The value, or None.
    fn get<'py>(&self, py: Python<'py>, key: Data<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let snapshot = self.snapshot.get()?;
        let mut room = vec![0; 1024];
        loop {
            match snapshot.get(key.bytes(py), &mut room) {
                Ok(found) => return Ok(found.map(|len| PyBytes::new(py, &room[..len]))),
                Err(error) => room.resize(error.needed().ok_or_else(|| raised(error))?, 0),
            }
        }
    }

    /// The version that everything was read at. ContendedError if the table changed meanwhile: read again.
    fn check(&self) -> PyResult<u64> {
        self.snapshot.get()?.check().map_err(raised)
    }
}
