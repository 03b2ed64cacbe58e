// SPDX-License-Identifier: Apache-2.0
//! The Python module: one file per class, no logic.

use pyo3::prelude::*;

/// The native half of vllm-metal. Python reaches it through `vllm_metal._native`, which loads the
/// right MLX first.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    use crate::mlx_version::{BUILT_AGAINST, loaded};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("MLX_VERSION", BUILT_AGAINST)
    }

    /// The version of the libmlx in this process.
    #[pyfunction]
    fn mlx_version() -> Option<String> {
        loaded()
    }
}
