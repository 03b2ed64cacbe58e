// SPDX-License-Identifier: Apache-2.0
//! The Metal kernels: their texts, and those that a plan chose.

use crate::runtime::error::Error;
use pyo3::prelude::*;
use std::collections::BTreeMap;

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

/// A kernel as a plan chose it.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct KernelChoice {
    pub choice: lowering::plan::KernelChoice,
}

#[pymethods]
impl KernelChoice {
    #[getter]
    fn name(&self) -> &str {
        &self.choice.name
    }

    /// Sizes and parameters of its contract that the plan fixes.
    #[getter]
    fn sizes(&self) -> BTreeMap<String, i64> {
        self.choice.sizes.clone()
    }

    /// Dtypes by the contract's names.
    #[getter]
    fn dtypes(&self) -> BTreeMap<String, &'static str> {
        let dtypes = self.choice.dtypes.iter();
        dtypes.map(|(name, of)| (name.clone(), of.name())).collect()
    }
}
