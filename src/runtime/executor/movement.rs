// SPDX-License-Identifier: Apache-2.0
//! Constants, slices and indexed access with PyTorch's meaning.

use super::instruction::Context;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, dtype as dtype_of, host_array, scalar as rank_zero};
use lowering::ir::{DType, Dim, Scalar};

/// A size as MLX takes it.
pub fn to_i32(value: i64) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Unsupported(format!("{value} does not fit 32 bits")))
}

/// A rank-0 constant.
pub fn scalar(context: Context, value: Scalar, dtype: DType) -> Result<Array> {
    let exact = match value {
        Scalar::Int(value) => Some(value),
        Scalar::Size(dim) => Some(context.size(dim)?),
        Scalar::Bool(_) | Scalar::Float(_) => None,
    };
    match exact {
        // A float64 holds no integer above 2^53.
        Some(value) => {
            let array = host_array(&value.to_ne_bytes(), &[], DType::Int64)?;
            Ok(context.mlx.ensure(array, dtype)?)
        }
        None => Ok(rank_zero(
            context.mlx,
            value.as_f64().unwrap_or(f64::NAN),
            dtype,
        )?),
    }
}

/// Every element the value.
pub fn full(context: Context, value: Scalar, shape: &[Dim], dtype: DType) -> Result<Array> {
    let value = scalar(context, value, dtype)?;
    Ok(context.mlx.full(&context.shape(shape)?, &value, dtype)?)
}

/// `start + step * i`, exact for every integer.
pub fn arange(context: Context, start: Dim, step: i64, length: Dim, dtype: DType) -> Result<Array> {
    let (start, length) = (context.size(start)?, context.size(length)?);
    let values: Vec<u8> = (0..length)
        .flat_map(|index| (start + step * index).to_ne_bytes())
        .collect();
    let array = host_array(&values, &[to_i32(length)?], DType::Int64)?;
    Ok(context.mlx.ensure(array, dtype)?)
}

/// `x[start:stop:step]` along the axis.
pub fn slice(
    context: Context,
    x: &Array,
    axis: usize,
    start: Dim,
    stop: Dim,
    step: i64,
) -> Result<Array> {
    let (start, stop) = (to_i32(context.size(start)?)?, to_i32(context.size(stop)?)?);
    // MLX would cut a bound that lies outside.
    let length = x.shape().get(axis).copied().unwrap_or(0);
    if !(0 <= start && start <= stop && stop <= length) {
        let reason = format!("slice {start}:{stop} of {length} elements");
        return Err(Error::Unsupported(reason));
    }
    Ok(context.mlx.slice(x, axis, start, stop, to_i32(step)?)?)
}

/// Constant padding.
pub fn pad(
    context: Context,
    x: &Array,
    low: &[i64],
    high: &[i64],
    value: Scalar,
    dtype: DType,
) -> Result<Array> {
    let sizes = |sizes: &[i64]| {
        sizes
            .iter()
            .map(|size| to_i32(*size))
            .collect::<Result<Vec<_>>>()
    };
    let value = scalar(context, value, dtype)?;
    Ok(context.mlx.pad(x, &sizes(low)?, &sizes(high)?, &value)?)
}

/// `torch.gather`: the indices may be shorter than `x` on the other axes.
pub fn take_along_axis(mlx: &Mlx, x: &Array, indices: &Array, axis: usize) -> Result<Array> {
    let x = leading(mlx, x, indices.shape(), axis)?;
    Ok(mlx.take_along_axis(&x, indices, axis as i32)?)
}

/// `torch.scatter`: the indices may be shorter than `x` on the other axes, the updates no shorter
/// than the indices.
pub fn put_along_axis(
    mlx: &Mlx,
    x: &Array,
    indices: &Array,
    updates: &Array,
    axis: usize,
) -> Result<Array> {
    let updates = leading(mlx, updates, indices.shape(), usize::MAX)?;
    let part = leading(mlx, x, indices.shape(), axis)?;
    let written = mlx.put_along_axis(&part, indices, &updates, axis as i32)?;
    replace_leading(mlx, x, &part, written)
}

/// `torch.scatter_add`, with the same freedom; 16-bit floats accumulate in float32.
pub fn add_along_axis(
    mlx: &Mlx,
    x: &Array,
    indices: &Array,
    updates: &Array,
    axis: usize,
) -> Result<Array> {
    if let Some(narrow) = dtype_of(x).filter(|dtype| dtype.is_half()) {
        let (x, updates) = (
            mlx.cast(x, DType::Float32)?,
            mlx.cast(updates, DType::Float32)?,
        );
        let sum = add_along_axis(mlx, &x, indices, &updates, axis)?;
        return Ok(mlx.cast(&sum, narrow)?);
    }
    let updates = leading(mlx, updates, indices.shape(), usize::MAX)?;
    let part = leading(mlx, x, indices.shape(), axis)?;
    let written = mlx.scatter_add_axis(&part, indices, &updates, axis as i32)?;
    replace_leading(mlx, x, &part, written)
}

fn replace_leading(mlx: &Mlx, x: &Array, part: &Array, written: Array) -> Result<Array> {
    if part.shape() == x.shape() {
        return Ok(written);
    }
    Ok(mlx.slice_update(x, &written)?)
}

/// `x` cut to the leading part that has these sizes, except along one axis.
fn leading(mlx: &Mlx, x: &Array, sizes: &[i32], except: usize) -> Result<Array> {
    let mut part = x.clone();
    for (axis, size) in sizes.iter().enumerate() {
        if axis != except && part.shape().get(axis).is_some_and(|found| found > size) {
            part = mlx.slice(&part, axis, 0, *size, 1)?;
        }
    }
    Ok(part)
}
