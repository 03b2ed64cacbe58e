// SPDX-License-Identifier: Apache-2.0
//! `Recipe` and `Checkpoint`: how parameters are put together from a checkpoint's tensors.

use crate::runtime::weights::{self, Source};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::PathBuf;

/// A folder of safetensors files. Raises ValueError where there is none or one is damaged.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Checkpoint {
    checkpoint: weights::Checkpoint,
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(folder: PathBuf) -> PyResult<Checkpoint> {
        let checkpoint = weights::Checkpoint::open(&folder)?;
        Ok(Checkpoint { checkpoint })
    }
}

/// Recipes of a model's parameters, from their JSON text. Raises ValueError where it is malformed.
#[pyclass(frozen, module = "vllm_metal._core")]
pub struct Recipe {
    recipe: weights::Recipe,
}

#[pymethods]
impl Recipe {
    #[new]
    fn new(text: &[u8]) -> PyResult<Recipe> {
        let recipe = weights::Recipe::from_json(text)?;
        Ok(Recipe { recipe })
    }

    /// The row-major bytes of the parameter of that path. Raises ValueError where the checkpoint
    /// does not have what the recipe asks for.
    fn build<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        checkpoint: &Checkpoint,
    ) -> PyResult<Bound<'py, PyBytes>> {
        match py.detach(|| self.recipe.build(path, &checkpoint.checkpoint))? {
            Source::File(tensor) => Ok(PyBytes::new(py, tensor.bytes())),
            Source::Host(tensor) => Ok(PyBytes::new(py, &tensor.bytes)),
            Source::Tensor(_) => Err(PyRuntimeError::new_err("a recipe reads files alone")),
        }
    }
}
