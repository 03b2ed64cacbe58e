// SPDX-License-Identifier: Apache-2.0
//! Recurrent layers: their states, and the recurrences as MLX operations. All is computed in float32;
//! a prompt is taken in chunks, a decoded token in one step.

mod batch;
mod cache;
mod conv;
mod delta;
mod linear;
mod metadata;
mod selective;
#[cfg(test)]
mod tests;

pub use batch::Batches;
pub use cache::{StateCaches, StateSpec};
pub use metadata::StateMetadata;

use super::error::{Error, Result};
use super::mlx::{Array, Mlx, dtype, scalar};
use batch::Batch;
use lowering::ir::{DType, Recurrence};

/// Runs a recurrence over all requests of a step: the results `[t, ..]` in float32, and the cache
/// `[num_slots, ..state]` with the new states. In place if the caller keeps no other handle of
/// `cache` when the result is evaluated.
pub fn run(
    mlx: &Mlx,
    function: Recurrence,
    batches: &Batches,
    operands: &[&Array],
    cache: &Array,
) -> Result<(Array, Array)> {
    let mut cache = cache.clone();
    let mut results = Vec::with_capacity(batches.batches.len());
    for batch in &batches.batches {
        let before = read(mlx, batch, &cache)?;
        let (result, after) = run_batch(mlx, function, batch, operands, &before)?;
        cache = write(mlx, batch, &cache, after)?;
        let mut shape = vec![batch.size * batch.length];
        shape.extend(&result.shape()[2..]);
        results.push(mlx.reshape(&result, &shape)?);
    }
    let result = match results.len() {
        0 => return Err(Error::Unsupported("a recurrence over no token".into())),
        1 => results.remove(0),
        _ => mlx.concatenate(&results.iter().collect::<Vec<_>>(), 0)?,
    };
    let result = match &batches.result_rows {
        Some(rows) => mlx.take(&result, rows, 0)?,
        None => result,
    };
    Ok((result, cache))
}

fn run_batch(
    mlx: &Mlx,
    function: Recurrence,
    batch: &Batch,
    operands: &[&Array],
    state: &Array,
) -> Result<(Array, Array)> {
    let tokens = |operand: &Array| tokens(mlx, batch, operand);
    match (function, operands) {
        (Recurrence::CausalConv, [x, weight]) => {
            let weight = mlx.cast(weight, DType::Float32)?;
            conv::run(mlx, batch, &tokens(x)?, &weight, state)
        }
        (Recurrence::LinearScan, [q, k, v, decay]) => {
            let v = silence(mlx, batch, tokens(v)?)?;
            let decay = silence(mlx, batch, tokens(decay)?)?;
            linear::run(mlx, [&tokens(q)?, &tokens(k)?, &v, &decay], state)
        }
        (Recurrence::DeltaScan, [q, k, v, decay, beta]) => {
            let decay = silence(mlx, batch, tokens(decay)?)?;
            let beta = silence(mlx, batch, tokens(beta)?)?;
            delta::run(
                mlx,
                [&tokens(q)?, &tokens(k)?, &tokens(v)?, &decay, &beta],
                state,
            )
        }
        (Recurrence::SelectiveScan, [x, dt, a, b, c]) => {
            let dt = silence(mlx, batch, tokens(dt)?)?;
            let a = mlx.cast(a, DType::Float32)?;
            selective::run(mlx, [&tokens(x)?, &dt, &a, &tokens(b)?, &tokens(c)?], state)
        }
        _ => Err(Error::Unsupported(format!(
            "{} of {} operands",
            function.name(),
            operands.len()
        ))),
    }
}

/// An operand's rows of a batch: `[size, length, ..]` in float32.
fn tokens(mlx: &Mlx, batch: &Batch, operand: &Array) -> Result<Array> {
    let rows = match &batch.rows {
        Some(rows) => mlx.take(operand, rows, 0)?,
        None => operand.clone(),
    };
    let mut shape = vec![batch.size, batch.length];
    shape.extend(&operand.shape()[1..]);
    Ok(mlx.ensure(mlx.reshape(&rows, &shape)?, DType::Float32)?)
}

/// Zero where a token is padding: no decay and no input leave a state as it is.
fn silence(mlx: &Mlx, batch: &Batch, x: Array) -> Result<Array> {
    let Some(valid) = &batch.valid else {
        return Ok(x);
    };
    let mut shape = vec![batch.size, batch.length];
    shape.resize(x.shape().len(), 1);
    let valid = mlx.reshape(valid, &shape)?;
    Ok(mlx.select(&valid, &x, &scalar(mlx, 0.0, DType::Float32)?)?)
}

/// States before the step: `[size, ..state]` in float32.
fn read(mlx: &Mlx, batch: &Batch, cache: &Array) -> Result<Array> {
    let state = mlx.take(cache, &batch.read_slots, 0)?;
    let state = mlx.ensure(state, DType::Float32)?;
    let Some(has_state) = &batch.has_state else {
        return Ok(state);
    };
    let mut shape = vec![batch.size];
    shape.resize(state.shape().len(), 1);
    let has_state = mlx.reshape(has_state, &shape)?;
    Ok(mlx.select(&has_state, &state, &scalar(mlx, 0.0, DType::Float32)?)?)
}

fn write(mlx: &Mlx, batch: &Batch, cache: &Array, state: Array) -> Result<Array> {
    let mut shape = vec![batch.size, 1];
    shape.extend(&cache.shape()[1..]);
    let state = mlx.reshape(&state, &shape)?;
    let state = match dtype(cache) {
        Some(dtype) => mlx.ensure(state, dtype)?,
        None => state,
    };
    Ok(mlx.scatter_rows(cache, &batch.write_slots, &state)?)
}

/// `x[:, start:stop]`
fn chunk(mlx: &Mlx, x: &Array, start: i32, stop: i32) -> Result<Array> {
    Ok(mlx.slice(x, 1, start, stop, 1)?)
}

/// Results of chunks `[n, chunk, ..]` one after the other.
fn join(mlx: &Mlx, chunks: Vec<Array>) -> Result<Array> {
    match chunks.as_slice() {
        [one] => Ok(one.clone()),
        many => Ok(mlx.concatenate(&many.iter().collect::<Vec<_>>(), 1)?),
    }
}

/// Ranges of at most `size` tokens that cover `length`.
fn chunks(length: i32, size: i32) -> impl Iterator<Item = (i32, i32)> {
    (0..length)
        .step_by(size as usize)
        .map(move |start| (start, (start + size).min(length)))
}

/// `x` with the last two axes exchanged.
fn swap(mlx: &Mlx, x: &Array) -> Result<Array> {
    let rank = x.shape().len() as i32;
    let mut axes: Vec<i32> = (0..rank).collect();
    axes.swap(rank as usize - 1, rank as usize - 2);
    Ok(mlx.transpose(x, &axes)?)
}

/// Ones where the row is at or below the column's index by `diagonal`: `[size, size]` float32.
fn lower_triangle(mlx: &Mlx, size: i32, diagonal: i32) -> Result<Array> {
    let one = scalar(mlx, 1.0, DType::Float32)?;
    Ok(mlx.tril(&mlx.full(&[size, size], &one, DType::Float32)?, diagonal)?)
}
