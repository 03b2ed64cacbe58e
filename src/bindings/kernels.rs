// SPDX-License-Identifier: Apache-2.0
//! The Metal kernels: their texts, and those that a plan chose.

use crate::runtime::error::Error;
use lowering::ir::DType;
use pyo3::exceptions::PyValueError;
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
    /// The choice that a plan would hold. Raises ValueError for a dtype that there is not.
    #[new]
    fn new(
        name: String,
        sizes: BTreeMap<String, i64>,
        dtypes: BTreeMap<String, String>,
    ) -> PyResult<Self> {
        let known = |(of, dtype): (String, String)| match DType::from_name(&dtype) {
            Some(dtype) => Ok((of, dtype)),
            None => Err(PyValueError::new_err(format!("no dtype {dtype:?}"))),
        };
        let dtypes = dtypes.into_iter().map(known).collect::<PyResult<_>>()?;
        let choice = lowering::plan::KernelChoice {
            name,
            sizes,
            dtypes,
        };
        Ok(KernelChoice { choice })
    }

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
