// SPDX-License-Identifier: Apache-2.0
//! The only place that turns Rust errors into Python exceptions.

use crate::runtime::error::{Error, ErrorKind};
use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyValueError};

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let text = error.to_string();
        match error.kind() {
            ErrorKind::BadInput => PyValueError::new_err(text),
            ErrorKind::Memory => PyMemoryError::new_err(text),
            ErrorKind::Failure => PyRuntimeError::new_err(text),
        }
    }
}

/// A document or plan that the lowering refused.
pub fn lowering(error: lowering::error::Error) -> PyErr {
    let text = error.to_string();
    match error {
        lowering::error::Error::Verifier { .. } => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}
