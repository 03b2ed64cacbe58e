// SPDX-License-Identifier: Apache-2.0
//! Reductions, scans and sorting.

use super::instruction::Outputs;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, dtype};
use lowering::ir::{DType, Reduction, Scan};

/// `f(x)` over the axes; 16-bit floats accumulate in float32.
pub fn reduce(
    mlx: &Mlx,
    function: Reduction,
    x: &Array,
    axes: &[i32],
    keepdims: bool,
    result: DType,
) -> Result<Array> {
    let accumulates = matches!(function, Reduction::Sum | Reduction::Mean | Reduction::Prod);
    let wide = if accumulates && dtype(x).is_some_and(DType::is_half) {
        Some(mlx.cast(x, DType::Float32)?)
    } else {
        None
    };
    let x = wide.as_ref().unwrap_or(x);
    let reduced = match function {
        Reduction::Sum => mlx.sum(x, axes, keepdims)?,
        Reduction::Mean => mlx.mean(x, axes, keepdims)?,
        Reduction::Max => mlx.max(x, axes, keepdims)?,
        Reduction::Min => mlx.min(x, axes, keepdims)?,
        Reduction::Prod => mlx.prod(x, axes, keepdims)?,
        Reduction::All => mlx.all(x, axes, keepdims)?,
        Reduction::Any => mlx.any(x, axes, keepdims)?,
        Reduction::Argmax | Reduction::Argmin => {
            return arg_reduce(mlx, function, x, axes, keepdims, result);
        }
    };
    Ok(mlx.ensure(reduced, result)?)
}

fn arg_reduce(
    mlx: &Mlx,
    function: Reduction,
    x: &Array,
    axes: &[i32],
    keepdims: bool,
    result: DType,
) -> Result<Array> {
    let find = |x: &Array, axis: i32, keepdims: bool| match function {
        Reduction::Argmax => mlx.argmax(x, axis, keepdims),
        _ => mlx.argmin(x, axis, keepdims),
    };
    let index = match axes {
        [axis] => find(x, *axis, keepdims)?,
        all if all.len() == x.ndim() => {
            let flat = mlx.reshape(x, &[-1])?;
            let index = find(&flat, 0, false)?;
            let shape = if keepdims {
                vec![1; x.ndim()]
            } else {
                Vec::new()
            };
            mlx.reshape(&index, &shape)?
        }
        some => {
            return Err(Error::Unsupported(format!(
                "the index of an extremum over axes {some:?}"
            )));
        }
    };
    Ok(mlx.cast(&index, result)?)
}

/// Running `f(x)` along the axis; 16-bit floats accumulate in float32.
pub fn scan(mlx: &Mlx, function: Scan, x: &Array, axis: usize, result: DType) -> Result<Array> {
    let wide = match dtype(x) {
        Some(narrow) if narrow.is_half() => Some(mlx.cast(x, DType::Float32)?),
        _ => None,
    };
    let (x, axis) = (wide.as_ref().unwrap_or(x), axis as i32);
    let running = match function {
        Scan::Sum => mlx.cumsum(x, axis)?,
        Scan::Prod => mlx.cumprod(x, axis)?,
        Scan::Max => mlx.cummax(x, axis)?,
        Scan::Min => mlx.cummin(x, axis)?,
    };
    Ok(mlx.ensure(running, result)?)
}

/// Values and int64 indices, sorted along the axis, equal elements in their order.
pub fn sort(mlx: &Mlx, x: &Array, axis: usize, descending: bool) -> Result<Outputs> {
    let order = order(mlx, x, axis, descending)?;
    gathered(mlx, x, &order, axis)
}

/// Values and int64 indices of the `k` largest along the axis, descending.
pub fn topk(mlx: &Mlx, x: &Array, axis: usize, k: i64) -> Result<Outputs> {
    let order = order(mlx, x, axis, true)?;
    let largest = mlx.slice(&order, axis, 0, super::movement::to_i32(k)?, 1)?;
    gathered(mlx, x, &largest, axis)
}

fn gathered(mlx: &Mlx, x: &Array, order: &Array, axis: usize) -> Result<Outputs> {
    let values = mlx.take_along_axis(x, order, axis as i32)?;
    Ok(Outputs::Two(values, mlx.cast(order, DType::Int64)?))
}

/// Stable order along the axis. MLX sorts ascending only: keys that fall as `x` grows turn it round.
fn order(mlx: &Mlx, x: &Array, axis: usize, descending: bool) -> Result<Array> {
    let axis = axis as i32;
    if !descending {
        return Ok(mlx.argsort(x, axis)?);
    }
    let keys = match dtype(x) {
        Some(dtype) if dtype.is_float() => mlx.negative(x)?,
        Some(DType::Bool) => mlx.logical_not(x)?,
        _ => mlx.bitwise_invert(x)?,
    };
    Ok(mlx.argsort(&keys, axis)?)
}
