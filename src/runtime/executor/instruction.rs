// SPDX-License-Identifier: Apache-2.0
//! One instruction: an operator on arrays.

use super::{attention, convolution, experts, movement, norm, pointwise, reduction, rope};
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx};
use lowering::ir::{DType, Dim, Op, TensorType};
use lowering::plan::eval_shape;

/// What instructions of one run share.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub mlx: &'a Mlx,
    /// Values of the graph's symbols.
    pub symbols: &'a [i64],
}

impl Context<'_> {
    /// A shape under the run's symbols.
    pub fn shape(&self, shape: &[Dim]) -> Result<Vec<i32>> {
        eval_shape(shape, self.symbols)
            .ok_or_else(|| Error::Unsupported(format!("shape {shape:?} has no value")))
    }

    /// A size under the run's symbols.
    pub fn size(&self, dim: Dim) -> Result<i64> {
        dim.eval(self.symbols)
            .ok_or_else(|| Error::Unsupported(format!("size {dim} has no value")))
    }
}

/// Results of an instruction; nearly all have one.
pub enum Outputs {
    One(Array),
    Two(Array, Array),
    Many(Vec<Array>),
}

impl From<Array> for Outputs {
    fn from(array: Array) -> Outputs {
        Outputs::One(array)
    }
}

/// Operands by position.
pub struct Operands<'a>(pub &'a [&'a Array]);

impl<'a> Operands<'a> {
    /// The operand; an error where the plan gives too few.
    pub fn get(&self, index: usize) -> Result<&'a Array> {
        self.0
            .get(index)
            .copied()
            .ok_or_else(|| Error::Unsupported(format!("operand {index} is missing")))
    }
}

/// Results without elements of operands without elements: kernels of MLX's (scans, sorts) divide by
/// the size of an axis, which ends the process where it is zero.
fn of_nothing(
    context: Context,
    operands: &[&Array],
    types: &[TensorType],
) -> Result<Option<Outputs>> {
    if types.is_empty() || operands.iter().all(|x| x.size() > 0) {
        return Ok(None);
    }
    let mut results = Vec::with_capacity(types.len());
    for TensorType { dtype, shape } in types {
        let shape = context.shape(shape)?;
        if !shape.contains(&0) {
            return Ok(None);
        }
        results.push(context.mlx.zeros(&shape, *dtype)?);
    }
    Ok(Some(Outputs::Many(results)))
}

/// Adds the operator's nodes to MLX's graph.
///
/// # Errors
/// Effects, leaves and islands are not instructions and are refused; MLX's own errors pass through.
pub fn execute(
    context: Context,
    op: &Op,
    operands: &[&Array],
    types: &[TensorType],
) -> Result<Outputs> {
    let mlx = context.mlx;
    if let Some(empty) = of_nothing(context, operands, types)? {
        return Ok(empty);
    }
    let operands = Operands(operands);
    let dtype = types.first().map_or(DType::Float32, |first| first.dtype);
    let x = || operands.get(0);
    let y = || operands.get(1);
    let one: Array = match op {
        Op::Scalar(value) => movement::scalar(context, *value, dtype)?,
        Op::Full { value, shape } => movement::full(context, *value, shape, dtype)?,
        Op::Arange {
            start,
            step,
            length,
        } => movement::arange(context, *start, *step, *length, dtype)?,
        Op::Reshape { shape } => mlx.reshape(x()?, &context.shape(shape)?)?,
        Op::Transpose { permutation } => mlx.transpose(x()?, &axes(permutation))?,
        Op::Broadcast { shape } => mlx.broadcast_to(x()?, &context.shape(shape)?)?,
        Op::Slice {
            axis,
            start,
            stop,
            step,
            ..
        } => movement::slice(context, x()?, *axis, *start, *stop, *step)?,
        Op::Concat { axis } => mlx.concatenate(operands.0, *axis as i32)?,
        Op::Take { axis } => mlx.take(x()?, y()?, *axis as i32)?,
        Op::TakeAlongAxis { axis } => movement::take_along_axis(mlx, x()?, y()?, *axis)?,
        Op::PutAlongAxis { axis } => {
            movement::put_along_axis(mlx, x()?, y()?, operands.get(2)?, *axis)?
        }
        Op::AddAlongAxis { axis } => {
            movement::add_along_axis(mlx, x()?, y()?, operands.get(2)?, *axis)?
        }
        Op::Pad { low, high, value } => movement::pad(context, x()?, low, high, *value, dtype)?,
        Op::Tril { diagonal } => mlx.tril(x()?, movement::to_i32(*diagonal)?)?,
        Op::Triu { diagonal } => mlx.triu(x()?, movement::to_i32(*diagonal)?)?,
        Op::Cast { dtype } => pointwise::cast(mlx, x()?, *dtype)?,
        Op::Unary(function) => pointwise::unary(mlx, *function, x()?)?,
        Op::Binary(function) => pointwise::binary(mlx, *function, x()?, y()?)?,
        Op::Where => mlx.select(x()?, y()?, operands.get(2)?)?,
        Op::Reduce {
            function,
            axes: over,
            keepdims,
        } => reduction::reduce(mlx, *function, x()?, &axes(over), *keepdims, dtype)?,
        Op::Softmax { axis } => mlx.softmax(x()?, *axis as i32)?,
        Op::Scan { function, axis } => reduction::scan(mlx, *function, x()?, *axis, dtype)?,
        Op::Sort { axis, descending } => return reduction::sort(mlx, x()?, *axis, *descending),
        Op::Topk { axis, k } => return reduction::topk(mlx, x()?, *axis, *k),
        Op::Matmul => mlx.matmul(x()?, y()?)?,
        Op::Addmm => mlx.addmm(operands.get(2)?, x()?, y()?, 1.0)?,
        Op::ExpertMatmul => {
            let count = y()?.shape().first().copied().unwrap_or(0);
            let route = experts::route(mlx, operands.get(2)?, count)?;
            experts::expert_matmul(mlx, x()?, y()?, &route)?
        }
        Op::Convolution(attributes) => convolution::convolve(mlx, attributes, x()?, y()?)?,
        Op::RmsNorm { eps } => {
            norm::rms_norm(mlx, x()?, operands.0.get(1).copied(), eps.get(), dtype)?
        }
        Op::AddRmsNorm { eps, rounded_sum } => {
            let weight = operands.0.get(2).copied();
            return norm::add_rms_norm(mlx, x()?, y()?, weight, eps.get(), *rounded_sum, dtype);
        }
        Op::AddLayerNorm { eps } => {
            let parameters = [2, 3].map(|at| operands.0.get(at).copied());
            return norm::add_layer_norm(mlx, x()?, y()?, parameters, eps.get(), dtype);
        }
        Op::LayerNorm { eps } => {
            let (weight, bias) = (operands.0.get(1).copied(), operands.0.get(2).copied());
            norm::layer_norm(mlx, x()?, weight, bias, eps.get(), dtype)?
        }
        Op::Rope { style, rotary_dim } => {
            let (angles, rotated) = ([x()?, y()?], &operands.0[2..]);
            let heads = rope::joint_heads(rotated);
            let table = rope::table(mlx, *style, heads, angles, operands.get(2)?)?;
            return rope::rotate_all(mlx, *rotary_dim, rotated, None, &table);
        }
        Op::GatedActivation { activation } => pointwise::gated(mlx, *activation, operands.0)?,
        Op::AttentionScores(scores) => attention::scores(context, scores, operands.0)?,
        Op::ScaledDotProductAttention { scores, sinks } => {
            attention::attend(context, scores, *sinks, operands.0)?
        }
        Op::Input(_)
        | Op::Parameter(_)
        | Op::Attention { .. }
        | Op::SparseAttention { .. }
        | Op::SelectKeys { .. }
        | Op::Recurrence { .. }
        | Op::Project(_)
        | Op::Island { .. } => {
            return Err(Error::Unsupported(format!(
                "{} is no instruction",
                op.name()
            )));
        }
    };
    Ok(Outputs::One(one))
}

/// Axes as MLX takes them.
pub fn axes(axes: &[usize]) -> Vec<i32> {
    axes.iter().map(|axis| *axis as i32).collect()
}
