// SPDX-License-Identifier: Apache-2.0
//! Variances and norms of vectors.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::reduce::{operand, tensor_dtype};
use crate::ir::{Binary, DType, Dim, Reduction, Scalar, Unary, Value, product};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.dist.default", dist),
    ("aten.linalg_vector_norm.default", vector_norm),
    ("aten.norm.Scalar", vector_norm),
    ("aten.norm.ScalarOpt_dim", vector_norm),
    ("aten.norm.ScalarOpt_dim_dtype", vector_norm),
    ("aten.norm.ScalarOpt_dtype", vector_norm),
    ("aten.std.correction", |i, call| spread(i, call, true)),
    ("aten.std_mean.correction", |i, call| {
        spread_and_mean(i, call, true)
    }),
    ("aten.var.correction", |i, call| spread(i, call, false)),
    ("aten.var_mean.correction", |i, call| {
        spread_and_mean(i, call, false)
    }),
];

/// Those that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[("aten.renorm.default", renorm)];

/// Variance and mean over the axes, in float32.
fn moments(
    importer: &mut Importer,
    x: &Item,
    dim: &Item,
    correction: &Item,
    keepdims: bool,
) -> Result<(Value, Value), String> {
    let (value, axes) = operand(importer, x, dim, DType::Float32)?;
    let correction = correction.float_or(1.0)?;
    let builder = &mut importer.builder;
    let sizes: Vec<Dim> = axes
        .iter()
        .map(|axis| builder.shape(value)[*axis])
        .collect();
    let count = product(&sizes).ok_or("a size that overflows")?;
    let count = builder.scalar(Scalar::Size(count), DType::Float32);
    let mean = builder.reduce(Reduction::Mean, value, axes.clone(), true)?;
    let centred = builder.binary(Binary::Sub, value, mean)?;
    let square = builder.unary(Unary::Square, centred)?;
    let total = builder.reduce(Reduction::Sum, square, axes, keepdims)?;
    let shape = builder.shape(total).to_vec();
    let mean = builder.reshape(mean, shape)?;
    let divisor = (Formula::Value(count) - correction).maximum(0.0);
    let variance = importer.formula(&(Formula::Value(total) / divisor), DType::Float32)?;
    Ok((variance, mean))
}

fn spread(importer: &mut Importer, call: &Call, root: bool) -> Lowered {
    let [x, dim, correction, keepdim] = call.bind(["self", "dim", "correction", "keepdim"])?;
    let dtype = call.result_dtype()?;
    let (mut value, _) = moments(importer, &x, &dim, &correction, keepdim.bool_or(false)?)?;
    if root {
        value = importer.builder.unary(Unary::Sqrt, value)?;
    }
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

fn spread_and_mean(importer: &mut Importer, call: &Call, root: bool) -> Lowered {
    let [x, dim, correction, keepdim] = call.bind(["self", "dim", "correction", "keepdim"])?;
    let dtype = tensor_dtype(importer, &x)?;
    let (mut value, mean) = moments(importer, &x, &dim, &correction, keepdim.bool_or(false)?)?;
    if root {
        value = importer.builder.unary(Unary::Sqrt, value)?;
    }
    let (value, mean) = (
        importer.builder.cast(value, dtype)?,
        importer.builder.cast(mean, dtype)?,
    );
    Ok(Item::Tuple(vec![
        importer.fresh(value),
        importer.fresh(mean),
    ]))
}

/// The norm of order `p` over the axes of a float32 value.
pub fn norm(
    importer: &mut Importer,
    value: Value,
    p: f64,
    axes: Vec<usize>,
    keepdims: bool,
) -> Result<Value, String> {
    let x = Formula::Value(value);
    let (terms, function) = match p {
        0.0 => (
            x.clone().equal(0.0).choose(0.0, Formula::Number(1.0)),
            Reduction::Sum,
        ),
        1.0 => (x.abs(), Reduction::Sum),
        2.0 => (x.square(), Reduction::Sum),
        f64::INFINITY => (x.abs(), Reduction::Max),
        f64::NEG_INFINITY => (x.abs(), Reduction::Min),
        p => (x.abs().pow(p), Reduction::Sum),
    };
    let terms = importer.formula(&terms, DType::Float32)?;
    let total = importer.builder.reduce(function, terms, axes, keepdims)?;
    if p == 0.0 || p == 1.0 || p.is_infinite() {
        return Ok(total);
    }
    let total = Formula::Value(total);
    let root = match p {
        2.0 => total.sqrt(),
        p => total.pow(1.0 / p),
    };
    importer.formula(&root, DType::Float32)
}

fn vector_norm(importer: &mut Importer, call: &Call) -> Lowered {
    let order = match call.target() {
        "aten.linalg_vector_norm.default" => "ord",
        _ => "p",
    };
    let bound = match call.target() {
        "aten.norm.ScalarOpt_dtype" => {
            let [x, order, dtype] = call.bind(["self", order, "dtype"])?;
            [x, order, Item::None, Item::None, dtype]
        }
        _ => call.bind(["self", order, "dim", "keepdim", "dtype"])?,
    };
    let [x, order, dim, keepdim, _] = bound;
    let dtype = call.result_dtype()?;
    let (value, axes) = operand(importer, &x, &dim, DType::Float32)?;
    let order = order.float_or(2.0)?;
    let result = norm(importer, value, order, axes, keepdim.bool_or(false)?)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

/// The norm of a difference.
fn dist(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, p] = call.bind(["self", "other", "p"])?;
    let gap = importer.compute_value([&x, &y], DType::Float32, |[x, y]| x - y)?;
    let axes = (0..importer.builder.shape(gap).len()).collect();
    let result = norm(importer, gap, p.float_or(2.0)?, axes, false)?;
    let result = importer.builder.cast(result, call.result_dtype()?)?;
    Ok(importer.fresh(result))
}

/// Slices along an axis scaled down to a norm; ATen's own formula.
fn renorm(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, p, dim, limit] = call.bind(["self", "p", "dim", "maxnorm"])?;
    let value = importer.value(&x)?;
    let wide = importer.builder.cast(value, DType::Float32)?;
    let rank = importer.builder.shape(wide).len();
    let kept = dim.axis(rank, 0)?;
    let axes = (0..rank).filter(|axis| *axis != kept).collect();
    let length = norm(importer, wide, p.float()?, axes, true)?;
    let limit = limit.float()?;
    let length = Formula::Value(length);
    let factor = Formula::Number(limit) / (length.clone() + 1e-7);
    let factor = length.greater(limit).choose(factor, 1.0);
    let result = importer.formula(&(Formula::Value(wide) * factor), DType::Float32)?;
    let result = importer.builder.cast(result, call.result_dtype()?)?;
    Ok(importer.fresh(result))
}
