//! Memory that Python lends. The one place with `unsafe`.

use std::borrow::Cow;
use std::ops::Range;
use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Bytes to read: of a `bytes`, or of anything else with the buffer protocol.
pub enum Data<'py> {
    /// Immutable: usable without the interpreter's lock.
    Bytes(Bound<'py, PyBytes>),
    /// To be used with the lock only: it is whoever holds that who may write there.
    Buffer(PyUntypedBuffer),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Data<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyBytes>() {
            Ok(bytes) => Ok(Data::Bytes(bytes.to_owned())),
            Err(_) => Ok(Data::Buffer(buffer(&object)?)),
        }
    }
}

impl Data<'_> {
    /// The bytes, for as long as the lock is held.
    pub fn bytes<'a>(&'a self, _py: Python<'a>) -> &'a [u8] {
        match self {
            Data::Bytes(bytes) => bytes.as_bytes(),
            Data::Buffer(buffer) if buffer.len_bytes() == 0 => &[],
            // SAFETY: an exported buffer stays where it is until it is released, which `self` keeps from happening; it is contiguous, so
            // that `len_bytes` bytes follow its start, and not null since it has some. The lock is held for 'a, and Python code writes to
            // buffers under the lock only. (A program that has another thread write there outside of it, by numpy say, races with
            // whatever reads it, as everywhere in Python: it may then send a mixture of old and new bytes.)
            Data::Buffer(buffer) => unsafe {
                slice::from_raw_parts(buffer.buf_ptr().cast_const().cast(), buffer.len_bytes())
            },
        }
    }

    /// The bytes, also when the lock is let go: copied, unless nobody can change them.
    pub fn lasting<'a>(&'a self, py: Python<'a>) -> Cow<'a, [u8]> {
        match self {
            Data::Bytes(bytes) => Cow::Borrowed(bytes.as_bytes()),
            Data::Buffer(_) => Cow::Owned(self.bytes(py).to_vec()),
        }
    }

    /// The bytes, to be read while `room` is written to: copied where they share memory.
    pub fn beside<'a>(&'a self, py: Python<'a>, room: &Room) -> Cow<'a, [u8]> {
        let bytes = self.bytes(py);
        let (mine, other) = (bytes.as_ptr_range(), room.range());
        let shares = mine.start.addr() < other.end && other.start < mine.end.addr();
        if shares { Cow::Owned(bytes.to_vec()) } else { Cow::Borrowed(bytes) }
    }
}

/// A buffer to write to.
pub struct Room(PyUntypedBuffer);

impl<'a, 'py> FromPyObject<'a, 'py> for Room {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let buffer = buffer(&object)?;
        if buffer.readonly() {
            return Err(PyTypeError::new_err(
                "expected a writable buffer (a bytearray, a numpy array), found one that is not",
            ));
        }
        Ok(Room(buffer))
    }
}

impl Room {
    /// The bytes, for as long as the lock is held.
    pub fn bytes<'a>(&'a mut self, _py: Python<'a>) -> &'a mut [u8] {
        if self.0.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: as in `Data::bytes`; it is writable, and `self` is borrowed alone. Another export of the same memory is not looked at
        // before this thread lets go of the lock: a method that takes both has the other's bytes by `Data::beside` or `Data::lasting`,
        // which are copies where they would be these.
        unsafe { slice::from_raw_parts_mut(self.0.buf_ptr().cast(), self.0.len_bytes()) }
    }

    /// Where it is.
    fn range(&self) -> Range<usize> {
        let start = self.0.buf_ptr().addr();
        start..start + self.0.len_bytes()
    }
}

fn buffer(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("expected a contiguous buffer, found one with gaps: copy it first"));
    }
    Ok(buffer)
}
