// SPDX-License-Identifier: Apache-2.0
//! `PlanFile`: a plan with its texts and stored tensors, as a file.

use super::dlpack;
use super::file_tensor::FileTensor;
use super::plan::Plan;
use crate::plan_file::{self, Contents};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A plan with its texts and stored tensors, as a file. Every part is checked by its hash when it is
/// read.
///
/// Raises ValueError where the file cannot be read, is truncated, or is no plan file of this version.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct PlanFile {
    file: plan_file::PlanFile,
}

#[pymethods]
impl PlanFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<PlanFile> {
        let file = py.detach(|| plan_file::PlanFile::open(&path))?;
        Ok(PlanFile { file })
    }

    /// Writes a plan, texts (bytes by name) and CPU tensors (by name). The file appears whole or not
    /// at all. Raises ValueError where it cannot be written.
    #[staticmethod]
    fn write(
        py: Python<'_>,
        path: PathBuf,
        plan: &Plan,
        texts: BTreeMap<String, Vec<u8>>,
        tensors: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let mut contents = Contents {
            texts,
            ..Contents::default()
        };
        for (name, tensor) in tensors {
            contents
                .tensors
                .insert(name.extract()?, dlpack::host(&tensor)?);
        }
        Ok(py.detach(|| plan_file::write(&path, &plan.plan, contents))?)
    }

    /// The plan. Raises ValueError where it is damaged or of another version of plans.
    fn plan(&self, py: Python<'_>) -> PyResult<Plan> {
        Ok(Plan::unreported(py.detach(|| self.file.plan())?))
    }

    /// The bytes of a text. Raises ValueError where it is missing or damaged.
    fn text<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.file.text(name)?))
    }

    /// A stored tensor, mapped. Raises ValueError where it is missing or damaged.
    fn tensor(&self, name: &str) -> PyResult<FileTensor> {
        let tensor = self.file.tensor(name)?;
        Ok(FileTensor { tensor })
    }
}
