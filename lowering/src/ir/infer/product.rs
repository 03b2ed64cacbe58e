// SPDX-License-Identifier: Apache-2.0
//! Types of products and convolutions.

use super::check::{arity, broadcast, same_dtype};
use crate::ir::{Convolution, DType, Dim, TensorType};

pub(super) fn matmul(x: &TensorType, y: &TensorType) -> Result<TensorType, String> {
    same_dtype(x, y)?;
    let (m, n) = (x.rank(), y.rank());
    if m < 2 || n < 2 || x.shape[m - 1] != y.shape[n - 2] {
        return Err(format!("product of {x} and {y}"));
    }
    let mut shape = broadcast(&x.shape[..m - 2], &y.shape[..n - 2])?;
    shape.extend([x.shape[m - 2], y.shape[n - 1]]);
    Ok(TensorType {
        dtype: x.dtype,
        shape,
    })
}

/// See [`Op::ExpertMatmul`](crate::ir::Op::ExpertMatmul).
pub(super) fn expert_matmul(operands: &[&TensorType]) -> Result<TensorType, String> {
    let [x, weights, experts] = arity(operands)?;
    same_dtype(&x, &weights)?;
    let whole = matches!(experts.dtype, DType::Int32 | DType::Int64 | DType::Uint32);
    match (
        x.shape.as_slice(),
        weights.shape.as_slice(),
        experts.shape.as_slice(),
    ) {
        (&[tokens, slots, inner], &[count, columns, rows], &[t, k])
            if whole
                && x.dtype.is_float()
                && inner == rows
                && tokens == t
                && (slots == k || slots == Dim::Fixed(1))
                && count.fixed().is_some_and(|count| count > 0) =>
        {
            Ok(TensorType {
                dtype: x.dtype,
                shape: vec![t, k, columns],
            })
        }
        _ => Err(format!("{x} by the experts {experts} of {weights}")),
    }
}

/// Shape of a convolution's result.
pub(super) fn convolved(
    attributes: &Convolution,
    x: &TensorType,
    weight: &TensorType,
) -> Option<Vec<Dim>> {
    let Convolution {
        stride,
        low,
        high,
        dilation,
        expansion,
        groups,
        ..
    } = attributes;
    let axes = x.rank().checked_sub(2).filter(|axes| *axes > 0)?;
    let lengths = [stride, low, high, dilation, expansion].map(Vec::len);
    let positive = [stride, dilation, expansion]
        .into_iter()
        .flatten()
        .chain([groups])
        .all(|number| (1..=MAX_STEP).contains(number));
    let padding = low
        .iter()
        .chain(high)
        .all(|zeros| (0..=MAX_STEP).contains(zeros));
    let channels = weight.last()?.checked_mul(Dim::Fixed(*groups))?;
    let fits = x.dtype.is_float()
        && weight.rank() == x.rank()
        && lengths == [axes; 5]
        && positive
        && padding
        && x.last() == Some(channels)
        && weight.shape[0].checked_div(*groups).is_some();
    if !fits {
        return None;
    }
    let mut shape = vec![x.shape[0]];
    for axis in 0..axes {
        let (size, window) = (x.shape[axis + 1], weight.shape[axis + 1]);
        let spread = |size: Dim, step: i64| {
            size.checked_sub(Dim::Fixed(1))?
                .checked_mul(Dim::Fixed(step))
        };
        let room = spread(size, expansion[axis])?
            .checked_sub(spread(window, dilation[axis])?)?
            .checked_add(Dim::Fixed(low[axis] + high[axis]))?;
        let windows = room
            .floor_div(Dim::Fixed(stride[axis]))?
            .checked_add(Dim::Fixed(1))?;
        if windows.fixed().is_some_and(|windows| windows < 1) {
            return None;
        }
        shape.push(windows);
    }
    shape.push(weight.shape[0]);
    Some(shape)
}

/// Strides and paddings beyond this are mistakes.
pub(super) const MAX_STEP: i64 = 1 << 20;
