// SPDX-License-Identifier: Apache-2.0
//! Instructions that a Metal kernel computes: the inputs of its contract from the operands.

use super::graph::Effects;
use super::instruction::Context;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, host_array, scalar};
use lowering::ir::{DType, Op};
use lowering::plan::{Instruction, KernelChoice};

/// `[.., width]` as rows.
fn rows(mlx: &Mlx, x: &Array) -> Result<Array> {
    let width = x.shape().last().copied().unwrap_or(1);
    let total: i32 = x.shape().iter().product();
    Ok(mlx.reshape(x, &[total / width, width])?)
}

/// What stands for an input that a specialisation does not read: made on the host, as filling it
/// would be a launch.
pub(super) fn unused(shape: &[i32], choice: &KernelChoice, dtype: &str) -> Result<Array> {
    let dtype = choice.dtypes.get(dtype).copied().unwrap_or(DType::Float32);
    Ok(host_array(&vec![0; dtype.size()], shape, dtype)?)
}

/// Launches the kernel that the plan chose for an instruction; its results are the instruction's.
pub fn run(
    context: Context,
    instruction: &Instruction,
    operands: &[&Array],
    effects: &mut dyn Effects,
) -> Result<Vec<Array>> {
    let mlx = context.mlx;
    let (Some(choice), Some(x)) = (&instruction.kernel, operands.first()) else {
        return Err(Error::Internal("a kernel of no instruction".to_owned()));
    };
    let x = rows(mlx, x)?;
    let inputs = match (&instruction.op, operands) {
        (Op::AddRmsNorm { eps, .. }, [_, residual, weight @ ..]) => {
            norm(mlx, choice, x, Some(*residual), weight, eps.get())?
        }
        (Op::RmsNorm { eps }, [_, weight @ ..]) => norm(mlx, choice, x, None, weight, eps.get())?,
        (Op::LayerNorm { eps }, [_, rest @ ..]) => {
            layer_norm(mlx, choice, x, None, rest, eps.get())?
        }
        (Op::AddLayerNorm { eps }, [_, residual, rest @ ..]) => {
            layer_norm(mlx, choice, x, Some(*residual), rest, eps.get())?
        }
        (Op::GatedActivation { .. }, _) => vec![x],
        (op, _) => {
            let reason = format!("{} has no kernel {:?}", op.name(), choice.name);
            return Err(Error::Unsupported(reason));
        }
    };
    let num_rows = inputs[0].shape()[0].into();
    let step = [("num_rows", num_rows)];
    let found = effects.kernel(choice, &step, &inputs.iter().collect::<Vec<_>>())?;
    let results = found.iter().zip(&instruction.types);
    results
        .map(|(result, expected)| Ok(mlx.reshape(result, &context.shape(&expected.shape)?)?))
        .collect()
}

/// `x`, `residual`, `weight`, `bias`, `eps` of `layer_norm`.
fn layer_norm(
    mlx: &Mlx,
    choice: &KernelChoice,
    x: Array,
    residual: Option<&Array>,
    parameters: &[&Array],
    eps: f64,
) -> Result<Vec<Array>> {
    let mut inputs = norm(mlx, choice, x, residual, parameters, eps)?;
    let bias = match parameters.get(1) {
        Some(bias) => (*bias).clone(),
        None => unused(&[1], choice, "W")?,
    };
    inputs.insert(3, bias);
    Ok(inputs)
}

/// `x`, `residual`, `weight`, `eps` of `rms_norm`.
fn norm(
    mlx: &Mlx,
    choice: &KernelChoice,
    x: Array,
    residual: Option<&Array>,
    weight: &[&Array],
    eps: f64,
) -> Result<Vec<Array>> {
    let residual = match residual {
        Some(residual) => rows(mlx, residual)?,
        None => unused(&[1, 1], choice, "T")?,
    };
    let weight = match weight {
        [weight, ..] => (*weight).clone(),
        [] => unused(&[1], choice, "W")?,
    };
    Ok(vec![x, residual, weight, scalar(mlx, eps, DType::Float32)?])
}
