// SPDX-License-Identifier: Apache-2.0
//! Reductions, scans, sorting, softmax and normalisation.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Binary, DType, Float, Op, Reduction, Scalar, Unary, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.sum.default", |i, call| {
        reduce(i, call, Reduction::Sum)
    }),
    ("aten.sum.dim_IntList", |i, call| {
        reduce(i, call, Reduction::Sum)
    }),
    ("aten.mean.default", |i, call| {
        reduce(i, call, Reduction::Mean)
    }),
    ("aten.mean.dim", |i, call| reduce(i, call, Reduction::Mean)),
    ("aten.amax.default", |i, call| {
        reduce(i, call, Reduction::Max)
    }),
    ("aten.max.default", |i, call| {
        reduce(i, call, Reduction::Max)
    }),
    ("aten.amin.default", |i, call| {
        reduce(i, call, Reduction::Min)
    }),
    ("aten.min.default", |i, call| {
        reduce(i, call, Reduction::Min)
    }),
    ("aten.prod.default", |i, call| {
        reduce(i, call, Reduction::Prod)
    }),
    ("aten.prod.dim_int", |i, call| {
        reduce(i, call, Reduction::Prod)
    }),
    ("aten.all.default", |i, call| {
        reduce(i, call, Reduction::All)
    }),
    ("aten.all.dim", |i, call| reduce(i, call, Reduction::All)),
    ("aten.all.dims", |i, call| reduce(i, call, Reduction::All)),
    ("aten.any.default", |i, call| {
        reduce(i, call, Reduction::Any)
    }),
    ("aten.any.dim", |i, call| reduce(i, call, Reduction::Any)),
    ("aten.any.dims", |i, call| reduce(i, call, Reduction::Any)),
    ("aten.argmax.default", |i, call| {
        arg_reduce(i, call, Reduction::Argmax)
    }),
    ("aten.argmin.default", |i, call| {
        arg_reduce(i, call, Reduction::Argmin)
    }),
    ("aten.max.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Max, Reduction::Argmax)
    }),
    ("aten.min.dim", |i, call| {
        reduce_with_indices(i, call, Reduction::Min, Reduction::Argmin)
    }),
    ("aten._softmax.default", softmax),
    ("aten.softmax.int", softmax),
    ("aten._safe_softmax.default", softmax),
    ("aten._log_softmax.default", log_softmax),
    ("aten.log_softmax.int", log_softmax),
    ("aten.cumsum.default", cumsum),
    ("aten.sort.default", sort),
    ("aten.topk.default", topk),
    ("aten.native_layer_norm.default", layer_norm),
    ("aten.layer_norm.default", layer_norm),
    ("aten.rms_norm.default", rms_norm),
    ("aten._fused_rms_norm.default", rms_norm),
    ("aten.var.correction", variance),
    ("aten.linalg_vector_norm.default", vector_norm),
];

fn cast_in(importer: &mut Importer, x: &Item, dtype: DType) -> Result<Value, String> {
    let value = importer.value(x)?;
    importer.builder.cast(value, dtype)
}

fn reduce(importer: &mut Importer, call: &Call, function: Reduction) -> Result<Item, String> {
    let [x, dim, keepdim, _] = call.bind(["self", "dim", "keepdim", "dtype"])?;
    let dtype = call.result_dtype()?;
    let value = match function {
        Reduction::All | Reduction::Any => importer.value(&x)?,
        _ => cast_in(importer, &x, dtype)?,
    };
    let rank = importer.builder.shape(value).len();
    let axes = if rank == 0 {
        Vec::new()
    } else {
        dim.axes(rank)?
    };
    let result = importer
        .builder
        .reduce(function, value, axes, keepdim.bool_or(false)?)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

fn arg_reduce(importer: &mut Importer, call: &Call, function: Reduction) -> Result<Item, String> {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let mut value = importer.value(&x)?;
    let mut rank = importer.builder.shape(value).len();
    if dim.is_none() {
        let total = importer
            .builder
            .num_elements(value)
            .ok_or("a tensor with two symbolic sizes")?;
        value = importer.builder.reshape(value, vec![total])?;
        rank = 1;
    }
    let axis = dim.axis(rank, 0)?;
    let keepdims = keepdim.bool_or(false)? && !dim.is_none();
    let result = importer
        .builder
        .reduce(function, value, vec![axis], keepdims)?;
    Ok(importer.fresh(result))
}

fn reduce_with_indices(
    importer: &mut Importer,
    call: &Call,
    of: Reduction,
    index: Reduction,
) -> Result<Item, String> {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let value = importer.value(&x)?;
    let axes = vec![dim.axis(importer.builder.shape(value).len(), 0)?];
    let keepdims = keepdim.bool_or(false)?;
    let best = importer.builder.reduce(of, value, axes.clone(), keepdims)?;
    let place = importer.builder.reduce(index, value, axes, keepdims)?;
    Ok(Item::Tuple(vec![
        importer.fresh(best),
        importer.fresh(place),
    ]))
}

fn softmax(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let value = cast_in(importer, &x, call.result_dtype()?)?;
    let axis = dim.axis(importer.builder.shape(value).len(), -1)?;
    let result = importer.builder.add(Op::Softmax { axis }, &[value])?;
    Ok(importer.fresh(result))
}

fn log_softmax(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let dtype = call.result_dtype()?;
    let value = cast_in(importer, &x, DType::Float32)?;
    let builder = &mut importer.builder;
    let axes = vec![dim.axis(builder.shape(value).len(), -1)?];
    let peak = builder.reduce(Reduction::Max, value, axes.clone(), true)?;
    let shifted = builder.binary(Binary::Sub, value, peak)?;
    let powers = builder.unary(Unary::Exp, shifted)?;
    let total = builder.reduce(Reduction::Sum, powers, axes, true)?;
    let log = builder.unary(Unary::Log, total)?;
    let result = builder.binary(Binary::Sub, shifted, log)?;
    let result = builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

fn cumsum(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let value = cast_in(importer, &x, call.result_dtype()?)?;
    let axis = dim.axis(importer.builder.shape(value).len(), 0)?;
    let result = importer.builder.add(Op::Cumsum { axis }, &[value])?;
    Ok(importer.fresh(result))
}

fn pair(importer: &mut Importer, value: Value) -> Item {
    let indices = Value {
        node: value.node,
        output: 1,
    };
    Item::Tuple(vec![importer.fresh(value), importer.fresh(indices)])
}

fn sort(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, descending] = call.bind(["self", "dim", "descending"])?;
    let value = importer.value(&x)?;
    let axis = dim.axis(importer.builder.shape(value).len(), -1)?;
    let op = Op::Sort {
        axis,
        descending: descending.bool_or(false)?,
    };
    let result = importer.builder.add(op, &[value])?;
    Ok(pair(importer, result))
}

fn topk(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, k, dim, largest, _sorted] = call.bind(["self", "k", "dim", "largest", "sorted"])?;
    if !largest.bool_or(true)? {
        return Err("the smallest k".into());
    }
    let value = importer.value(&x)?;
    let axis = dim.axis(importer.builder.shape(value).len(), -1)?;
    let result = importer
        .builder
        .add(Op::Topk { axis, k: k.int()? }, &[value])?;
    Ok(pair(importer, result))
}

/// Weights of a normalisation over the last axis, or why it is another one.
fn norm_operands(
    importer: &mut Importer,
    x: Value,
    shape: &Item,
    weights: [&Item; 2],
) -> Result<Vec<Value>, String> {
    let dims = shape.dims()?;
    if dims.len() != 1 || importer.builder.shape(x).last() != dims.first() {
        return Err("a normalisation over several axes".into());
    }
    let mut operands = vec![x];
    match weights {
        [Item::None, Item::None] => {}
        [weight, Item::None] => operands.push(importer.value(weight)?),
        [Item::None, _] => return Err("a normalisation with a bias and no weight".into()),
        [weight, bias] => operands.extend([importer.value(weight)?, importer.value(bias)?]),
    }
    Ok(operands)
}

fn layer_norm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, shape, weight, bias, eps, _] = call.bind([
        "input",
        "normalized_shape",
        "weight",
        "bias",
        "eps",
        "cudnn_enable",
    ])?;
    let value = importer.value(&x)?;
    let operands = norm_operands(importer, value, &shape, [&weight, &bias])?;
    let eps = Float::new(eps.float_or(1e-5)?);
    let result = importer.builder.add(Op::LayerNorm { eps }, &operands)?;
    let result = importer.fresh(result);
    if call.target() != "aten.native_layer_norm.default" {
        return Ok(result);
    }
    // The native form also yields mean and 1 / deviation, which only training reads.
    let wide = importer.builder.cast(value, DType::Float32)?;
    let mean = mean_last(importer, wide)?;
    let centred = importer.builder.binary(Binary::Sub, wide, mean)?;
    let scale = inverse_root_mean_square(importer, centred, eps)?;
    let statistics = [mean, scale].map(|value| importer.fresh(value));
    let [mean, scale] = statistics;
    Ok(Item::Tuple(vec![result, mean, scale]))
}

fn rms_norm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, shape, weight, eps] = call.bind(["input", "normalized_shape", "weight", "eps"])?;
    let value = importer.value(&x)?;
    let operands = norm_operands(importer, value, &shape, [&weight, &Item::None])?;
    let default = match importer.builder.dtype(value) {
        DType::Float16 => 2f64.powi(-10),
        DType::Bfloat16 => 2f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    };
    let eps = Float::new(eps.float_or(default)?);
    let result = importer.builder.add(Op::RmsNorm { eps }, &operands)?;
    let result = importer.fresh(result);
    if call.target() != "aten._fused_rms_norm.default" {
        return Ok(result);
    }
    let wide = importer.builder.cast(value, DType::Float32)?;
    let scale = inverse_root_mean_square(importer, wide, eps)?;
    Ok(Item::Tuple(vec![result, importer.fresh(scale)]))
}

fn mean_last(importer: &mut Importer, x: Value) -> Result<Value, String> {
    let last = importer.builder.shape(x).len().saturating_sub(1);
    importer
        .builder
        .reduce(Reduction::Mean, x, vec![last], true)
}

/// `1 / sqrt(mean(x^2) + eps)` over the last axis, which stays with size 1.
fn inverse_root_mean_square(
    importer: &mut Importer,
    x: Value,
    eps: Float,
) -> Result<Value, String> {
    let square = importer.builder.unary(Unary::Square, x)?;
    let mean = mean_last(importer, square)?;
    let dtype = importer.builder.dtype(x);
    let eps = importer.builder.scalar(Scalar::Float(eps), dtype);
    let sum = importer.builder.binary(Binary::Add, mean, eps)?;
    importer.builder.unary(Unary::Rsqrt, sum)
}

fn variance(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, correction, keepdim] = call.bind(["self", "dim", "correction", "keepdim"])?;
    let dtype = call.result_dtype()?;
    let value = cast_in(importer, &x, DType::Float32)?;
    let builder = &mut importer.builder;
    let shape = builder.shape(value).to_vec();
    let axes = dim.axes(shape.len())?;
    let count: Option<i64> = axes.iter().try_fold(1i64, |total, axis| {
        total.checked_mul(shape.get(*axis)?.fixed()?)
    });
    let count = count.ok_or("a variance over a symbolic size")? as f64;
    let divisor = count - correction.float_or(1.0)?;
    let mean = builder.reduce(Reduction::Mean, value, axes.clone(), true)?;
    let centred = builder.binary(Binary::Sub, value, mean)?;
    let square = builder.unary(Unary::Square, centred)?;
    let total = builder.reduce(Reduction::Sum, square, axes, keepdim.bool_or(false)?)?;
    let divisor = builder.scalar(Scalar::Float(Float::new(divisor)), DType::Float32);
    let result = builder.binary(Binary::Div, total, divisor)?;
    let result = builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

fn vector_norm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, order, dim, keepdim, _] = call.bind(["self", "ord", "dim", "keepdim", "dtype"])?;
    if order.float_or(2.0)? != 2.0 {
        return Err(format!("a norm of order {order:?}"));
    }
    let dtype = call.result_dtype()?;
    let value = cast_in(importer, &x, DType::Float32)?;
    let builder = &mut importer.builder;
    let axes = dim.axes(builder.shape(value).len())?;
    let square = builder.unary(Unary::Square, value)?;
    let total = builder.reduce(Reduction::Sum, square, axes, keepdim.bool_or(false)?)?;
    let result = builder.unary(Unary::Sqrt, total)?;
    let result = builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}
