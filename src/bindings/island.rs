// SPDX-License-Identifier: Apache-2.0
//! Islands: calls from the runtime's thread into PyTorch.

use super::dlpack;
use crate::runtime::dlpack::Imported;
use crate::runtime::error::{Error, Result};
use crate::runtime::island::IslandRunner;
use crate::runtime::tensor::Exported;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// A Python callable `(target: str, arguments_json: str, operands: list[capsule]) -> list[tensor]`.
pub struct PythonIslands(pub Py<PyAny>);

impl IslandRunner for PythonIslands {
    fn run(&self, target: &str, arguments: &str, operands: Vec<Exported>) -> Result<Vec<Imported>> {
        let call = |py: Python<'_>| -> PyResult<Vec<Imported>> {
            let capsules = operands
                .into_iter()
                .map(|operand| dlpack::capsule(py, operand));
            let capsules = PyList::new(py, capsules.collect::<PyResult<Vec<_>>>()?)?;
            let results = self.0.bind(py).call1((target, arguments, capsules))?;
            results
                .try_iter()?
                .map(|result| dlpack::import(&result?))
                .collect()
        };
        Python::attach(|py| {
            call(py).map_err(|error| {
                let trace = error.traceback(py).and_then(|trace| trace.format().ok());
                let reason = match trace {
                    Some(trace) => format!("{error}\n{trace}"),
                    None => error.to_string(),
                };
                Error::Island {
                    target: target.to_owned(),
                    reason,
                }
            })
        })
    }
}
