// SPDX-License-Identifier: Apache-2.0
//! `Model`: a plan with its weights, ready to run.

use super::dlpack;
use super::metadata::{AttentionMetadata, PyStateMetadata};
use super::runtime::{Draw, row};
use super::tensor::{LazyTensor, SampledIds};
use crate::runtime::error::Error;
use crate::runtime::host::HostTensor;
use crate::runtime::tensor::Tensor;
use crate::runtime::{
    Argument, CacheSpec, Head, LayerMetadata, LoadedModel, Pages, Requests, StateSpec,
};
use lowering::ir::DType;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyTuple};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A plan with its weights, ready to run.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Model {
    pub model: LoadedModel,
}

#[pymethods]
impl Model {
    /// Bytes of the weights by what happened to them: `borrowed` and `mapped` ones are used where
    /// they lie, `copied` ones had gaps, `folded` ones were computed.
    #[getter]
    fn load_report(&self) -> BTreeMap<&'static str, usize> {
        let report = self.model.report;
        BTreeMap::from([
            ("parameters", report.parameters),
            ("borrowed_bytes", report.borrowed_bytes),
            ("mapped_bytes", report.mapped_bytes),
            ("copied_bytes", report.copied_bytes),
            ("folded_bytes", report.folded_bytes),
        ])
    }

    /// Allocates the KV caches and returns their bytes: `{layer: (num_blocks, block_size, dtype)}`.
    /// Layers listed together in `shared` use one cache, with blocks of their own in it. `states` are
    /// those of state layers: (layers that share them, num_slots, a dtype for each state).
    ///
    /// Raises ValueError for unknown layers, MemoryError where they do not fit below MLX's limit.
    #[pyo3(signature = (layers, shared = Vec::new(), states = Vec::new()))]
    fn allocate_kv_cache(
        &self,
        py: Python<'_>,
        layers: BTreeMap<String, (usize, usize, String)>,
        shared: Vec<Vec<String>>,
        states: Vec<(Vec<String>, usize, Vec<String>)>,
    ) -> PyResult<usize> {
        let specs = cache_specs(layers, shared)?;
        let states = states.into_iter().map(state_spec);
        let states = states.collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| self.model.allocate_kv_cache(specs, states))?)
    }

    /// Runs the graph `backbone`, lazily: a LazyTensor, or a tuple of them where it has several
    /// results. `attention` maps layer names to their AttentionMetadata or StateMetadata.
    ///
    /// With `logits`, those of all rows follow.
    ///
    /// Raises ValueError, before anything runs, where an input does not fit or an id, slot or block
    /// is out of range.
    #[pyo3(signature = (inputs, attention = None, logits = false))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyDict>,
        attention: Option<&Bound<'py, PyDict>>,
        logits: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let attention = attention.map(groups).transpose()?.unwrap_or_default();
        let lazy = lazy_inputs(inputs)?;
        let arguments = arguments(inputs, &lazy, false)?;
        let head = if logits { Head::All } else { Head::None };
        let outputs = py.detach(|| self.model.run_with("backbone", arguments, attention, head))?;
        results(py, outputs)
    }

    /// Runs the graph of that name; see `step`. An int among the inputs is the value of the symbol
    /// of that name, where no input's size gives it. With `borrow`, tensors are used where they lie if MLX can; they must
    /// not change before the results are computed.
    #[pyo3(signature = (graph, inputs, attention = None, borrow = false))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        graph: &str,
        inputs: &Bound<'py, PyDict>,
        attention: Option<&Bound<'py, PyDict>>,
        borrow: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let attention = attention.map(groups).transpose()?.unwrap_or_default();
        let lazy = lazy_inputs(inputs)?;
        let arguments = arguments(inputs, &lazy, borrow)?;
        let outputs = py.detach(|| self.model.run(graph, arguments, attention))?;
        results(py, outputs)
    }

    /// Runs the graph `backbone` and the graph `logits` on rows of its result, or on all, and computes
    /// them, in one call into the runtime: the backbone's result as `step` gives it, and the logits
    /// as a DLPack capsule of CPU memory.
    ///
    /// Raises ValueError, before anything runs, as `step` does and for a row out of range.
    #[pyo3(signature = (inputs, attention = None, rows = None))]
    fn step_with_logits<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyDict>,
        attention: Option<&Bound<'py, PyDict>>,
        rows: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let attention = attention.map(groups).transpose()?.unwrap_or_default();
        let lazy = lazy_inputs(inputs)?;
        let arguments = arguments(inputs, &lazy, false)?;
        let rows = rows.map(dlpack::integers).transpose()?;
        let (hidden, logits) = py.detach(|| self.model.step(arguments, attention, rows))?;
        Ok((results(py, hidden)?, dlpack::capsule(py, logits)?))
    }

    /// Runs the graph `backbone` and takes a token after rows of its result, or after all: the
    /// backbone's result, the tokens int32[num_rows], and the number of tokens that they are of.
    /// `draws` are as the rows of `Runtime.sample`; without them each token is the most likely one. With
    /// `ahead` this returns while they are being computed: the next step may take them as
    /// `SampledIds`.
    ///
    /// Raises ValueError, before anything runs, as `step_with_logits` does.
    #[pyo3(signature = (inputs, attention = None, rows = None, draws = None, ahead = false))]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyDict>,
        attention: Option<&Bound<'py, PyDict>>,
        rows: Option<&Bound<'py, PyAny>>,
        draws: Option<Vec<Draw>>,
        ahead: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, LazyTensor>, i64)> {
        let attention = attention.map(groups).transpose()?.unwrap_or_default();
        let lazy = lazy_inputs(inputs)?;
        let arguments = arguments(inputs, &lazy, false)?;
        let rows = rows.map(dlpack::integers).transpose()?;
        let draws = draws.map(|draws| draws.into_iter().map(row).collect());
        let sample = || self.model.sample(arguments, attention, rows, draws, ahead);
        let (hidden, tensor, vocab_size) = py.detach(sample)?;
        let tokens = Bound::new(py, LazyTensor { tensor })?;
        Ok((results(py, hidden)?, tokens, vocab_size))
    }

    /// Runs the graph `logits` on rows of a step's result, or on all, still lazily.
    ///
    /// Raises ValueError for a row out of range.
    #[pyo3(signature = (hidden, rows = None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        hidden: &Bound<'py, LazyTensor>,
        rows: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let rows = rows.map(dlpack::integers).transpose()?;
        let hidden = &hidden.get().tensor;
        let outputs = py.detach(|| self.model.logits(hidden, rows))?;
        results(py, outputs)
    }
}

/// An input that is not on the host, or not all of it.
enum Lazy<'py> {
    Tensor(Bound<'py, LazyTensor>),
    Sampled(Bound<'py, SampledIds>),
}

type LazyInputs<'py> = Vec<(String, Lazy<'py>)>;

fn lazy_inputs<'py>(inputs: &Bound<'py, PyDict>) -> PyResult<LazyInputs<'py>> {
    let mut lazy = Vec::new();
    for (name, value) in inputs {
        if let Ok(tensor) = value.cast::<LazyTensor>() {
            lazy.push((name.extract()?, Lazy::Tensor(tensor.clone())));
        } else if let Ok(ids) = value.cast::<SampledIds>() {
            lazy.push((name.extract()?, Lazy::Sampled(ids.clone())));
        }
    }
    Ok(lazy)
}

/// A run's inputs; `lazy` are those of them that are lazy.
fn arguments<'a>(
    inputs: &Bound<'_, PyDict>,
    lazy: &'a LazyInputs<'_>,
    borrow: bool,
) -> PyResult<Vec<(String, Argument<'a>)>> {
    let mut arguments = Vec::with_capacity(inputs.len());
    for (name, value) in inputs {
        let name: String = name.extract()?;
        if let Ok(size) = value.cast::<PyInt>() {
            arguments.push((name, Argument::Size(size.extract()?)));
        } else if !lazy.iter().any(|(of, _)| *of == name) {
            let tensor = dlpack::import(&value)?;
            let argument = match borrow {
                true => Argument::Foreign(tensor),
                false => Argument::Host(HostTensor::from(&tensor)),
            };
            arguments.push((name, argument));
        }
    }
    for (name, input) in lazy {
        let argument = match input {
            Lazy::Tensor(tensor) => Argument::Tensor(&tensor.get().tensor),
            Lazy::Sampled(ids) => ids.get().argument(),
        };
        arguments.push((name.clone(), argument));
    }
    Ok(arguments)
}

fn results(py: Python<'_>, outputs: Vec<Tensor>) -> PyResult<Bound<'_, PyAny>> {
    let mut tensors = outputs
        .into_iter()
        .map(|tensor| Bound::new(py, LazyTensor { tensor }))
        .collect::<PyResult<Vec<_>>>()?;
    match tensors.len() {
        1 => Ok(tensors.remove(0).into_any()),
        _ => Ok(PyTuple::new(py, tensors)?.into_any()),
    }
}

fn state_spec(
    (layers, num_slots, dtypes): (Vec<String>, usize, Vec<String>),
) -> PyResult<StateSpec> {
    let dtypes = dtypes.iter().map(|name| {
        DType::from_name(name).ok_or_else(|| PyErr::from(Error::KvCache(format!("dtype {name:?}"))))
    });
    Ok(StateSpec {
        layers,
        num_slots,
        dtypes: dtypes.collect::<PyResult<_>>()?,
    })
}

/// Layers by the metadata object that they share.
fn groups(attention: &Bound<'_, PyDict>) -> PyResult<Vec<LayerMetadata>> {
    let mut groups: Vec<(*const (), LayerMetadata)> = Vec::new();
    for (name, value) in attention {
        let name: String = name.extract()?;
        let (identity, metadata) = match value.cast::<PyStateMetadata>() {
            Ok(state) => {
                let metadata = state.get().metadata.clone();
                (Arc::as_ptr(&metadata).cast(), Requests::State(metadata))
            }
            Err(_) => {
                let metadata = value.cast::<AttentionMetadata>()?.get().metadata.clone();
                (Arc::as_ptr(&metadata).cast(), Requests::Attention(metadata))
            }
        };
        match groups.iter_mut().find(|(other, _)| *other == identity) {
            Some((_, (names, _))) => names.push(name),
            None => groups.push((identity, (vec![name], metadata))),
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

fn cache_specs(
    mut layers: BTreeMap<String, (usize, usize, String)>,
    shared: Vec<Vec<String>>,
) -> PyResult<Vec<CacheSpec>> {
    let wrong = |reason: String| PyErr::from(Error::KvCache(reason));
    let spec = |layers: Vec<String>, (num_blocks, block_size, dtype): (usize, usize, String)| {
        let dtype = DType::from_name(&dtype).ok_or_else(|| wrong(format!("dtype {dtype:?}")))?;
        Ok::<_, PyErr>(CacheSpec {
            layers,
            pages: Pages {
                num_blocks,
                block_size,
            },
            dtype,
        })
    };
    let mut specs = Vec::new();
    for names in shared {
        let mut given = names.iter().map(|name| {
            layers
                .remove(name)
                .ok_or_else(|| wrong(format!("shared layer {name:?} is not given")))
        });
        let first = given
            .next()
            .ok_or_else(|| wrong("a cache of no layer".to_owned()))??;
        for other in given {
            if other? != first {
                return Err(wrong(format!(
                    "layers {names:?} share one cache and differ in size"
                )));
            }
        }
        specs.push(spec(names, first)?);
    }
    for (name, size) in layers {
        specs.push(spec(vec![name], size)?);
    }
    Ok(specs)
}
