// SPDX-License-Identifier: Apache-2.0
//! Convolutions.

use super::movement::to_i32;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx, Windows};
use lowering::ir::Convolution;

/// Channels last: `x [n, .., c], w [m, .., c / groups] -> [n, .., m]`.
pub fn convolve(mlx: &Mlx, attributes: &Convolution, x: &Array, weight: &Array) -> Result<Array> {
    let numbers = |numbers: &[i64]| {
        numbers
            .iter()
            .map(|number| to_i32(*number))
            .collect::<Result<Vec<i32>>>()
    };
    let windows = Windows {
        stride: &numbers(&attributes.stride)?,
        low: &numbers(&attributes.low)?,
        high: &numbers(&attributes.high)?,
        dilation: &numbers(&attributes.dilation)?,
        expansion: &numbers(&attributes.expansion)?,
        groups: to_i32(attributes.groups)?,
        flip: attributes.flip,
    };
    Ok(mlx.convolve(x, weight, &windows)?)
}
