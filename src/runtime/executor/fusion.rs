// SPDX-License-Identifier: Apache-2.0
//! Several instructions that a Metal kernel computes together: its inputs from the registers.

use super::graph::Effects;
use super::kernel::unused;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, scalar};
use lowering::ir::DType;
use lowering::plan::Fusion;

/// Launches the kernel on the arrays that the fusion names; gives its results.
pub fn run(
    mlx: &Mlx,
    fusion: &Fusion,
    arrays: &[&Array],
    effects: &mut dyn Effects,
) -> Result<Vec<Array>> {
    let [qkv, cos, sin, weights @ ..] = arrays else {
        let reason = format!("{} of {} arrays", fusion.kernel.name, arrays.len());
        return Err(Error::Unsupported(reason));
    };
    let weights = match weights {
        [query, key] => [(*query).clone(), (*key).clone()],
        _ => {
            let none = unused(&[1], &fusion.kernel, "W")?;
            [none.clone(), none]
        }
    };
    let eps = scalar(mlx, fusion.eps.get(), DType::Float32)?;
    let inputs = [*qkv, *cos, *sin, &weights[0], &weights[1], &eps];
    let tokens = qkv.shape().first().copied().unwrap_or(0);
    let step = [("num_tokens", i64::from(tokens))];
    effects.kernel(&fusion.kernel, &step, &inputs)
}
