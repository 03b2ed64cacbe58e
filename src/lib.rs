// SPDX-License-Identifier: Apache-2.0
//! `vllm_metal._core`: runs lowered plans on MLX.

#[cfg(feature = "python")]
mod bindings;
pub mod generate;
pub mod mlx_version;
pub mod plan_file;
pub mod runtime;
