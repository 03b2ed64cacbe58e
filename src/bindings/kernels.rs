// SPDX-License-Identifier: Apache-2.0
//! The Metal kernels, as texts.

use crate::runtime::error::Error;
use pyo3::prelude::*;

type Texts = (&'static str, &'static str, &'static str, &'static str);

/// Every Metal kernel: name, contract (TOML), body, and the functions that the body calls.
#[pyfunction]
pub fn kernel_texts() -> PyResult<Vec<Texts>> {
    let kernels = lowering::kernels::all().map_err(|error| Error::Internal(error.to_string()))?;
    let texts = kernels.iter().map(|kernel| {
        let name = kernel.contract.name.as_str();
        (name, kernel.text, kernel.body, kernel.header.as_str())
    });
    Ok(texts.collect())
}
