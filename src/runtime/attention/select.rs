// SPDX-License-Identifier: Apache-2.0
//! Sparse attention: which keys a token is to see, by an index of them, and a batch of those alone.

use super::layout::{Batch, Layout};
use super::mask::Mask;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, int_array, scalar};
use lowering::ir::DType;

/// `Op::SelectKeys`: of `q [t, heads, d]` with `weights [t, heads]` over `rows [n, 1, d]` of the cache,
/// int32 `[t, count]`.
pub fn select(
    mlx: &Mlx,
    layout: &Layout,
    q: &Array,
    weights: &Array,
    rows: &Array,
    count: i64,
) -> Result<Array> {
    let count = i32::try_from(count)
        .map_err(|_| Error::Unsupported(format!("a selection of {count} keys")))?;
    let mut results = Vec::with_capacity(layout.batches.len());
    for batch in &layout.batches {
        let taken = |x: &Array| match &batch.query_rows {
            Some(rows) => mlx.take(x, rows, 0),
            None => Ok(x.clone()),
        };
        let selected = select_in_batch(mlx, batch, [&taken(q)?, &taken(weights)?], rows, count)?;
        results.push(mlx.reshape(&selected, &[batch.size * batch.rows, count])?);
    }
    let result = match results.len() {
        0 => return Ok(mlx.zeros(&[q.shape()[0], count], DType::Int32)?),
        1 => results.remove(0),
        _ => mlx.concatenate(&results.iter().collect::<Vec<_>>(), 0)?,
    };
    match &layout.result_rows {
        Some(rows) => Ok(mlx.take(&result, rows, 0)?),
        None => Ok(result),
    }
}

/// int32 `[size, rows, count]`. Keys of a piece begin at position 0: an index has no window.
fn select_in_batch(
    mlx: &Mlx,
    batch: &Batch,
    [q, weights]: [&Array; 2],
    rows: &Array,
    count: i32,
) -> Result<Array> {
    let (pieces, num_rows, num_keys) = (batch.size, batch.rows, batch.keys);
    let none = scalar(mlx, -1.0, DType::Int32)?;
    let unseen = scalar(mlx, f64::NEG_INFINITY, DType::Float32)?;
    let per_query = [pieces, num_rows, num_keys];
    let mask = match &batch.mask {
        Mask::Array(mask) => Some(mlx.reshape(mask, &per_query)?),
        Mask::None | Mask::Causal => None,
    };
    if num_keys <= count {
        let positions: Vec<i32> = (0..num_keys).collect();
        let positions = int_array(&positions, &[1, 1, num_keys])?;
        let positions = mlx.broadcast_to(&positions, &per_query)?;
        let seen = match mask {
            Some(mask) => mlx.select(&mlx.equal(&mask, &unseen)?, &none, &positions)?,
            None => positions,
        };
        let high = [0, 0, count - num_keys];
        return Ok(mlx.pad(&seen, &[0, 0, 0], &high, &none)?);
    }
    let [heads, size] = [q.shape()[1], q.shape()[2]];
    let keys = mlx.take(rows, &batch.key_rows, 0)?;
    let keys = mlx.reshape(&keys, &[pieces, num_keys, size])?;
    let keys = mlx.transpose(&mlx.ensure(keys, DType::Float32)?, &[0, 2, 1])?;
    let q = mlx.reshape(q, &[pieces, num_rows * heads, size])?;
    let products = mlx.matmul(&mlx.ensure(q, DType::Float32)?, &keys)?;
    let products = mlx.maximum(&products, &scalar(mlx, 0.0, DType::Float32)?)?;
    let products = mlx.reshape(&products, &[pieces, num_rows, heads, num_keys])?;
    let weights = mlx.reshape(weights, &[pieces, num_rows, 1, heads])?;
    let scores = mlx.matmul(&mlx.ensure(weights, DType::Float32)?, &products)?;
    let mut scores = mlx.reshape(&scores, &per_query)?;
    if let Some(mask) = &mask {
        scores = mlx.add(&scores, mask)?;
    }
    let best = mlx.argpartition(&mlx.negative(&scores)?, count, 2)?;
    let best = mlx.cast(&mlx.slice(&best, 2, 0, count, 1)?, DType::Int32)?;
    let found = mlx.take_along_axis(&scores, &best, 2)?;
    Ok(mlx.select(&mlx.equal(&found, &unseen)?, &none, &best)?)
}

/// The batch with the keys that `selected [t, count]` names: for single queries those alone are read,
/// for several all are, and the others masked. `None` where each query sees at most so many.
pub fn only_selected(
    mlx: &Mlx,
    batch: &Batch,
    selected: &Array,
    fused: bool,
) -> Result<Option<Batch>> {
    let count = selected.shape()[1];
    if batch.keys <= count {
        return Ok(None);
    }
    let selected = match &batch.query_rows {
        Some(rows) => mlx.take(selected, rows, 0)?,
        None => selected.clone(),
    };
    let (size, rows, keys) = (batch.size, batch.rows, batch.keys);
    let zero = scalar(mlx, 0.0, DType::Int32)?;
    let named = mlx.greater_equal(&selected, &zero)?;
    let (num_keys, key_rows, seen) = if rows == 1 {
        let places = mlx.maximum(&selected, &zero)?;
        let key_rows = mlx.take_along_axis(&batch.key_rows, &places, 1)?;
        (count, key_rows, named)
    } else {
        // One more column takes what names no key.
        let places = mlx.select(
            &named,
            &selected,
            &scalar(mlx, f64::from(keys), DType::Int32)?,
        )?;
        let nothing = mlx.zeros(&[size * rows, keys + 1], DType::Bool)?;
        let marks = mlx.greater_equal(&places, &zero)?;
        let seen = mlx.put_along_axis(&nothing, &places, &marks, 1)?;
        (
            keys,
            batch.key_rows.clone(),
            mlx.slice(&seen, 1, 0, keys, 1)?,
        )
    };
    let mask = if fused {
        mlx.reshape(&seen, &[size, 1, rows, num_keys])?
    } else {
        let (seen_score, unseen) = (
            scalar(mlx, 0.0, DType::Float32)?,
            scalar(mlx, f64::NEG_INFINITY, DType::Float32)?,
        );
        let mask = mlx.select(&seen, &seen_score, &unseen)?;
        mlx.reshape(&mask, &[size, 1, 1, rows, num_keys])?
    };
    Ok(Some(Batch {
        size,
        rows,
        keys: num_keys,
        query_rows: batch.query_rows.clone(),
        key_rows,
        mask: Mask::Array(mask),
    }))
}
