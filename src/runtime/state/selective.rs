// SPDX-License-Identifier: Apache-2.0
//! `S = e^(dt a) S + dt x b^T`, `y = S c`, a decay for each element of the state.
//!
//! Within a chunk, pairs `(f, s)` for `S -> f S + s` compose to `(f2 f1, f2 s1 + s2)`: a scan of
//! doubling distance (Hillis and Steele, 1986). No factor exceeds 1 where `a` is negative.

use super::{chunk, chunks, join};
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx};

const CHUNK: i32 = 32;

/// `x, dt [n, l, d], a [d, s], b, c [n, l, s], state [n, d, s] -> y [n, l, d], state`
pub fn run(mlx: &Mlx, operands: [&Array; 5], state: &Array) -> Result<(Array, Array)> {
    let [x, dt, a, b, c] = operands;
    let ([size, length, channels], [_, width]) = (x.shape(), a.shape()) else {
        return Err(Error::Unsupported(
            "a selective scan of another rank".into(),
        ));
    };
    let (size, length, channels, width) = (*size, *length, *channels, *width);
    let input = mlx.multiply(x, dt)?;
    let mut state = mlx.reshape(state, &[size, 1, channels, width])?;
    let mut results = Vec::new();
    for (start, stop) in chunks(length, CHUNK) {
        let count = stop - start;
        let part = |x: &Array, shape: [i32; 2]| -> Result<Array> {
            let part = chunk(mlx, x, start, stop)?;
            Ok(mlx.reshape(&part, &[size, count, shape[0], shape[1]])?)
        };
        let (column, row) = ([channels, 1], [1, width]);
        let mut factors = mlx.exp(&mlx.multiply(&part(dt, column)?, a)?)?;
        let mut sums = mlx.multiply(&part(&input, column)?, &part(b, row)?)?;
        sums = absorb(mlx, &factors, &sums, &state, count)?;
        let mut distance = 1;
        while distance < count {
            let later = |x: &Array| chunk(mlx, x, distance, count);
            let earlier = |x: &Array| chunk(mlx, x, 0, count - distance);
            let moved = mlx.multiply(&later(&factors)?, &earlier(&sums)?)?;
            let new = mlx.add(&later(&sums)?, &moved)?;
            sums = mlx.concatenate(&[&chunk(mlx, &sums, 0, distance)?, &new], 1)?;
            let new = mlx.multiply(&later(&factors)?, &earlier(&factors)?)?;
            factors = mlx.concatenate(&[&chunk(mlx, &factors, 0, distance)?, &new], 1)?;
            distance *= 2;
        }
        state = chunk(mlx, &sums, count - 1, count)?;
        let output = mlx.multiply(&sums, &part(c, row)?)?;
        results.push(mlx.sum(&output, &[3], false)?);
    }
    let state = mlx.reshape(&state, &[size, channels, width])?;
    Ok((join(mlx, results)?, state))
}

/// The first token's sum with the state before it.
fn absorb(mlx: &Mlx, factors: &Array, sums: &Array, state: &Array, count: i32) -> Result<Array> {
    let kept = mlx.multiply(&chunk(mlx, factors, 0, 1)?, state)?;
    let first = mlx.add(&chunk(mlx, sums, 0, 1)?, &kept)?;
    if count == 1 {
        return Ok(first);
    }
    Ok(mlx.concatenate(&[&first, &chunk(mlx, sums, 1, count)?], 1)?)
}
