// SPDX-License-Identifier: Apache-2.0
//! The gated delta rule: `S = S diag(e^decay)`, `S = S + u k^T` with `u = beta (v - S k)`, `y = S q`.
//!
//! Within a chunk (arXiv:2412.06464, section 3.3), with `G` the running sum of decays and `S` the
//! state before it, the `u` solve the unit triangular system
//! `u_i + beta_i sum_{j < i} (k_i . k_j e^(G_i - G_j)) u_j = beta_i (v_i - S (k_i e^(G_i)))`.

use super::linear::decays;
use super::{chunk, chunks, join, lower_triangle, swap};
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, float_array, scalar};
use lowering::ir::DType;

/// With a decay for each head.
const CHUNK: i32 = 64;

/// With a decay for each channel of the keys, whose products take `chunk^2` of the channels.
const CHANNEL_CHUNK: i32 = 16;

/// `q, k [n, l, g, d], v [n, l, h, p], decay [n, l, h] or [n, l, h, d], beta [n, l, h],
/// state [n, h, p, d] -> y [n, l, h, p], state`
pub fn run(mlx: &Mlx, operands: [&Array; 5], state: &Array) -> Result<(Array, Array)> {
    let [q, k, v, decay, beta] = operands;
    let ([size, length, groups, d], [_, _, heads, p]) = (q.shape(), v.shape()) else {
        return Err(Error::Unsupported("a delta scan of another rank".into()));
    };
    let (size, length, groups, d, heads, p) = (*size, *length, *groups, *d, *heads, *p);
    if groups < 1 || heads % groups != 0 {
        let reason = format!("a delta scan of {heads} heads in {groups} groups");
        return Err(Error::Unsupported(reason));
    }
    let per_channel = decay.shape().len() == 4;
    let longest = if per_channel { CHANNEL_CHUNK } else { CHUNK };
    let mut state = state.clone();
    let mut results = Vec::new();
    for (start, stop) in chunks(length, longest) {
        let count = stop - start;
        let part = |x: &Array| chunk(mlx, x, start, stop);
        // A key head serves heads / groups value heads that follow each other: [n, h, c, d].
        let keys = |x: &Array| -> Result<Array> {
            let x = mlx.reshape(&part(x)?, &[size, count, groups, 1, d])?;
            let x = mlx.broadcast_to(&x, &[size, count, groups, heads / groups, d])?;
            let x = mlx.reshape(&x, &[size, count, heads, d])?;
            Ok(mlx.transpose(&x, &[0, 2, 1, 3])?)
        };
        let values = |x: &Array, width: i32| -> Result<Array> {
            let x = mlx.reshape(&part(x)?, &[size, count, heads, width])?;
            Ok(mlx.transpose(&x, &[0, 2, 1, 3])?)
        };
        let decay = values(decay, if per_channel { d } else { 1 })?;
        let operands = [
            &keys(q)?,
            &keys(k)?,
            &values(v, p)?,
            &decay,
            &values(beta, 1)?,
        ];
        let (result, after) = if count == 1 {
            step(mlx, operands, &state)?
        } else {
            chunked(mlx, operands, &state, count)?
        };
        state = after;
        results.push(mlx.transpose(&result, &[0, 2, 1, 3])?);
    }
    Ok((join(mlx, results)?, state))
}

/// One token: `[n, h, 1, ..]` operands.
fn step(mlx: &Mlx, operands: [&Array; 5], state: &Array) -> Result<(Array, Array)> {
    let [q, k, v, decay, beta] = operands;
    let kept = mlx.multiply(state, &mlx.exp(decay)?)?;
    let seen = swap(mlx, &mlx.matmul(&kept, &swap(mlx, k)?)?)?;
    let change = mlx.multiply(&mlx.subtract(v, &seen)?, beta)?;
    let state = mlx.add(&kept, &mlx.multiply(&swap(mlx, &change)?, k)?)?;
    let result = mlx.matmul(&state, &swap(mlx, q)?)?;
    Ok((swap(mlx, &result)?, state))
}

fn chunked(mlx: &Mlx, operands: [&Array; 5], state: &Array, count: i32) -> Result<(Array, Array)> {
    let [q, k, v, decay, beta] = operands;
    let sums = mlx.cumsum(decay, 2)?; // [n, h, c, 1 or d]
    let last = mlx.slice(&sums, 2, count - 1, count, 1)?;
    let grown = mlx.exp(&sums)?;
    let system = mlx.multiply(&products(mlx, k, k, &sums, count, -1)?, beta)?;
    let seen = mlx.matmul(&mlx.multiply(k, &grown)?, &swap(mlx, state)?)?;
    let right = mlx.multiply(&mlx.subtract(v, &seen)?, beta)?;
    let change = mlx.matmul(&unit_inverse(mlx, &system, count)?, &right)?;
    let inside = mlx.matmul(&products(mlx, q, k, &sums, count, 0)?, &change)?;
    let before = mlx.matmul(&mlx.multiply(q, &grown)?, &swap(mlx, state)?)?;
    let faded = mlx.multiply(k, &mlx.exp(&mlx.subtract(&last, &sums)?)?)?;
    let kept = mlx.multiply(state, &mlx.exp(&last)?)?;
    let state = mlx.add(&kept, &mlx.matmul(&swap(mlx, &change)?, &faded)?)?;
    Ok((mlx.add(&inside, &before)?, state))
}

/// `sum_d x_id k_jd e^(G_id - G_jd)` where `j <= i + diagonal`, else 0: `[n, h, c, c]`.
fn products(
    mlx: &Mlx,
    x: &Array,
    k: &Array,
    sums: &Array,
    count: i32,
    diagonal: i32,
) -> Result<Array> {
    let channels = sums.shape()[3];
    if channels == 1 {
        let plain = mlx.matmul(x, &swap(mlx, k)?)?;
        return Ok(mlx.multiply(&plain, &decays(mlx, sums, count, diagonal)?)?);
    }
    // [n, h, i, j, d]: factors e^(G_i) and e^(-G_j) apart would overflow.
    let row = |x: &Array| mlx.expand_dims(x, 3);
    let column = |x: &Array| mlx.expand_dims(x, 2);
    let differences = mlx.subtract(&row(sums)?, &column(sums)?)?;
    let triangle = mlx.expand_dims(&lower_triangle(mlx, count, diagonal)?, 2)?;
    let seen = mlx.greater(&triangle, &scalar(mlx, 0.0, DType::Float32)?)?;
    let least = scalar(mlx, f64::NEG_INFINITY, DType::Float32)?;
    let factors = mlx.exp(&mlx.select(&seen, &differences, &least)?)?;
    let terms = mlx.multiply(&mlx.multiply(&row(x)?, &column(k)?)?, &factors)?;
    Ok(mlx.sum(&terms, &[4], false)?)
}

/// `(I + x)^-1` of strictly lower triangular `x [.., c, c]`, by blocks of doubling size:
/// `[[A, 0], [C, B]]^-1 = [[A', 0], [-B' C A', B']]`. As exact as substitution, in `log2 c` products.
pub(super) fn unit_inverse(mlx: &Mlx, x: &Array, count: i32) -> Result<Array> {
    let shape = x.shape().to_vec();
    let identity = {
        let ones = lower_triangle(mlx, count, 0)?;
        mlx.subtract(&ones, &lower_triangle(mlx, count, -1)?)?
    };
    let mut inverse = mlx.broadcast_to(&identity, &shape)?;
    let mut block = 1;
    while block < count {
        // Of the blocks of 2 * block rows, the lower left quarter: rows in the second half of a block
        // and columns in the first half of the same.
        let quarter = quarters(count, block)?;
        let inner = mlx.multiply(x, &quarter)?;
        let product = mlx.matmul(&mlx.matmul(&inverse, &inner)?, &inverse)?;
        inverse = mlx.subtract(&inverse, &product)?;
        block *= 2;
    }
    Ok(inverse)
}

fn quarters(count: i32, block: i32) -> Result<Array> {
    let cells = (0..count).flat_map(|row| {
        (0..count).map(move |column| {
            let same = row / (2 * block) == column / (2 * block);
            let is_lower = same && row / block % 2 == 1 && column / block % 2 == 0;
            f32::from(u8::from(is_lower))
        })
    });
    Ok(float_array(&cells.collect::<Vec<_>>(), &[count, count])?)
}
