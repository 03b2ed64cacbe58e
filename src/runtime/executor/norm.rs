// SPDX-License-Identifier: Apache-2.0
//! Normalisations.
//!
//! `mx.fast` normalises in float32 and returns the operands' common dtype.

use super::instruction::Outputs;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx, dtype};
use lowering::ir::DType;

/// `x / sqrt(mean(x^2) + eps) * weight`. A weight of another dtype than `x` is float32 and
/// multiplies before the only rounding.
pub fn rms_norm(
    mlx: &Mlx,
    x: &Array,
    weight: Option<&Array>,
    eps: f64,
    result: DType,
) -> Result<Array> {
    if weight.is_none_or(|weight| dtype(weight) == dtype(x)) {
        return Ok(mlx.rms_norm(x, weight, eps)?);
    }
    let normed = mlx.rms_norm(&mlx.cast(x, DType::Float32)?, weight, eps)?;
    Ok(mlx.ensure(normed, result)?)
}

/// `rms_norm(x + residual), x + residual`; the norm sees the sum rounded, or before.
pub fn add_rms_norm(
    mlx: &Mlx,
    x: &Array,
    residual: &Array,
    weight: Option<&Array>,
    eps: f64,
    rounded_sum: bool,
    result: DType,
) -> Result<Outputs> {
    if rounded_sum || !result.is_half() {
        let sum = mlx.add(x, residual)?;
        return Ok(Outputs::Two(rms_norm(mlx, &sum, weight, eps, result)?, sum));
    }
    // The second operand is promoted by the addition.
    let sum = mlx.add(&mlx.cast(x, DType::Float32)?, residual)?;
    let rounded = mlx.cast(&sum, result)?;
    let normed = match weight.filter(|weight| dtype(weight) == Some(result)) {
        Some(weight) => {
            let normed = mlx.cast(&mlx.rms_norm(&sum, None, eps)?, result)?;
            mlx.multiply(&normed, weight)?
        }
        None => mlx.cast(&mlx.rms_norm(&sum, weight, eps)?, result)?,
    };
    Ok(Outputs::Two(normed, rounded))
}

/// `(x - mean) / sqrt(var + eps) * weight + bias`, rounded once as in PyTorch: of a half `x`, `mx.fast`
/// would round before the weight and before the bias, too.
pub fn layer_norm(
    mlx: &Mlx,
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f64,
    result: DType,
) -> Result<Array> {
    if weight.or(bias).is_none() || !result.is_half() {
        let normed = mlx.layer_norm(x, weight, bias, eps)?;
        return Ok(mlx.ensure(normed, result)?);
    }
    let normed = mlx.layer_norm(&mlx.cast(x, DType::Float32)?, weight, bias, eps)?;
    Ok(mlx.cast(&normed, result)?)
}

/// `layer_norm(x + residual), x + residual`; the norm sees the sum rounded.
pub fn add_layer_norm(
    mlx: &Mlx,
    x: &Array,
    residual: &Array,
    [weight, bias]: [Option<&Array>; 2],
    eps: f64,
    result: DType,
) -> Result<Outputs> {
    let sum = mlx.add(x, residual)?;
    let normed = layer_norm(mlx, &sum, weight, bias, eps, result)?;
    Ok(Outputs::Two(normed, sum))
}
