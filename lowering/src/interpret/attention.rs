// SPDX-License-Identifier: Apache-2.0
//! Attention, computed in float64 and rounded once.

use super::round::Precision;
use super::tensor::{Data, Tensor, elements, indices};
use crate::ir::{AttentionMask, Scores};

/// Scores `[.., t, s]` of queries `[.., h, t, d]` and keys `[.., g, s, d]`, not rounded.
fn scores(
    of: &Scores,
    offset: i64,
    q: &Tensor,
    k: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Vec<f64>, String> {
    let ([outer @ .., heads, queries, size], [k_outer @ .., kv_heads, keys, k_size]) =
        (q.shape.as_slice(), k.shape.as_slice())
    else {
        return Err("attention of less than rank 3".into());
    };
    if outer != k_outer || size != k_size || *kv_heads == 0 || heads % kv_heads != 0 {
        return Err(format!("attention of {:?} to {:?}", q.shape, k.shape));
    }
    let shape = [outer, &[*heads, *queries, *keys]].concat();
    let mask = mask.map(|mask| mask.broadcast(&shape)).transpose()?;
    let share = heads / kv_heads;
    let (q, k) = (q.as_floats()?, k.as_floats()?);
    let mut result = Vec::with_capacity(elements(&shape)?);
    let rows = outer.iter().product::<usize>() * heads * queries;
    for row in 0..rows {
        let (head, query) = (row / queries, row % queries);
        let query_row = &q[row * size..(row + 1) * size];
        for key in 0..*keys {
            let key_row = (head / share * keys + key) * size;
            let pairs = query_row.iter().zip(&k[key_row..key_row + size]);
            // From +0, as a matrix product sums; `sum` starts at -0.
            let product = pairs.fold(0.0, |total, (a, b)| total + a * b);
            let mut score = product * of.scale.get();
            if let Some(cap) = of.soft_cap {
                score = cap.get() * libm::tanh(score / cap.get());
            }
            let place = row * keys + key;
            result.push(match (of.mask, &mask) {
                (AttentionMask::None, None) => score,
                (AttentionMask::Causal { .. }, None) if key as i64 > query as i64 + offset => {
                    f64::NEG_INFINITY
                }
                (AttentionMask::Causal { .. }, None) => score,
                (AttentionMask::Additive, Some(mask)) => score + mask.as_floats()?[place],
                (AttentionMask::Boolean { fill }, Some(mask)) => match mask.as_ints()?[place] {
                    0 => fill.get(),
                    _ => score,
                },
                _ => return Err("a mask that is not there".into()),
            });
        }
    }
    Ok(result)
}

/// `Op::AttentionScores`; `offset` is the causal mask's under the symbols.
pub(super) fn attention_scores(
    precision: Precision,
    of: &Scores,
    offset: i64,
    operands: &[&Tensor],
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let [q, k, mask @ ..] = operands else {
        return Err("no queries and keys".into());
    };
    let scores = scores(of, offset, q, k, mask.first().copied())?;
    let rounded = scores.into_iter().map(|s| precision.round(q.dtype, s));
    Ok(Tensor {
        dtype: q.dtype,
        shape,
        data: Data::Float(rounded.collect()),
    })
}

/// `Op::ScaledDotProductAttention`
pub(super) fn attention(
    precision: Precision,
    of: &Scores,
    has_sinks: bool,
    offset: i64,
    operands: &[&Tensor],
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let [q, k, v, rest @ ..] = operands else {
        return Err("no queries, keys and values".into());
    };
    let (mask, sinks) = match (of.mask.is_operand(), has_sinks, rest) {
        (true, true, [mask, sinks]) => (Some(*mask), Some(sinks.as_floats()?)),
        (true, false, [mask]) => (Some(*mask), None),
        (false, true, [sinks]) => (None, Some(sinks.as_floats()?)),
        (false, false, []) => (None, None),
        _ => return Err(format!("{} operands", operands.len())),
    };
    let scores = scores(of, offset, q, k, mask)?;
    let (&[_, heads, queries, _], &[_, kv_heads, keys, _], &[_, _, _, size]) =
        (&q.shape[..], &k.shape[..], &v.shape[..])
    else {
        return Err("attention of another rank than 4".into());
    };
    let values = v.as_floats()?;
    let mut result = Vec::with_capacity(elements(&shape)?);
    for index in indices(&shape) {
        let &[batch, head, query, column] = index.as_slice() else {
            return Err("attention of another rank than 4".into());
        };
        let row = ((batch * heads + head) * queries + query) * keys;
        let row = &scores[row..row + keys];
        let sink = sinks.and_then(|sinks| sinks.get(head).copied());
        let all = || row.iter().copied().chain(sink);
        // A NaN among the scores makes every weight one.
        let peak = all().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = all().map(|score| libm::exp(score - peak)).sum();
        let kv_head = batch * kv_heads + head * kv_heads / heads;
        let weighted = row.iter().enumerate().map(|(key, score)| {
            libm::exp(score - peak) / total * values[(kv_head * keys + key) * size + column]
        });
        result.push(precision.round(q.dtype, weighted.fold(0.0, |total, part| total + part)));
    }
    Ok(Tensor {
        dtype: q.dtype,
        shape,
        data: Data::Float(result),
    })
}
