// SPDX-License-Identifier: Apache-2.0
//! `FileTensor`: a tensor in a memory-mapped file.

use crate::runtime::error::Error;
use crate::runtime::weights;
use lowering::ir::DType;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;

/// A tensor in a memory-mapped file: `nbytes` bytes at `offset`, row-major, as safetensors stores it.
///
/// Raises ValueError where the file cannot be mapped, is shorter, or the size is not the shape's.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct FileTensor {
    pub tensor: weights::FileTensor,
}

#[pymethods]
impl FileTensor {
    #[new]
    fn new(
        path: PathBuf,
        offset: usize,
        nbytes: usize,
        dtype: &str,
        shape: Vec<i32>,
    ) -> PyResult<Self> {
        let dtype = DType::from_name(dtype).ok_or_else(|| Error::WeightFile {
            path: path.display().to_string(),
            reason: format!("dtype {dtype:?} is unknown"),
        })?;
        Ok(FileTensor {
            tensor: weights::FileTensor::open(&path, offset, nbytes, dtype, shape)?,
        })
    }

    /// Sizes.
    #[getter]
    fn shape(&self) -> Vec<i32> {
        self.tensor.shape.clone()
    }

    /// Element type by PyTorch's name, such as "float32".
    #[getter]
    fn dtype(&self) -> &'static str {
        self.tensor.dtype.name()
    }

    /// The elements, row-major.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.tensor.bytes())
    }
}
