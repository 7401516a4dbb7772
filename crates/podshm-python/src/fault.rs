//! Errors as exceptions: one class for each kind, made by `podshm.errors`.

use std::time::Duration;

use podshm::Error;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The exception that an error is.
#[cold]
pub fn raised(error: Error) -> PyErr {
    let (status, errno) = match &error {
        Error::Failed { status } => (Some(*status), None),
        Error::System { source, .. } => (None, source.raw_os_error()),
        _ => (None, None),
    };
    make(error.kind() as i32, &error.to_string(), error.needed(), status, errno)
}

/// The exception for a handle that is closed.
#[cold]
pub fn closed(what: &str) -> PyErr {
    make(0, &format!("this {what} is closed, or its client or agent is"), None, None, None)
}

/// The exception for a handle that another thread uses, or this one further up.
#[cold]
pub fn busy(what: &str) -> PyErr {
    let message = format!("this {what} is in use, by another thread or by what called this; use one at a time");
    make(-1, &message, None, None, None)
}

fn make(kind: i32, message: &str, needed: Option<usize>, status: Option<u32>, errno: Option<i32>) -> PyErr {
    Python::attach(|py| {
        let what = (kind, message, needed, status, errno);
        match py.import("podshm.errors").and_then(|errors| errors.call_method1("make", what)) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    })
}

/// Seconds as Python has them; none is no end.
pub fn duration(seconds: Option<f64>) -> PyResult<Duration> {
    let forever = Duration::from_nanos(u64::MAX);
    match seconds {
        None => Ok(forever),
        Some(seconds) if seconds == f64::INFINITY => Ok(forever),
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .map(|duration| duration.min(forever))
            .map_err(|_| PyValueError::new_err(format!("expected seconds, 0 or more, or None; found {seconds}"))),
    }
}
