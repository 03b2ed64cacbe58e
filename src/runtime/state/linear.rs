// SPDX-License-Identifier: Apache-2.0
//! `S = e^decay S + v k^T`, `y = S q`, a decay for each head and token.
//!
//! Within a chunk (state space duality, arXiv:2405.21060, section 6), with `G` the running sum of
//! decays: `y_i = e^(G_i) S q_i + sum_{j <= i} e^(G_i - G_j) (q_i . k_j) v_j`. Every exponent is at
//! most zero.

use super::{chunk, chunks, join, lower_triangle, swap};
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, scalar};
use lowering::ir::DType;

const CHUNK: i32 = 64;

/// `q, k [n, l, g, d], v [n, l, h, p], decay [n, l, h], state [n, h, p, d] -> y [n, l, h, p], state`
pub fn run(mlx: &Mlx, operands: [&Array; 4], state: &Array) -> Result<(Array, Array)> {
    let [q, k, v, decay] = operands;
    let ([size, length, groups, _], [_, _, heads, _]) = (q.shape(), v.shape()) else {
        return Err(Error::Unsupported("a linear scan of another rank".into()));
    };
    if *groups < 1 || heads % groups != 0 {
        let reason = format!("a linear scan of {heads} heads in {groups} groups");
        return Err(Error::Unsupported(reason));
    }
    let share = heads / groups;
    let (p, d) = (v.shape()[3], q.shape()[3]);
    let mut state = mlx.reshape(state, &[*size, *groups, share, p, d])?;
    let mut results = Vec::new();
    for (start, stop) in chunks(*length, CHUNK) {
        let count = stop - start;
        let part = |x: &Array| chunk(mlx, x, start, stop);
        // [n, g, 1, c, d], [n, g, s, c, p], [n, g, s, c, 1]
        let keys = |x: &Array| -> Result<Array> {
            let x = mlx.reshape(&part(x)?, &[*size, count, *groups, 1, d])?;
            Ok(mlx.transpose(&x, &[0, 2, 3, 1, 4])?)
        };
        let heads = |x: &Array, width: i32| -> Result<Array> {
            let x = mlx.reshape(&part(x)?, &[*size, count, *groups, share, width])?;
            Ok(mlx.transpose(&x, &[0, 2, 3, 1, 4])?)
        };
        let (q, k) = (keys(q)?, keys(k)?);
        let (v, decay) = (heads(v, p)?, heads(decay, 1)?);
        let (result, after) = if count == 1 {
            step(mlx, [&q, &k, &v, &decay], &state)?
        } else {
            chunked(mlx, [&q, &k, &v, &decay], &state, count)?
        };
        state = after;
        let result = mlx.transpose(&result, &[0, 3, 1, 2, 4])?;
        results.push(mlx.reshape(&result, &[*size, count, groups * share, p])?);
    }
    let state = mlx.reshape(&state, &[*size, groups * share, p, d])?;
    Ok((join(mlx, results)?, state))
}

/// One token: `[.., 1, d]` or `[.., 1, p]` operands.
fn step(mlx: &Mlx, operands: [&Array; 4], state: &Array) -> Result<(Array, Array)> {
    let [q, k, v, decay] = operands;
    let kept = mlx.multiply(state, &mlx.exp(decay)?)?;
    let state = mlx.add(&kept, &mlx.multiply(&swap(mlx, v)?, k)?)?;
    let result = mlx.matmul(&state, &swap(mlx, q)?)?;
    Ok((swap(mlx, &result)?, state))
}

fn chunked(mlx: &Mlx, operands: [&Array; 4], state: &Array, count: i32) -> Result<(Array, Array)> {
    let [q, k, v, decay] = operands;
    let sums = mlx.cumsum(decay, 3)?; // [n, g, s, c, 1]
    let last = mlx.slice(&sums, 3, count - 1, count, 1)?;
    let weights = mlx.multiply(
        &mlx.matmul(q, &swap(mlx, k)?)?,
        &decays(mlx, &sums, count, 0)?,
    )?;
    let inside = mlx.matmul(&weights, v)?;
    let before = mlx.matmul(q, &swap(mlx, state)?)?;
    let result = mlx.add(&inside, &mlx.multiply(&before, &mlx.exp(&sums)?)?)?;
    let faded = mlx.multiply(v, &mlx.exp(&mlx.subtract(&last, &sums)?)?)?;
    let kept = mlx.multiply(state, &mlx.exp(&last)?)?;
    let state = mlx.add(&kept, &mlx.matmul(&swap(mlx, &faded)?, k)?)?;
    Ok((result, state))
}

/// `e^(G_i - G_j)` of running sums `[.., c, 1]` where `j <= i + diagonal`, else 0: `[.., c, c]`.
pub fn decays(mlx: &Mlx, sums: &Array, count: i32, diagonal: i32) -> Result<Array> {
    let differences = mlx.subtract(sums, &swap(mlx, sums)?)?;
    let triangle = lower_triangle(mlx, count, diagonal)?;
    let seen = mlx.greater(&triangle, &scalar(mlx, 0.0, DType::Float32)?)?;
    // Before the exponential: above the diagonal it may overflow.
    let least = scalar(mlx, f64::NEG_INFINITY, DType::Float32)?;
    Ok(mlx.exp(&mlx.select(&seen, &differences, &least)?)?)
}
