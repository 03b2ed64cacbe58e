// SPDX-License-Identifier: Apache-2.0
//! Fused operators, with the rounding points that [`crate::ir::Op`] documents.

use super::pointwise::float_function;
use super::round::Precision;
use super::tensor::{Data, Tensor};
use crate::ir::{Activation, DType, RopeStyle, Unary};

fn floats(dtype: DType, shape: &[usize], values: Vec<f64>) -> Tensor {
    Tensor {
        dtype,
        shape: shape.to_vec(),
        data: Data::Float(values),
    }
}

/// Length of the last axis and the elements in rows of it.
fn rows(x: &Tensor) -> Result<(usize, impl Iterator<Item = &[f64]>), String> {
    let length = *x.shape.last().ok_or("a norm of rank 0")?;
    Ok((length, x.as_floats()?.chunks(length.max(1))))
}

pub(super) fn rms_norm(
    precision: Precision,
    x: &Tensor,
    dtype: DType,
    weight: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor, String> {
    let single = |value| precision.round(DType::Float32, value);
    let narrow = |value| precision.round(dtype, value);
    let weight = match weight {
        Some(weight) => Some((weight.dtype, weight.as_floats()?)),
        None => None,
    };
    let (length, rows) = rows(x)?;
    let mut result = Vec::with_capacity(x.len());
    for row in rows {
        let square: f64 = row.iter().map(|v| single(v * v)).sum();
        let mean = single(square / length as f64);
        let scale = single(1.0 / single(mean + single(eps)).sqrt());
        for (i, value) in row.iter().enumerate() {
            let normal = single(value * scale);
            result.push(match weight {
                None => narrow(normal),
                Some((of, weight)) if of == dtype => narrow(narrow(normal) * weight[i]),
                Some((_, weight)) => narrow(single(normal * weight[i])),
            });
        }
    }
    Ok(floats(dtype, &x.shape, result))
}

pub(super) fn add_rms_norm(
    precision: Precision,
    x: &Tensor,
    residual: &Tensor,
    weight: Option<&Tensor>,
    eps: f64,
    rounded_sum: bool,
) -> Result<Vec<Tensor>, String> {
    let dtype = x.dtype;
    let pairs = x.as_floats()?.iter().zip(residual.as_floats()?);
    let sum: Vec<f64> = pairs
        .map(|(a, b)| precision.round(DType::Float32, a + b))
        .collect();
    let narrow: Vec<f64> = sum.iter().map(|v| precision.round(dtype, *v)).collect();
    let narrow = floats(dtype, &x.shape, narrow);
    let normalised = match rounded_sum {
        true => narrow.clone(),
        false => floats(DType::Float32, &x.shape, sum),
    };
    Ok(vec![
        rms_norm(precision, &normalised, dtype, weight, eps)?,
        narrow,
    ])
}

pub(super) fn layer_norm(
    precision: Precision,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor, String> {
    let weight = weight.map(Tensor::as_floats).transpose()?;
    let bias = bias.map(Tensor::as_floats).transpose()?;
    let (length, rows) = rows(x)?;
    let mut result = Vec::with_capacity(x.len());
    for row in rows {
        let mean = row.iter().sum::<f64>() / length as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / length as f64;
        for (i, value) in row.iter().enumerate() {
            let normal = (value - mean) / (variance + eps).sqrt();
            let scaled = normal * weight.map_or(1.0, |weight| weight[i]);
            let shifted = scaled + bias.map_or(0.0, |bias| bias[i]);
            result.push(precision.round(x.dtype, shifted));
        }
    }
    Ok(floats(x.dtype, &x.shape, result))
}

pub(super) fn add_layer_norm(
    precision: Precision,
    x: &Tensor,
    residual: &Tensor,
    [weight, bias]: [Option<&Tensor>; 2],
    eps: f64,
) -> Result<Vec<Tensor>, String> {
    let pairs = x.as_floats()?.iter().zip(residual.as_floats()?);
    let sum: Vec<f64> = pairs
        .map(|(a, b)| precision.round(x.dtype, a + b))
        .collect();
    let sum = floats(x.dtype, &x.shape, sum);
    let normalised = layer_norm(precision, &sum, weight, bias, eps)?;
    Ok(vec![normalised, sum])
}

/// `[.., t, heads, d]` with the first `rotary_dim` elements rotated, rounded once.
pub(super) fn rope(
    precision: Precision,
    style: RopeStyle,
    rotary_dim: usize,
    [cos, sin]: [&Tensor; 2],
    x: &Tensor,
) -> Result<Tensor, String> {
    let [outer @ .., tokens, heads, size] = x.shape.as_slice() else {
        return Err(format!("rope of shape {:?}", x.shape));
    };
    let columns = *cos.shape.last().ok_or("cos of rank 0")?;
    let per_token = [outer, &[*tokens, columns]].concat();
    let (cos, sin) = (cos.broadcast(&per_token)?, sin.broadcast(&per_token)?);
    let (cos, sin) = (cos.as_floats()?, sin.as_floats()?);
    let mut result = x.as_floats()?.to_vec();
    let half = rotary_dim / 2;
    for (row, head) in result.chunks_mut((*size).max(1)).enumerate() {
        let token = row / heads;
        let before = head.to_vec();
        for i in 0..half {
            let (first, second) = match style {
                RopeStyle::Gptj | RopeStyle::RotatePairs => (2 * i, 2 * i + 1),
                RopeStyle::Neox | RopeStyle::RotateHalf => (i, i + half),
            };
            let (first_angle, second_angle) = match style {
                RopeStyle::RotateHalf => (i, i + half),
                RopeStyle::RotatePairs => (2 * i, 2 * i + 1),
                RopeStyle::Neox | RopeStyle::Gptj => (i, i),
            };
            let at = |angle: usize| token * columns + angle;
            let (x1, x2) = (before[first], before[second]);
            let y1 = x1 * cos[at(first_angle)] - x2 * sin[at(first_angle)];
            let y2 = x2 * cos[at(second_angle)] + x1 * sin[at(second_angle)];
            head[first] = precision.round(x.dtype, y1);
            head[second] = precision.round(x.dtype, y2);
        }
    }
    Ok(floats(x.dtype, &x.shape, result))
}

fn activate(activation: Activation, x: f64) -> Result<f64, String> {
    let function = match activation {
        Activation::Silu => Unary::Silu,
        Activation::Gelu => Unary::Gelu,
        Activation::GeluTanh => Unary::GeluTanh,
        Activation::Relu => Unary::Relu,
        Activation::Swish { alpha } => return Ok(x / (1.0 + libm::exp(-alpha.get() * x))),
    };
    float_function(function, x)
}

/// `f(gate) * up`, of both halves of the only operand or of two.
pub(super) fn gated(
    precision: Precision,
    activation: Activation,
    operands: &[&Tensor],
    shape: &[usize],
) -> Result<Tensor, String> {
    let (dtype, pairs): (_, Vec<(f64, f64)>) = match operands {
        [gate, up] => {
            let (gate, up) = (gate.broadcast(shape)?, up.broadcast(shape)?);
            let pairs = gate.as_floats()?.iter().zip(up.as_floats()?);
            (gate.dtype, pairs.map(|(gate, up)| (*gate, *up)).collect())
        }
        [x] => {
            let (length, rows) = rows(x)?;
            let halves = rows.map(|row| row.split_at(length / 2));
            let pairs = halves.flat_map(|(gate, up)| gate.iter().copied().zip(up.iter().copied()));
            (x.dtype, pairs.collect())
        }
        _ => return Err(format!("{} operands", operands.len())),
    };
    let product = |(gate, up)| Ok(precision.round(dtype, activate(activation, gate)? * up));
    let result: Result<Vec<f64>, String> = pairs.into_iter().map(product).collect();
    Ok(floats(dtype, shape, result?))
}
