// SPDX-License-Identifier: Apache-2.0
//! `Plan`: a lowered model without its weights.

use super::error::lowering as error;
use ::lowering::lower::{Options, lower as lower_document};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// A lowered model without its weights.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Plan {
    pub plan: ::lowering::plan::Plan,
    lowered: Option<Texts>,
}

/// What only a plan that was just lowered knows.
struct Texts {
    report: String,
    imported: String,
    planned: String,
}

/// Lowers an FX document. `options` may hold `refuse_fallback: bool`.
///
/// Raises ValueError for a malformed document, or for a node without a lowering where that is
/// refused.
#[pyfunction]
#[pyo3(signature = (document, options = None))]
pub fn lower(
    py: Python<'_>,
    document: &[u8],
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Plan> {
    let options = parse(options)?;
    let lowered = py.detach(|| lower_document(document, &options)).map_err(error)?;
    let report = serde_json::to_string(&lowered.report)
        .map_err(|cause| PyValueError::new_err(cause.to_string()))?;
    let texts = Texts { report, imported: lowered.imported, planned: lowered.planned };
    Ok(Plan { plan: lowered.plan, lowered: Some(texts) })
}

fn parse(given: Option<&Bound<'_, PyDict>>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in given.into_iter().flatten() {
        match name.extract::<String>()?.as_str() {
            "refuse_fallback" => options.refuse_fallback = value.extract()?,
            other => return Err(PyValueError::new_err(format!("no option {other:?}"))),
        }
    }
    Ok(options)
}

#[pymethods]
impl Plan {
    /// Reads what `to_bytes` wrote. Raises ValueError for anything else.
    #[staticmethod]
    fn from_bytes(bytes: &[u8]) -> PyResult<Plan> {
        let plan = ::lowering::plan::Plan::from_bytes(bytes).map_err(error)?;
        Ok(Plan { plan, lowered: None })
    }

    /// Canonical bytes: the same plan gives the same bytes on every machine.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.plan.to_bytes().map_err(error)?))
    }

    /// SHA-256 of the bytes, in hexadecimal.
    #[getter]
    fn sha256(&self) -> PyResult<String> {
        self.plan.sha256().map_err(error)
    }

    /// The model's class.
    #[getter]
    fn architecture(&self) -> &str {
        &self.plan.architecture
    }

    /// Paths of the parameters and buffers that loading needs, sorted.
    #[getter]
    fn parameters(&self) -> Vec<String> {
        crate::runtime::weights::required(&self.plan)
    }

    /// Names of the attention layers.
    #[getter]
    fn layers(&self) -> Vec<String> {
        self.plan.layers.iter().map(|layer| layer.name.clone()).collect()
    }

    /// What was fused, lowered and left to PyTorch, as JSON; None for a plan read from bytes.
    fn report_json(&self) -> Option<&str> {
        self.lowered.as_ref().map(|texts| texts.report.as_str())
    }

    /// Text of the stage `imported` or `plan`, of a plan just lowered, or JSON of `plan`.
    #[pyo3(signature = (stage, format = "text"))]
    fn dump(&self, stage: &str, format: &str) -> PyResult<String> {
        match (stage, format, &self.lowered) {
            ("imported", "text", Some(texts)) => Ok(texts.imported.clone()),
            ("plan", "text", Some(texts)) => Ok(texts.planned.clone()),
            ("plan", "json", _) => {
                let bytes = self.plan.to_bytes().map_err(error)?;
                String::from_utf8(bytes).map_err(|cause| PyValueError::new_err(cause.to_string()))
            }
            _ => {
                let reason = format!("no dump of stage {stage:?} in format {format:?}");
                Err(PyValueError::new_err(reason))
            }
        }
    }
}
