// SPDX-License-Identifier: Apache-2.0
//! Attention over keys and values that the graph computes (no cache): MLX's own where it knows the
//! form, matrix products and a softmax in float32 elsewhere.

use super::instruction::Context;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Device, Mlx, dtype, int_array, scalar};
use lowering::ir::{AttentionMask, DType, Float, Scores};

/// How many queries and keys there are.
struct Sizes {
    queries: i32,
    keys: i32,
}

fn sizes(q: &Array, k: &Array) -> Result<Sizes> {
    match (q.shape(), k.shape()) {
        ([.., queries, _], [.., keys, _]) => Ok(Sizes {
            queries: *queries,
            keys: *keys,
        }),
        _ => Err(Error::Unsupported("attention of rank 1".into())),
    }
}

fn kind(x: &Array) -> Result<DType> {
    dtype(x).ok_or_else(|| Error::Unsupported("attention of an unknown dtype".into()))
}

/// `[t, s]`, true where query `i` sees key `j`: `j <= i + offset`.
fn causal(mlx: &Mlx, sizes: &Sizes, offset: i64) -> Result<Array> {
    let line = |from: i64, length: i32, shape: [i32; 2]| {
        let places = (0..i64::from(length)).map(|place| (from + place) as i32);
        int_array(&places.collect::<Vec<_>>(), &shape)
    };
    let rows = line(offset, sizes.queries, [sizes.queries, 1])?;
    let columns = line(0, sizes.keys, [1, sizes.keys])?;
    Ok(mlx.less_equal(&columns, &rows)?)
}

/// A mask that is added: 0 where the boolean one is true, else the number.
fn added(mlx: &Mlx, mask: &Array, fill: Float, to: DType) -> Result<Array> {
    let (zero, fill) = (scalar(mlx, 0.0, to)?, scalar(mlx, fill.get(), to)?);
    Ok(mlx.select(mask, &zero, &fill)?)
}

/// `q [.., h, t, d], k [.., g, s, d]` to float32 scores `[.., h, t, s]`, masked.
fn wide_scores(
    context: Context,
    of: &Scores,
    q: &Array,
    k: &Array,
    mask: Option<&Array>,
) -> Result<Array> {
    let mlx = context.mlx;
    let wide = DType::Float32;
    let number = |value: f64| scalar(mlx, value, wide);
    let q = mlx.multiply(&mlx.cast(q, wide)?, &number(of.scale.get())?)?;
    let keys = mlx.cast(&repeat(mlx, k, q.shape())?, wide)?;
    let mut axes: Vec<i32> = (0..keys.ndim() as i32).collect();
    axes.swap(keys.ndim() - 2, keys.ndim() - 1);
    let mut scores = mlx.matmul(&q, &mlx.transpose(&keys, &axes)?)?;
    if let Some(cap) = of.soft_cap {
        let cap = number(cap.get())?;
        scores = mlx.multiply(&mlx.tanh(&mlx.divide(&scores, &cap)?)?, &cap)?;
    }
    Ok(match (of.mask, mask) {
        (AttentionMask::None, _) => scores,
        (AttentionMask::Causal { offset }, _) => {
            let seen = causal(mlx, &sizes(&q, k)?, context.size(offset)?)?;
            mlx.select(&seen, &scores, &number(f64::NEG_INFINITY)?)?
        }
        (AttentionMask::Additive, Some(mask)) => mlx.add(&scores, &mlx.cast(mask, wide)?)?,
        (AttentionMask::Boolean { fill }, Some(mask)) => {
            mlx.select(mask, &scores, &number(fill.get())?)?
        }
        _ => return Err(Error::Unsupported("a mask that is not there".into())),
    })
}

/// `[.., g, s, d]` with every head repeated to the heads of `[.., h, t, d]`.
fn repeat(mlx: &Mlx, x: &Array, like: &[i32]) -> Result<Array> {
    let ([outer @ .., kv_heads, length, size], [.., heads, _, _]) = (x.shape(), like) else {
        return Ok(x.clone());
    };
    if heads == kv_heads {
        return Ok(x.clone());
    }
    let (kv_heads, length, size) = (*kv_heads, *length, *size);
    let share = heads / kv_heads;
    let column = [outer, &[kv_heads, 1, length, size]].concat();
    let shared = [outer, &[kv_heads, share, length, size]].concat();
    let repeated = mlx.broadcast_to(&mlx.reshape(x, &column)?, &shared)?;
    Ok(mlx.reshape(&repeated, &[outer, &[*heads, length, size]].concat())?)
}

/// `Op::AttentionScores`
pub fn scores(context: Context, of: &Scores, operands: &[&Array]) -> Result<Array> {
    let [q, k, mask @ ..] = operands else {
        return Err(Error::Unsupported("scores of one operand".into()));
    };
    let scores = wide_scores(context, of, q, k, mask.first().copied())?;
    Ok(context.mlx.cast(&scores, kind(q)?)?)
}

/// `Op::ScaledDotProductAttention`
pub fn attend(
    context: Context,
    of: &Scores,
    has_sinks: bool,
    operands: &[&Array],
) -> Result<Array> {
    let [q, k, v, rest @ ..] = operands else {
        return Err(Error::Unsupported("attention without values".into()));
    };
    let (mask, sinks) = match (of.mask.is_operand(), has_sinks, rest) {
        (true, true, [mask, sinks]) => (Some(*mask), Some(*sinks)),
        (true, false, [mask]) => (Some(*mask), None),
        (false, true, [sinks]) => (None, Some(*sinks)),
        (false, false, []) => (None, None),
        _ => return Err(Error::Unsupported("attention of other operands".into())),
    };
    if of.soft_cap.is_some() {
        return attend_capped(context, of, [q, k, v], mask, sinks);
    }
    let mlx = context.mlx;
    let (own, sizes) = (kind(q)?, sizes(q, k)?);
    let mut lower_right = false;
    let mask = match (of.mask, mask) {
        (AttentionMask::None, _) => None,
        (AttentionMask::Causal { offset }, _) => {
            let offset = context.size(offset)?;
            lower_right = offset == i64::from(sizes.keys) - i64::from(sizes.queries);
            match lower_right {
                true => None,
                false => Some(causal(mlx, &sizes, offset)?),
            }
        }
        (AttentionMask::Boolean { fill }, Some(mask)) if fill.get() == f64::NEG_INFINITY => {
            Some(mask.clone())
        }
        (AttentionMask::Boolean { fill }, Some(mask)) => Some(added(mlx, mask, fill, own)?),
        (_, Some(mask)) => Some(mlx.cast(mask, own)?),
        _ => return Err(Error::Unsupported("a mask that is not there".into())),
    };
    let scale = of.scale.get() as f32;
    // A GPU's kernel adds up in float32 whatever the operands are; what MLX runs on a CPU does not.
    let wide = match mlx.device() {
        Device::Cpu if own.is_half() => DType::Float32,
        _ => own,
    };
    let widened = |x: &Array| match dtype(x) {
        Some(DType::Bool) => Ok(x.clone()),
        _ => mlx.cast(x, wide),
    };
    let mask = mask.as_ref().map(widened).transpose()?;
    let sinks = sinks.map(|sinks| mlx.cast(sinks, wide)).transpose()?;
    let (q, k, v) = (widened(q)?, widened(k)?, widened(v)?);
    let operands = [&q, &k, &v];
    let result = mlx.attention(operands, scale, lower_right, mask.as_ref(), sinks.as_ref())?;
    Ok(mlx.cast(&result, own)?)
}

/// MLX's own attention has no cap.
fn attend_capped(
    context: Context,
    of: &Scores,
    [q, k, v]: [&Array; 3],
    mask: Option<&Array>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let mlx = context.mlx;
    let mut scores = wide_scores(context, of, q, k, mask)?;
    let keys = sizes(q, k)?.keys;
    let weights = match (sinks, scores.shape()) {
        (Some(sinks), &[batch, heads, queries, _]) => {
            let sinks = mlx.reshape(&mlx.cast(sinks, DType::Float32)?, &[1, heads, 1, 1])?;
            let column = mlx.broadcast_to(&sinks, &[batch, heads, queries, 1])?;
            scores = mlx.concatenate(&[&scores, &column], 3)?;
            mlx.slice(&mlx.softmax(&scores, 3)?, 3, 0, keys, 1)?
        }
        _ => mlx.softmax(&scores, -1)?,
    };
    let values = mlx.cast(&repeat(mlx, v, q.shape())?, DType::Float32)?;
    Ok(mlx.cast(&mlx.matmul(&weights, &values)?, kind(q)?)?)
}
