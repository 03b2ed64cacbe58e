// SPDX-License-Identifier: Apache-2.0
//! Losses: formulas and their reduction.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::{DType, Dim, Op, Reduction, Scalar, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.binary_cross_entropy.default", binary_cross_entropy),
    (
        "aten.binary_cross_entropy_with_logits.default",
        binary_cross_entropy_with_logits,
    ),
    ("aten.huber_loss.default", huber),
    ("aten.mse_loss.default", mse),
    ("aten.nll_loss_forward.default", nll),
    ("aten.nll_loss2d_forward.default", nll),
    ("aten.smooth_l1_loss.default", smooth_l1),
    ("aten.soft_margin_loss.default", soft_margin),
];

/// `at::Reduction`: none, mean, sum.
fn reduced(importer: &mut Importer, call: &Call, losses: Value, how: &Item) -> Lowered {
    let dtype = call.result_dtype()?;
    let axes: Vec<usize> = (0..importer.builder.shape(losses).len()).collect();
    let value = match how.int_or(1)? {
        0 => losses,
        1 => importer
            .builder
            .reduce(Reduction::Mean, losses, axes, false)?,
        2 => importer
            .builder
            .reduce(Reduction::Sum, losses, axes, false)?,
        other => return Err(format!("reduction {other}")),
    };
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

fn losses<const N: usize>(
    importer: &mut Importer,
    items: [&Item; N],
    formula: impl FnOnce([Formula; N]) -> Formula,
) -> Result<Value, String> {
    importer.compute_value(items, DType::Float32, formula)
}

fn mse(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, how] = call.bind(["self", "target", "reduction"])?;
    let value = losses(importer, [&x, &y], |[x, y]| (x - y).square())?;
    reduced(importer, call, value, &how)
}

/// `d^2 / (2 beta)` below `beta`, `d - beta / 2` above it.
fn smooth_l1(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, how, beta] = call.bind(["self", "target", "reduction", "beta"])?;
    let beta = beta.float_or(1.0)?;
    let value = losses(importer, [&x, &y], |[x, y]| {
        let gap = (x - y).abs();
        match beta {
            0.0 => gap,
            beta => {
                let near = gap.clone().square() * 0.5 / beta;
                gap.clone().less(beta).choose(near, gap - 0.5 * beta)
            }
        }
    })?;
    reduced(importer, call, value, &how)
}

/// `d^2 / 2` up to `delta`, `delta (d - delta / 2)` above it.
fn huber(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, how, delta] = call.bind(["self", "target", "reduction", "delta"])?;
    let delta = delta.float_or(1.0)?;
    let value = losses(importer, [&x, &y], |[x, y]| {
        let gap = (x - y).abs();
        let near = gap.clone().square() * 0.5;
        let far = (gap.clone() - 0.5 * delta) * delta;
        gap.less_equal(delta).choose(near, far)
    })?;
    reduced(importer, call, value, &how)
}

/// `log(1 + exp(-x y))`
fn soft_margin(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, how] = call.bind(["self", "target", "reduction"])?;
    let value = losses(importer, [&x, &y], |[x, y]| (-(x * y)).softplus())?;
    reduced(importer, call, value, &how)
}

/// An optional weight, 1 where there is none.
fn weight(item: Item) -> Item {
    match item {
        Item::None => Item::Float(1.0),
        given => given,
    }
}

/// `-w (y log x + (1 - y) log(1 - x))`, logarithms no less than -100.
fn binary_cross_entropy(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, w, how] = call.bind(["self", "target", "weight", "reduction"])?;
    let value = losses(importer, [&x, &y, &weight(w)], |[x, y, w]| {
        let hit = x.clone().log().maximum(-100.0);
        let miss = (-x).log1p().maximum(-100.0);
        ((y.clone() - 1.0) * miss - y * hit) * w
    })?;
    reduced(importer, call, value, &how)
}

/// `w ((1 - y) x + (1 + (p - 1) y) log(1 + e^-x))` with the positive class's weight `p`.
fn binary_cross_entropy_with_logits(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, w, positive, how] =
        call.bind(["self", "target", "weight", "pos_weight", "reduction"])?;
    let (w, positive) = (weight(w), weight(positive));
    let value = losses(importer, [&x, &y, &w, &positive], |[x, y, w, positive]| {
        let scale = (positive - 1.0) * y.clone() + 1.0;
        ((Formula::Number(1.0) - y) * x.clone() + scale * (-x).softplus()) * w
    })?;
    reduced(importer, call, value, &how)
}

/// `-w[target] x[target]` over the class axis, and the sum of the weights.
fn nll(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, target, weight, how, ignored] =
        call.bind(["self", "target", "weight", "reduction", "ignore_index"])?;
    let (x, target) = (importer.value(&x)?, importer.value(&target)?);
    let (how, ignored) = (how.int_or(1)?, ignored.int_or(-100)?);
    let dtype = importer.builder.dtype(x);
    let shape = importer.builder.shape(x).to_vec();
    // Classes are the second axis, or the only one.
    let axis = usize::from(shape.len() > 1);
    let classes = *shape.get(axis).ok_or("a loss of rank 0")?;
    let builder = &mut importer.builder;
    let target_type = builder.dtype(target);
    let mark = builder.scalar(Scalar::Int(ignored), target_type);
    let keep = builder.binary(crate::ir::Binary::NotEqual, target, mark)?;
    let zero = builder.scalar(Scalar::Int(0), target_type);
    let place = builder.add(Op::Where, &[keep, target, zero])?;
    let place = super::index::in_range(importer, place, classes)?;
    let builder = &mut importer.builder;
    let wide = builder.cast(x, DType::Float32)?;
    let column = builder.expand_dims(place, axis)?;
    let column = match builder.shape(column).len() == shape.len() {
        true => column,
        false => builder.reshape(column, vec![Dim::Fixed(1)])?,
    };
    let picked = builder.add(Op::TakeAlongAxis { axis }, &[wide, column])?;
    let picked_shape = builder.shape(place).to_vec();
    let picked = builder.reshape(picked, picked_shape)?;
    let weights = match &weight {
        Item::None => builder.scalar(Scalar::Int(1), DType::Float32),
        given => {
            let given = importer.value(given)?;
            let given = importer.builder.cast(given, DType::Float32)?;
            importer
                .builder
                .add(Op::Take { axis: 0 }, &[given, place])?
        }
    };
    let keep: Formula = keep.into();
    let weights = keep.choose(Formula::Value(weights), 0.0);
    let weights = importer.formula(&weights, DType::Float32)?;
    let loss = -(Formula::Value(picked)) * Formula::Value(weights);
    // What is left out counts as 0 even where it is infinite.
    let counted = Formula::Value(weights).equal(0.0).choose(0.0, loss);
    let loss = importer.formula(&counted, DType::Float32)?;
    let builder = &mut importer.builder;
    let axes: Vec<usize> = (0..builder.shape(loss).len()).collect();
    let total = builder.reduce(Reduction::Sum, weights, axes.clone(), false)?;
    let value = match how {
        0 => loss,
        _ => builder.reduce(Reduction::Sum, loss, axes, false)?,
    };
    let total = match how {
        0 => builder.scalar(Scalar::Int(0), DType::Float32),
        _ => total,
    };
    let value = match how {
        1 => builder.binary(crate::ir::Binary::Div, value, total)?,
        _ => value,
    };
    let (value, total) = (builder.cast(value, dtype)?, builder.cast(total, dtype)?);
    Ok(Item::Tuple(vec![
        importer.fresh(value),
        importer.fresh(total),
    ]))
}
