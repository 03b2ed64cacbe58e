// SPDX-License-Identifier: Apache-2.0
//! `torch.nn.functional.scaled_dot_product_attention` and the operators that PyTorch picks for it.

use super::call::Item;
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{AttentionMask, DType, Dim, Float, Op, Reduction, Scalar, Scores, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.scaled_dot_product_attention.default", |i, call| {
        let [q, k, v, mask, dropout, causal, scale, _] = call.bind([
            "query",
            "key",
            "value",
            "attn_mask",
            "dropout_p",
            "is_causal",
            "scale",
            "enable_gqa",
        ])?;
        attention(i, [q, k, v], mask, dropout, causal, scale)
    }),
    (
        "aten._scaled_dot_product_attention_math.default",
        |i, call| {
            let [q, k, v, mask, dropout, causal, _, scale, _] = call.bind([
                "query",
                "key",
                "value",
                "attn_mask",
                "dropout_p",
                "is_causal",
                "dropout_mask",
                "scale",
                "enable_gqa",
            ])?;
            attention(i, [q, k, v], mask, dropout, causal, scale).map(first_of_many)
        },
    ),
    (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        |i, call| {
            let [q, k, v, dropout, causal, mask, scale] = call.bind([
                "query",
                "key",
                "value",
                "dropout_p",
                "is_causal",
                "attn_mask",
                "scale",
            ])?;
            attention(i, [q, k, v], mask, dropout, causal, scale).map(first_of_many)
        },
    ),
    (
        "aten._scaled_dot_product_efficient_attention.default",
        |i, call| {
            let [q, k, v, mask, _, dropout, causal, scale] = call.bind([
                "query",
                "key",
                "value",
                "attn_bias",
                "compute_log_sumexp",
                "dropout_p",
                "is_causal",
                "scale",
            ])?;
            attention(i, [q, k, v], mask, dropout, causal, scale).map(first_of_many)
        },
    ),
];

/// What these operators yield besides their result (weights, sums of exponentials, random states) is
/// for training: a graph that reads it is refused there.
fn first_of_many(result: Item) -> Item {
    let rest = std::iter::repeat_n(Item::None, 8);
    Item::Tuple(std::iter::once(result).chain(rest).collect())
}

fn attention(
    importer: &mut Importer,
    [q, k, v]: [Item; 3],
    mask: Item,
    dropout: Item,
    causal: Item,
    scale: Item,
) -> Result<Item, String> {
    if dropout.float_or(0.0)? != 0.0 {
        return Err("attention with dropout".into());
    }
    let [q, k, v] = [
        importer.value(&q)?,
        importer.value(&k)?,
        importer.value(&v)?,
    ];
    let shape = importer.builder.shape(q).to_vec();
    let [batch @ .., _, size] = shape.as_slice() else {
        return Err("attention of vectors".into());
    };
    let default_scale = || {
        let size = size.fixed().ok_or("a head of symbolic size")?;
        Ok::<f64, String>(1.0 / (size as f64).sqrt())
    };
    let scale = match &scale {
        Item::None => default_scale()?,
        given => given.float()?,
    };
    let mut operands = vec![
        four_axes(importer, q, batch)?,
        four_axes(importer, k, batch)?,
        four_axes(importer, v, batch)?,
    ];
    let mut kind = match causal.bool_or(false)? {
        // The first query sees the first key.
        true => AttentionMask::Causal {
            offset: Dim::Fixed(0),
        },
        false => AttentionMask::None,
    };
    let mut seen = None;
    if !mask.is_none() {
        let mask = importer.value(&mask)?;
        kind = AttentionMask::Additive;
        if importer.builder.dtype(mask) == DType::Bool {
            let fill = Float::new(f64::NEG_INFINITY);
            kind = AttentionMask::Boolean { fill };
            seen = Some(mask);
        }
        operands.push(match batch.len() {
            0 | 1 => mask,
            _ => four_axes(importer, mask, batch)?,
        });
    }
    let scores = Scores {
        scale: Float::new(scale),
        soft_cap: None,
        mask: kind,
    };
    let op = Op::ScaledDotProductAttention {
        scores,
        sinks: false,
    };
    let result = importer.builder.add(op, &operands)?;
    let (whole, columns) = (
        importer.builder.shape(result).to_vec(),
        importer.builder.shape(v).last().copied(),
    );
    let mut full = shape.clone();
    full.pop();
    full.extend(columns);
    let mut result = match full == whole {
        true => result,
        false => importer.builder.reshape(result, full)?,
    };
    if let Some(seen) = seen {
        result = hide_blind(importer, result, seen)?;
    }
    Ok(importer.fresh(result))
}

/// `[b, h, t, d]` of a tensor of less or more axes: heads are the axis before the last two.
fn four_axes(importer: &mut Importer, x: Value, batch: &[Dim]) -> Result<Value, String> {
    let shape = importer.builder.shape(x).to_vec();
    if shape.len() > 4 || batch.len() > 2 {
        return Err(format!("attention of rank {}", batch.len() + 2));
    }
    let mut full = vec![Dim::Fixed(1); 4 - shape.len()];
    full.extend(shape);
    importer.builder.reshape(x, full)
}

/// PyTorch yields 0 for a query that sees no key (`_safe_softmax`).
fn hide_blind(importer: &mut Importer, result: Value, seen: Value) -> Result<Value, String> {
    let builder = &mut importer.builder;
    let axis = builder.shape(seen).len().checked_sub(1);
    let axis = axis.ok_or("a mask of rank 0")?;
    let any = builder.reduce(Reduction::Any, seen, vec![axis], true)?;
    let zero = builder.scalar(Scalar::Int(0), builder.dtype(result));
    builder.add(Op::Where, &[any, result, zero])
}
