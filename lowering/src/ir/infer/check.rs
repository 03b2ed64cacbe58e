// SPDX-License-Identifier: Apache-2.0
//! What operators ask of their operands.

use crate::ir::{DType, Dim, TensorType};

/// Shape of a broadcast of two shapes, NumPy's rule; symbolic sizes must be equal or meet a 1.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let size = |shape: &[Dim], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .map_or(Dim::Fixed(1), |axis| shape[axis])
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            (x, y) => Err(format!("sizes {x} and {y} do not broadcast")),
        })
        .collect()
}

pub(super) fn check_axis(axis: usize, rank: usize) -> Result<(), String> {
    if axis < rank {
        Ok(())
    } else {
        Err(format!("axis {axis} of a rank {rank} operand"))
    }
}

pub(super) fn arity<const N: usize>(operands: &[&TensorType]) -> Result<[TensorType; N], String> {
    let array: Result<[&TensorType; N], _> = operands.try_into();
    array
        .map(|types| types.map(Clone::clone))
        .map_err(|_| format!("{} operands instead of {N}", operands.len()))
}

pub(super) fn same_dtype(a: &TensorType, b: &TensorType) -> Result<(), String> {
    if a.dtype == b.dtype {
        Ok(())
    } else {
        Err(format!("operands {} and {}", a.dtype, b.dtype))
    }
}

pub(super) fn typed(dtype: DType, shape: Vec<Dim>) -> Vec<TensorType> {
    vec![TensorType { dtype, shape }]
}

/// Normalised vectors and their weight: floats, and `w` is `[n]` where `x` is `[.., n]`.
pub(super) fn check_weight(x: &TensorType, weights: &[&TensorType]) -> Result<(), String> {
    let floats = x.dtype.is_float() && weights.iter().all(|weight| weight.dtype.is_float());
    if !floats || x.rank() == 0 {
        return Err(format!("a weighted {x}"));
    }
    for weight in weights {
        if weight.rank() != 1 || weight.last() != x.last() {
            return Err(format!("weight {weight} for {x}"));
        }
    }
    Ok(())
}

pub(super) fn check_indices(indices: &TensorType) -> Result<(), String> {
    match indices.dtype {
        DType::Int32 | DType::Int64 | DType::Uint32 => Ok(()),
        other => Err(format!("indices of dtype {other}")),
    }
}
