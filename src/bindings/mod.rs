// SPDX-License-Identifier: Apache-2.0
//! The Python module: one file per class, no logic.

mod dlpack;
mod error;
mod file_tensor;
mod island;
mod kernels;
mod metadata;
mod model;
mod plan;
mod plan_file;
mod recipe;
mod runtime;
mod tensor;

use pyo3::prelude::*;

/// The native half of vllm-metal. Python reaches it through `vllm_metal._native`, which loads the
/// right MLX first.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    use crate::mlx_version::{BUILT_AGAINST, loaded};

    #[pymodule_export]
    use super::{
        file_tensor::FileTensor,
        kernels::{KernelChoice, kernel_texts},
        metadata::{AttentionMetadata, PyStateMetadata},
        model::Model,
        plan::{Plan, claimed_targets, lower},
        plan_file::PlanFile,
        recipe::{Checkpoint, Recipe},
        runtime::Runtime,
        tensor::LazyTensor,
        tensor::SampledIds,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("LOWERING_SHA256", lowering::SOURCE_SHA256)?;
        module.add("MLX_VERSION", BUILT_AGAINST)
    }

    /// The version of the libmlx in this process.
    #[pyfunction]
    fn mlx_version() -> Option<String> {
        loaded()
    }
}
