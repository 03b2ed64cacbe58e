// SPDX-License-Identifier: Apache-2.0
//! How weights lie in memory.

use crate::runtime::mlx::{Device, Mlx};
use lowering::ir::{DType, Op, TensorType};

/// Whether a transposed weight is worth a copy in the order in which products read it.
///
/// The BLAS in MLX's builds for Linux adds up whole rows of `w` in `x @ w`, but takes its dot products
/// with a transposed one an element at a time: twice the time in float32, for any number of rows.
/// MLX's own products of 16-bit floats, Accelerate and the GPUs mind neither.
pub fn reads_faster_copied(mlx: &Mlx, op: &Op, results: &[TensorType]) -> bool {
    let matrix = |result: &TensorType| result.dtype == DType::Float32 && result.rank() == 2;
    cfg!(target_os = "linux")
        && mlx.device() == Device::Cpu
        && matches!(op, Op::Transpose { .. })
        && results.iter().all(matrix)
}
