// SPDX-License-Identifier: Apache-2.0
//! `LazyTensor`: an MLX array that may not be computed yet.

use super::dlpack;
use crate::runtime::Argument;
use crate::runtime::host::HostTensor;
use crate::runtime::tensor::Tensor;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// An MLX array that may not be computed yet. `torch.from_dlpack(x)` computes it and shares its
/// memory.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct LazyTensor {
    pub tensor: Tensor,
}

/// Token ids of which some are sampled by the step before, which may be in flight.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct SampledIds {
    known: HostTensor,
    tokens: Py<LazyTensor>,
    vocab_size: i64,
    places: Vec<(usize, usize)>,
}

impl SampledIds {
    /// As an input of a step.
    pub fn argument(&self) -> Argument<'_> {
        Argument::Sampled {
            known: self.known.clone(),
            tokens: &self.tokens.get().tensor,
            vocab_size: self.vocab_size,
            places: self.places.clone(),
        }
    }
}

#[pymethods]
impl SampledIds {
    /// `known` with, for each pair of `places`, the sampled token of the second index at the first one;
    /// `tokens` and `vocab_size` are as `Model.sample` gave them.
    #[new]
    fn new(
        known: &Bound<'_, PyAny>,
        tokens: Py<LazyTensor>,
        vocab_size: i64,
        places: Vec<(usize, usize)>,
    ) -> PyResult<SampledIds> {
        Ok(SampledIds {
            known: HostTensor::from(&dlpack::import(known)?),
            tokens,
            vocab_size,
            places,
        })
    }

    fn __len__(&self) -> usize {
        self.known.shape.first().map_or(0, |size| *size as usize)
    }
}

/// `kDLCPU`, device 0.
const DEVICE: (i32, i32) = (crate::runtime::dlpack::CPU, 0);

#[pymethods]
impl LazyTensor {
    /// Sizes.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.shape())
    }

    /// Element type by PyTorch's name, such as "float32".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.tensor.dtype().name()
    }

    /// Rows by index, still lazy. Raises ValueError for a row out of range.
    fn rows(&self, py: Python<'_>, indices: &Bound<'_, PyAny>) -> PyResult<LazyTensor> {
        let indices = dlpack::integers(indices)?;
        let tensor = py.detach(|| self.tensor.rows(indices))?;
        Ok(LazyTensor { tensor })
    }

    /// The first rows, still lazy. Raises ValueError where there are fewer.
    fn head(&self, py: Python<'_>, count: usize) -> PyResult<LazyTensor> {
        let tensor = py.detach(|| self.tensor.head(count))?;
        Ok(LazyTensor { tensor })
    }

    /// Computes the array and gives its memory, without copying it.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    #[expect(
        unused_variables,
        reason = "CPU memory has no stream, and every version takes a capsule without one"
    )]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if dl_device.is_some_and(|device| device != DEVICE) || copy == Some(true) {
            return Err(PyBufferError::new_err("only shared CPU memory is offered"));
        }
        let exported = py.detach(|| self.tensor.export())?;
        dlpack::capsule(py, exported)
    }

    /// The CPU: its memory is what Python gets, on every machine.
    fn __dlpack_device__(&self) -> (i32, i32) {
        DEVICE
    }

    fn __len__(&self) -> PyResult<usize> {
        match self.tensor.shape().first() {
            Some(size) => Ok(*size as usize),
            None => Err(PyTypeError::new_err("len() of a rank-0 tensor")),
        }
    }

    fn __repr__(&self) -> String {
        format!("LazyTensor({}{:?})", self.dtype(), self.tensor.shape())
    }
}
