// SPDX-License-Identifier: Apache-2.0
//! One operator on values.

use super::attention;
use super::convolution::convolution;
use super::fused;
use super::movement;
use super::pointwise;
use super::product::{expert_matmul, matmul};
use super::reduce;
use super::round::Precision;
use super::tensor::{Number, Tensor};
use crate::ir::{AttentionMask, Dim, Op, RopeStyle, Scores, TensorType};

/// Sizes under a binding of the symbols.
pub(super) fn shape(dims: &[Dim], symbols: &[i64]) -> Result<Vec<usize>, String> {
    dims.iter().map(|dim| size(*dim, symbols)).collect()
}

fn size(dim: Dim, symbols: &[i64]) -> Result<usize, String> {
    dim.eval(symbols)
        .and_then(|size| usize::try_from(size).ok())
        .ok_or_else(|| format!("size {dim}"))
}

/// The results of an operator, checked against the types that it is said to yield.
pub(super) fn run(
    precision: Precision,
    symbols: &[i64],
    op: &Op,
    operands: &[&Tensor],
    types: &[TensorType],
) -> Result<Vec<Tensor>, String> {
    check(op, operands)?;
    let results = compute(precision, symbols, op, operands, types)?;
    if results.len() != types.len() {
        return Err(format!(
            "{} results instead of {}",
            results.len(),
            types.len()
        ));
    }
    for (result, expected) in results.iter().zip(types) {
        let sizes = shape(&expected.shape, symbols)?;
        if result.dtype != expected.dtype || result.shape != sizes {
            return Err(format!(
                "{}{:?} instead of {expected}",
                result.dtype, result.shape
            ));
        }
    }
    Ok(results)
}

fn causal_offset(scores: &Scores, symbols: &[i64]) -> Result<i64, String> {
    match scores.mask {
        AttentionMask::Causal { offset } => offset
            .eval(symbols)
            .ok_or_else(|| "an unbound offset".into()),
        _ => Ok(0),
    }
}

/// Whether attributes and operands fit each other as far as indexing relies on it.
fn check(op: &Op, operands: &[&Tensor]) -> Result<(), String> {
    let axis = match op {
        Op::Slice { axis, .. }
        | Op::Concat { axis }
        | Op::Take { axis }
        | Op::TakeAlongAxis { axis }
        | Op::PutAlongAxis { axis }
        | Op::AddAlongAxis { axis }
        | Op::Softmax { axis }
        | Op::Scan { axis, .. }
        | Op::Sort { axis, .. }
        | Op::Topk { axis, .. } => Some(*axis),
        _ => None,
    };
    let rank = operands.first().map_or(0, |x| x.shape.len());
    if axis.is_some_and(|axis| axis >= rank) {
        return Err(format!("axis {axis:?} of rank {rank}"));
    }
    let vectors = match op {
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => operands.get(1..),
        Op::AddRmsNorm { .. } | Op::AddLayerNorm { .. } => operands.get(2..),
        _ => None,
    };
    let last = operands.first().and_then(|x| x.shape.last());
    for vector in vectors.unwrap_or_default() {
        if Some(&vector.len()) != last {
            return Err(format!("a weight of {} elements", vector.len()));
        }
    }
    match op {
        Op::Rope { rotary_dim, style } => {
            let [cos, sin, heads @ ..] = operands else {
                return Err("no cos and sin".into());
            };
            let needed = match style {
                RopeStyle::RotateHalf | RopeStyle::RotatePairs => *rotary_dim,
                _ => rotary_dim / 2,
            };
            let fits = |x: &&Tensor| {
                let ([outer @ .., tokens, _, size], [c_outer @ .., rows, columns]) =
                    (x.shape.as_slice(), cos.shape.as_slice())
                else {
                    return false;
                };
                *rotary_dim >= 0
                    && (rows, *columns) == (tokens, needed as usize)
                    && c_outer.len() == outer.len()
                    && c_outer.iter().zip(outer).all(|(c, x)| c == x || *c == 1)
                    && sin.shape == cos.shape
                    && *rotary_dim as usize <= *size
            };
            heads
                .iter()
                .all(fits)
                .then_some(())
                .ok_or("angles of another shape".into())
        }
        _ => Ok(()),
    }
}

fn compute(
    precision: Precision,
    symbols: &[i64],
    op: &Op,
    operands: &[&Tensor],
    types: &[TensorType],
) -> Result<Vec<Tensor>, String> {
    let first = types.first().ok_or("no result")?;
    let sizes = shape(&first.shape, symbols)?;
    let operand = |index: usize| operands.get(index).copied().ok_or("a missing operand");
    let optional = |index: usize| operands.get(index).copied();
    let one = match op {
        Op::Scalar(value) | Op::Full { value, .. } => {
            Tensor::full(first.dtype, sizes, Number::of(*value, symbols)?)?
        }
        Op::Arange { start, step, .. } => {
            let start = start.eval(symbols).ok_or("an unbound start")?;
            let length: usize = sizes.iter().product();
            let values = (0..length as i64).map(|i| start.wrapping_add(step.wrapping_mul(i)));
            let values = Tensor::ints(crate::ir::DType::Int64, sizes, values.collect());
            pointwise::cast(Precision::Rounded, &values, first.dtype)?
        }
        Op::Reshape { .. } => movement::reshape(operand(0)?, sizes)?,
        Op::Transpose { permutation } => movement::transpose(operand(0)?, permutation)?,
        Op::Broadcast { .. } => operand(0)?.broadcast(&sizes)?,
        Op::Slice {
            axis, start, step, ..
        } => {
            let step = usize::try_from(*step).map_err(|_| "a negative step")?;
            movement::slice(operand(0)?, *axis, size(*start, symbols)?, step, sizes)?
        }
        Op::Concat { axis } => movement::concat(operands, *axis, sizes)?,
        Op::Take { axis } => movement::take(operand(0)?, operand(1)?, *axis, sizes)?,
        Op::TakeAlongAxis { axis } => movement::take_along_axis(operand(0)?, operand(1)?, *axis)?,
        Op::PutAlongAxis { axis } => {
            movement::put_along_axis(operand(0)?, operand(1)?, operand(2)?, *axis)?
        }
        Op::AddAlongAxis { axis } => {
            reduce::add_along_axis(precision, operand(0)?, operand(1)?, operand(2)?, *axis)?
        }
        Op::Pad { low, value, .. } => {
            movement::pad(operand(0)?, low, Number::of(*value, symbols)?, sizes)?
        }
        Op::Tril { diagonal } => movement::triangle(operand(0)?, |d| d <= *diagonal)?,
        Op::Triu { diagonal } => movement::triangle(operand(0)?, |d| d >= *diagonal)?,
        Op::Cast { dtype } => pointwise::cast(precision, operand(0)?, *dtype)?,
        Op::Unary(function) => pointwise::unary(precision, *function, operand(0)?)?,
        Op::Binary(function) => {
            pointwise::binary(precision, *function, operand(0)?, operand(1)?, sizes)?
        }
        Op::Where => pointwise::select(operand(0)?, operand(1)?, operand(2)?, sizes)?,
        Op::Reduce { function, axes, .. } => {
            reduce::reduce(precision, *function, operand(0)?, axes, sizes)?
        }
        Op::Softmax { axis } => reduce::softmax(precision, operand(0)?, *axis)?,
        Op::Scan { function, axis } => reduce::scan(precision, *function, operand(0)?, *axis)?,
        Op::Sort { axis, descending } => {
            let length = *operand(0)?.shape.get(*axis).ok_or("a missing axis")?;
            return reduce::sort(operand(0)?, *axis, *descending, length);
        }
        Op::Convolution(attributes) => {
            convolution(precision, attributes, operand(0)?, operand(1)?, sizes)?
        }
        Op::Topk { axis, k } => {
            let count = usize::try_from(*k).map_err(|_| "a negative count")?;
            return reduce::sort(operand(0)?, *axis, true, count);
        }
        Op::Matmul => matmul(precision, operand(0)?, operand(1)?, None, sizes)?,
        Op::Addmm => matmul(
            precision,
            operand(0)?,
            operand(1)?,
            Some(operand(2)?),
            sizes,
        )?,
        Op::ExpertMatmul => expert_matmul(precision, operand(0)?, operand(1)?, operand(2)?, sizes)?,
        Op::RmsNorm { eps } => {
            let x = operand(0)?;
            fused::rms_norm(precision, x, x.dtype, optional(1), eps.get())?
        }
        Op::AddRmsNorm { eps, rounded_sum } => {
            let (x, residual) = (operand(0)?, operand(1)?);
            return fused::add_rms_norm(
                precision,
                x,
                residual,
                optional(2),
                eps.get(),
                *rounded_sum,
            );
        }
        Op::AddLayerNorm { eps } => {
            let norm = [optional(2), optional(3)];
            return fused::add_layer_norm(precision, operand(0)?, operand(1)?, norm, eps.get());
        }
        Op::LayerNorm { eps } => {
            fused::layer_norm(precision, operand(0)?, optional(1), optional(2), eps.get())?
        }
        Op::Rope { style, rotary_dim } => {
            let rotary_dim = usize::try_from(*rotary_dim).map_err(|_| "a negative size")?;
            let angles = [operand(0)?, operand(1)?];
            return operands[2..]
                .iter()
                .map(|x| fused::rope(precision, *style, rotary_dim, angles, x))
                .collect();
        }
        Op::GatedActivation { activation } => {
            fused::gated(precision, *activation, operands, &sizes)?
        }
        Op::AttentionScores(scores) => {
            let offset = causal_offset(scores, symbols)?;
            attention::attention_scores(precision, scores, offset, operands, sizes)?
        }
        Op::ScaledDotProductAttention { scores, sinks } => {
            let offset = causal_offset(scores, symbols)?;
            attention::attention(precision, scores, *sinks, offset, operands, sizes)?
        }
        Op::Input(_)
        | Op::Parameter(_)
        | Op::Attention { .. }
        | Op::SparseAttention { .. }
        | Op::SelectKeys { .. }
        | Op::Recurrence { .. }
        | Op::Project(_)
        | Op::Island { .. } => return Err("it has no meaning to the interpreter".into()),
    };
    Ok(vec![one])
}
