// SPDX-License-Identifier: Apache-2.0
//! Types of attention and its parts.

use super::check::broadcast;
use crate::ir::{AttentionMask, DType, Dim, RopeStyle, Scores, TensorType};

/// `[.., t, s]` of queries `[.., h, t, d]` and keys `[.., g, s, d]`, where `g` divides `h`.
pub(super) fn attention_scores(
    scores: &Scores,
    q: &TensorType,
    k: &TensorType,
    mask: &[&TensorType],
) -> Result<TensorType, String> {
    let rank = q.rank();
    let fits = rank >= 3
        && k.rank() == rank
        && q.dtype.is_float()
        && q.dtype == k.dtype
        && q.shape[..rank - 3] == k.shape[..rank - 3]
        && q.shape[rank - 1] == k.shape[rank - 1]
        && shares(q.shape[rank - 3], k.shape[rank - 3]);
    if !fits {
        return Err(format!("attention of {q} to {k}"));
    }
    let mut shape = q.shape.clone();
    shape[rank - 1] = k.shape[rank - 2];
    let accepts = |mask: &TensorType| {
        let dtype = match scores.mask {
            AttentionMask::Boolean { .. } => mask.dtype == DType::Bool,
            _ => mask.dtype.is_float(),
        };
        dtype && broadcast(&mask.shape, &shape).is_ok_and(|whole| whole == shape)
    };
    match (scores.mask.is_operand(), mask) {
        (false, []) => {}
        (true, [mask]) if accepts(mask) => {}
        _ => return Err(format!("{mask:?} masks {shape:?}")),
    }
    Ok(TensorType {
        dtype: q.dtype,
        shape,
    })
}

/// Whether so many query heads may share so many key heads.
pub(super) fn shares(heads: Dim, kv_heads: Dim) -> bool {
    let divides = |kv_heads: i64| kv_heads > 0 && heads.checked_div(kv_heads).is_some();
    heads == kv_heads || kv_heads.fixed().is_some_and(divides)
}

/// See [`Op::ScaledDotProductAttention`](crate::ir::Op::ScaledDotProductAttention).
pub(super) fn attention(
    scores: &Scores,
    sinks: bool,
    operands: &[&TensorType],
) -> Result<TensorType, String> {
    let [q, k, v, rest @ ..] = operands else {
        return Err(format!("{} operands", operands.len()));
    };
    let (mask, sinks) = match (sinks, rest) {
        (true, [mask @ .., sinks]) => (mask, Some(*sinks)),
        (true, []) => return Err("no sinks".into()),
        (false, mask) => (mask, None),
    };
    let weights = attention_scores(scores, q, k, mask)?;
    let &[batch, heads, queries, _] = q.shape.as_slice() else {
        return Err(format!("attention of {q}"));
    };
    let values = v.rank() == 4 && v.dtype == q.dtype && v.shape[..3] == k.shape[..3];
    if !values {
        return Err(format!("attention over {k} and {v}"));
    }
    if sinks.is_some_and(|sinks| sinks.shape != [heads] || !sinks.dtype.is_float()) {
        return Err(format!("sinks of {weights}"));
    }
    let shape = vec![batch, heads, queries, v.shape[3]];
    Ok(TensorType {
        dtype: q.dtype,
        shape,
    })
}

/// Types of the rotated operands; see [`Op::Rope`](crate::ir::Op::Rope).
pub(super) fn rope(
    style: RopeStyle,
    rotary_dim: i64,
    operands: &[&TensorType],
) -> Result<Vec<TensorType>, String> {
    let [cos, sin, rotated @ ..] = operands else {
        return Err("no cos and sin".into());
    };
    if rotated.is_empty() {
        return Err("nothing to rotate".into());
    }
    let columns = match style {
        RopeStyle::Neox | RopeStyle::Gptj => rotary_dim / 2,
        RopeStyle::RotateHalf | RopeStyle::RotatePairs => rotary_dim,
    };
    for x in rotated {
        let rank = x.rank();
        let fits = rank >= 3
            && x.dtype.is_float()
            && cos.dtype.is_float()
            && x.shape[rank - 1]
                .fixed()
                .is_some_and(|size| size >= rotary_dim && rotary_dim > 0)
            && cos == sin
            && rotary_dim % 2 == 0
            && cos.rank() == rank - 1
            && cos.last() == Some(Dim::Fixed(columns))
            && cos.shape[rank - 3] == x.shape[rank - 3]
            && (0..rank - 3).all(|axis| [x.shape[axis], Dim::Fixed(1)].contains(&cos.shape[axis]));
        if !fits {
            return Err(format!("rope of {x} by {cos} and {sin}"));
        }
    }
    Ok(rotated.iter().map(|x| (*x).clone()).collect())
}
