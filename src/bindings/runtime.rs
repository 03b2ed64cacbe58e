// SPDX-License-Identifier: Apache-2.0
//! `Runtime`: MLX on a device.

use super::dlpack;
use super::file_tensor::FileTensor;
use super::island::PythonIslands;
use super::kernels::KernelChoice;
use super::model::Model;
use super::plan::Plan;
use super::tensor::LazyTensor;
use crate::runtime::error::Error;
use crate::runtime::island::IslandRunner;
use crate::runtime::memory::Limits;
use crate::runtime::sample::{Row, sample_tensor};
use crate::runtime::tensor::Tensor;
use crate::runtime::weights::{Source, required};
use crate::runtime::{self, Device};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// MLX on a device, with a thread of its own that owns everything made here.
///
/// `device` is "cpu" or "gpu"; limits are in bytes, and None keeps MLX's own. Raises RuntimeError
/// where the device does not exist.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Runtime {
    runtime: runtime::Runtime,
}

/// Temperature, top_k, top_p, min_p, seed and step; see [`Row`].
pub type Draw = (f32, u32, f32, f32, u64, u32);

/// A draw by its names.
pub fn row((temperature, top_k, top_p, min_p, seed, step): Draw) -> Row {
    Row {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        step,
    }
}

#[pymethods]
impl Runtime {
    #[new]
    #[pyo3(signature = (device, memory_limit = None, cache_limit = None, wired_limit = None))]
    fn new(
        py: Python<'_>,
        device: &str,
        memory_limit: Option<usize>,
        cache_limit: Option<usize>,
        wired_limit: Option<usize>,
    ) -> PyResult<Self> {
        let device = match device {
            "cpu" => Device::Cpu,
            "gpu" => Device::Gpu,
            other => {
                return Err(PyValueError::new_err(format!(
                    "device {other:?} is neither \"cpu\" nor \"gpu\""
                )));
            }
        };
        let limits = Limits {
            memory: memory_limit,
            cache: cache_limit,
            wired: wired_limit,
        };
        let runtime = py.detach(|| runtime::Runtime::new(device, limits))?;
        Ok(Runtime { runtime })
    }

    /// A runtime that passes for one on a Mac's GPU, on any machine: the graphs of its models' steps
    /// are a Mac's, their values are not. See `recorded`.
    #[staticmethod]
    fn recorder(py: Python<'_>) -> PyResult<Self> {
        let runtime = py.detach(runtime::Runtime::recorder)?;
        Ok(Runtime { runtime })
    }

    /// Of a recorder: names of MLX's fused functions and of our kernels that were called since the
    /// last call, and, written to `path` too, the graph of the tensors, of the caches that changed with
    /// them and of those functions' operands in the DOT language.
    fn recorded(
        &self,
        py: Python<'_>,
        tensors: Vec<Bound<'_, LazyTensor>>,
        path: PathBuf,
    ) -> PyResult<(Vec<String>, String)> {
        let tensors: Vec<&Tensor> = tensors.iter().map(|lazy| &lazy.get().tensor).collect();
        Ok(py.detach(|| self.runtime.recorded(&tensors, path))?)
    }

    /// MLX's memory in bytes: `active`, `peak`, `cache`, and the `limit`.
    fn memory(&self) -> PyResult<BTreeMap<&'static str, usize>> {
        let usage = self.runtime.memory()?;
        Ok(BTreeMap::from([
            ("active", usage.active),
            ("peak", usage.peak),
            ("cache", usage.cache),
            ("limit", usage.limit),
        ]))
    }

    /// Starts the peak counter anew.
    fn reset_peak(&self) -> PyResult<()> {
        Ok(self.runtime.reset_peak()?)
    }

    /// Starts a count of the calls into MLX, or ends it; gives what was counted until now, as the
    /// number of calls and the seconds inside MLX.
    fn meter(&self, py: Python<'_>, on: bool) -> PyResult<(u64, f64)> {
        let meter = py.detach(|| self.runtime.meter(on))?;
        Ok((meter.calls, meter.time.as_secs_f64()))
    }

    /// Counts since the start: `calls` that waited for the runtime's thread, `evaluations` that it
    /// waited for MLX, and how its models' steps came about: `direct`, `traced`, `replayed`.
    fn counters(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        let counters = py.detach(|| self.runtime.counters())?;
        Ok(BTreeMap::from([
            ("calls", counters.calls),
            ("evaluations", counters.evaluations),
            ("direct", counters.builds.direct),
            ("traced", counters.builds.traced),
            ("replayed", counters.builds.replayed),
        ]))
    }

    /// Copies a tensor to MLX.
    fn upload(&self, py: Python<'_>, tensor: &Bound<'_, PyAny>) -> PyResult<LazyTensor> {
        let host = dlpack::host(tensor)?;
        let tensor = py.detach(|| self.runtime.upload(host))?;
        Ok(LazyTensor { tensor })
    }

    /// The tensor where it lies, which a GPU can use, or a copy in MLX's memory.
    fn borrow(&self, py: Python<'_>, tensor: &Bound<'_, PyAny>) -> PyResult<LazyTensor> {
        let imported = dlpack::import(tensor)?;
        let tensor = py.detach(|| self.runtime.borrow(imported))?;
        Ok(LazyTensor { tensor })
    }

    /// Computes tensors, all together.
    fn evaluate(&self, py: Python<'_>, tensors: Vec<Bound<'_, LazyTensor>>) -> PyResult<()> {
        let tensors: Vec<&Tensor> = tensors.iter().map(|lazy| &lazy.get().tensor).collect();
        Ok(py.detach(|| self.runtime.evaluate(&tensors))?)
    }

    /// A token for each row of `logits [rows, vocab]`, not computed yet: int32 `[rows]`. A row is
    /// (temperature, top_k, top_p, min_p, seed, step); temperature 0 takes the largest, top_k 0, top_p 1
    /// and min_p 0 keep all tokens, and `step` differs from draw to draw of a seed.
    ///
    /// `kernel` is `plan.sample`, where it may be used; without Metal `islands` runs it, as in `load`.
    /// Raises ValueError for parameters that are out of range or of other rows.
    #[pyo3(signature = (logits, rows, kernel = None, islands = None))]
    fn sample(
        &self,
        py: Python<'_>,
        logits: &Bound<'_, LazyTensor>,
        rows: Vec<Draw>,
        kernel: Option<&Bound<'_, KernelChoice>>,
        islands: Option<Py<PyAny>>,
    ) -> PyResult<LazyTensor> {
        let rows = rows.into_iter().map(row).collect();
        let kernel = kernel.map(|kernel| kernel.get().choice.clone());
        let islands =
            islands.map(|callable| Box::new(PythonIslands(callable)) as Box<dyn IslandRunner>);
        let logits = &logits.get().tensor;
        let tensor = py.detach(|| sample_tensor(logits, rows, kernel, islands))?;
        Ok(LazyTensor { tensor })
    }

    /// Arrays that LazyTensors refer to.
    fn num_tensors(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(py.detach(|| self.runtime.num_tensors())?)
    }

    /// Frees all models and tensors and ends the thread. Memory that PyTorch shares stays valid.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.runtime.close());
    }

    /// Loads a plan. `parameters` maps each path of `plan.parameters` to a CPU tensor, to a
    /// FileTensor, or to a LazyTensor that is used as it is. They are asked for one by one; a GPU uses their memory as it is, and on the CPU, whose
    /// MLX takes no foreign memory, each is copied and let go before the next is asked for. `islands(target, arguments_json, operands)` runs the nodes
    /// that were not lowered: operands are DLPack capsules, results are tensors.
    ///
    /// The graphs of `kept_shapes` shapes of decode steps are kept and replayed; 0 builds every step
    /// anew. `kernels` are those of `plan.kernels` that may be used; all else runs as its reference.
    /// Raises ValueError for a parameter that is missing or not as the plan says.
    #[pyo3(signature = (plan, parameters, islands = None, kept_shapes = runtime::KEPT_SHAPES, kernels = Vec::new()))]
    fn load(
        &self,
        py: Python<'_>,
        plan: &Plan,
        parameters: &Bound<'_, PyAny>,
        islands: Option<Py<PyAny>>,
        kept_shapes: usize,
        kernels: Vec<Bound<'_, KernelChoice>>,
    ) -> PyResult<Model> {
        let loading = py.detach(|| self.runtime.begin_loading())?;
        for path in required(&plan.plan) {
            match source(parameters, &path)? {
                Given::Source(source) => py.detach(|| loading.add(path, source))?,
                Given::Shared(lazy) => {
                    let tensor = &lazy.get().tensor;
                    py.detach(|| loading.share(path, tensor))?;
                }
            }
        }
        let islands =
            islands.map(|callable| Box::new(PythonIslands(callable)) as Box<dyn IslandRunner>);
        let usable = kernels.iter().map(|kernel| kernel.get().choice.clone());
        let mut plan = plan.plan.clone();
        plan.keep_kernels(&usable.collect());
        let model = py.detach(|| loading.finish(plan, islands, kept_shapes))?;
        Ok(Model { model })
    }
}

/// A parameter as the caller gave it.
enum Given<'py> {
    Source(Source),
    Shared(Bound<'py, LazyTensor>),
}

fn source<'py>(parameters: &Bound<'py, PyAny>, path: &str) -> PyResult<Given<'py>> {
    let wrong = |reason: String| {
        PyErr::from(Error::Parameter {
            path: path.to_owned(),
            origin: String::new(),
            reason,
        })
    };
    let value = parameters.get_item(path).map_err(|error| {
        if error.is_instance_of::<PyKeyError>(parameters.py()) {
            wrong("it is missing from the checkpoint".to_owned())
        } else {
            error
        }
    })?;
    let value = match value.cast_into::<LazyTensor>() {
        Ok(lazy) => return Ok(Given::Shared(lazy)),
        Err(other) => other.into_inner(),
    };
    let source = match value.cast_into::<FileTensor>() {
        Ok(file) => Source::File(file.get().tensor.clone()),
        Err(other) => {
            let imported = dlpack::import(&other.into_inner());
            Source::Tensor(imported.map_err(|error| wrong(error.to_string()))?)
        }
    };
    Ok(Given::Source(source))
}
