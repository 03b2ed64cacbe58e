// SPDX-License-Identifier: Apache-2.0
//! Depthwise causal convolution; the state is the last inputs.

use super::batch::Batch;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, int_array};

/// `x [n, l, c], weight [c, w], state [n, w - 1, c] -> y [n, l, c], state`
pub fn run(
    mlx: &Mlx,
    batch: &Batch,
    x: &Array,
    weight: &Array,
    state: &Array,
) -> Result<(Array, Array)> {
    let (size, length, channels) = (batch.size, batch.length, x.shape()[2]);
    let [_, width] = weight.shape() else {
        return Err(Error::Unsupported(format!(
            "a convolution by {:?}",
            weight.shape()
        )));
    };
    let (width, kept) = (*width, state.shape()[1]);
    if kept + 1 < width {
        let reason = format!("a convolution over {width} tokens that keeps {kept}");
        return Err(Error::Unsupported(reason));
    }
    let inputs = mlx.concatenate(&[state, x], 1)?;
    let mut sum: Option<Array> = None;
    for tap in 0..width {
        let first = kept + 1 - width + tap;
        let shifted = mlx.slice(&inputs, 1, first, first + length, 1)?;
        let column = mlx.reshape(&mlx.slice(weight, 1, tap, tap + 1, 1)?, &[channels])?;
        let term = mlx.multiply(&shifted, &column)?;
        sum = Some(match sum {
            Some(sum) => mlx.add(&sum, &term)?,
            None => term,
        });
    }
    let result = sum.ok_or_else(|| Error::Unsupported("a convolution of width 0".into()))?;
    let state = match &batch.lengths {
        None => mlx.slice(&inputs, 1, length, length + kept, 1)?,
        Some(lengths) => {
            let rows: Vec<i32> = lengths
                .iter()
                .enumerate()
                .flat_map(|(request, own)| {
                    let first = request as i32 * (kept + length) + own;
                    first..first + kept
                })
                .collect();
            let rows = int_array(&rows, &[rows.len() as i32])?;
            let flat = mlx.reshape(&inputs, &[size * (kept + length), channels])?;
            mlx.reshape(&mlx.take(&flat, &rows, 0)?, &[size, kept, channels])?
        }
    };
    Ok((result, state))
}
