// SPDX-License-Identifier: Apache-2.0
//! `Plan`: a lowered model without its weights.

use super::error::lowering as error;
use super::kernels::KernelChoice;
use ::lowering::lower::{Lowered, Options, lower as lower_document};
use ::lowering::{diff, explain};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// A lowered model without its weights.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Plan {
    pub plan: ::lowering::plan::Plan,
    /// Absent for a plan that was read from bytes.
    lowered: Option<Lowered>,
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
    let lowered = py
        .detach(|| lower_document(document, &options))
        .map_err(error)?;
    Ok(Plan {
        plan: lowered.plan.clone(),
        lowered: Some(lowered),
    })
}

/// Every FX target that has a lowering, sorted; see `lowering::import::claimed_targets`.
#[pyfunction]
pub fn claimed_targets() -> Vec<&'static str> {
    ::lowering::import::claimed_targets()
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

impl Plan {
    /// A plan that was read, and has no report.
    pub fn unreported(plan: ::lowering::plan::Plan) -> Plan {
        Plan {
            plan,
            lowered: None,
        }
    }
}

#[pymethods]
impl Plan {
    /// Reads what `to_bytes` wrote. Raises ValueError for anything else.
    #[staticmethod]
    fn from_bytes(bytes: &[u8]) -> PyResult<Plan> {
        let plan = ::lowering::plan::Plan::from_bytes(bytes).map_err(error)?;
        Ok(Plan::unreported(plan))
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

    /// Names of the inputs that a graph reads: a model may have no use for positions. Raises ValueError for a graph that the plan does not have.
    fn inputs(&self, graph: &str) -> PyResult<Vec<String>> {
        let graph = self
            .plan
            .graph(graph)
            .ok_or_else(|| PyValueError::new_err(format!("the plan has no graph {graph:?}")))?;
        Ok(graph
            .inputs
            .iter()
            .map(|input| input.name.clone())
            .collect())
    }

    /// Every Metal kernel that the plan can use, once.
    #[getter]
    fn kernels(&self) -> Vec<KernelChoice> {
        let all = self.plan.kernels().into_iter();
        all.map(|choice| KernelChoice { choice }).collect()
    }

    /// The kernel that can draw tokens from the logits; None where there is none.
    #[getter]
    fn sample(&self) -> Option<KernelChoice> {
        let choice = self.plan.sample.clone();
        choice.map(|choice| KernelChoice { choice })
    }

    /// Names of the attention layers.
    #[getter]
    fn layers(&self) -> Vec<String> {
        self.plan
            .layers
            .iter()
            .map(|layer| layer.name.clone())
            .collect()
    }

    /// Names of the layers with recurrent states.
    #[getter]
    fn state_layers(&self) -> Vec<String> {
        let layers = self.plan.state_layers.iter();
        layers.map(|layer| layer.name.clone()).collect()
    }

    /// What was fused, lowered and left to PyTorch, as JSON; None for a plan read from bytes.
    fn report_json(&self) -> PyResult<Option<String>> {
        self.lowered
            .as_ref()
            .map(|lowered| lowered.report.to_json())
            .transpose()
            .map_err(error)
    }

    /// The rules that made an instruction (`%14`, `1:%14`, `logits:1:%14`, or a captured node's name)
    /// and the captured nodes that it stands for; None for a plan read from bytes. Raises ValueError
    /// for a name that nothing has.
    fn explain(&self, node: &str) -> PyResult<Option<String>> {
        self.lowered
            .as_ref()
            .map(|lowered| explain::explain(lowered, node))
            .transpose()
            .map_err(error)
    }

    /// Where the left side of a rule stands unfused, with each guard's verdict; None for a plan read
    /// from bytes. Raises ValueError for a name that no rule has.
    fn explain_missing(&self, rule: &str) -> PyResult<Option<String>> {
        self.lowered
            .as_ref()
            .map(|lowered| explain::explain_missing(lowered, rule))
            .transpose()
            .map_err(error)
    }

    /// Whether another plan is the same, and what differs; None where one was read from bytes.
    fn diff(&self, other: &Plan) -> PyResult<Option<(bool, String)>> {
        let (Some(a), Some(b)) = (&self.lowered, &other.lowered) else {
            return Ok(None);
        };
        let difference = diff::diff(a, b).map_err(error)?;
        Ok(Some((difference.same, difference.text)))
    }

    /// A stage (`captured`, `imported`, `fused`, `plan`) as `text`, `json` or `dot`; None for a plan
    /// read from bytes. Raises ValueError for another stage or format.
    #[pyo3(signature = (stage, format = "text"))]
    fn dump(&self, stage: &str, format: &str) -> PyResult<Option<String>> {
        let (stage, format) = (
            stage.parse().map_err(error)?,
            format.parse().map_err(error)?,
        );
        self.lowered
            .as_ref()
            .map(|lowered| lowered.dump(stage, format))
            .transpose()
            .map_err(error)
    }
}
