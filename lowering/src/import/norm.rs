// SPDX-License-Identifier: Apache-2.0
//! Softmax and normalisations.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::reduce::Line;
use crate::ir::{
    Binary, DType, Dim, Float, Op, Reduction, Scalar, TensorType, Unary, Value, product,
};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten._batch_norm_no_update.default", batch_norm),
    ("aten._fused_rms_norm.default", rms_norm),
    ("aten._log_softmax.default", log_softmax),
    ("aten._native_batch_norm_legit.default", batch_norm),
    ("aten._native_batch_norm_legit.no_stats", batch_norm),
    (
        "aten._native_batch_norm_legit_no_training.default",
        batch_norm,
    ),
    ("aten._safe_softmax.default", safe_softmax),
    ("aten._softmax.default", softmax),
    ("aten.layer_norm.default", layer_norm),
    ("aten.log_softmax.int", log_softmax),
    ("aten.native_batch_norm.default", batch_norm),
    ("aten.native_group_norm.default", group_norm),
    ("aten.native_layer_norm.default", layer_norm),
    ("aten.rms_norm.default", rms_norm),
    ("aten.softmax.int", softmax),
];

fn softmax_value(
    importer: &mut Importer,
    call: &Call,
    x: &Item,
    dim: &Item,
) -> Result<Value, String> {
    let value = importer.value(x)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    let line = Line::new(importer, value, dim, -1)?;
    let axis = line.axis;
    let result = importer.builder.add(Op::Softmax { axis }, &[line.value])?;
    line.close(importer, result)
}

fn softmax(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let result = softmax_value(importer, call, &x, &dim)?;
    Ok(importer.fresh(result))
}

/// Softmax that is 0 where every element is minus infinity.
fn safe_softmax(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let result = softmax_value(importer, call, &x, &dim)?;
    let dtype = importer.builder.dtype(result);
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, -1)?;
    let value_dtype = importer.builder.dtype(line.value);
    let masked = Formula::Value(line.value).equal(f64::NEG_INFINITY);
    let masked = importer.formula(&masked, value_dtype)?;
    let masked = importer
        .builder
        .reduce(Reduction::All, masked, vec![line.axis], true)?;
    let masked = line.close(importer, masked)?;
    let result = Formula::Value(masked).choose(0.0, Formula::Value(result));
    let result = importer.formula(&result, dtype)?;
    Ok(importer.fresh(result))
}

fn log_softmax(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let dtype = call.result_dtype()?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, DType::Float32)?;
    let line = Line::new(importer, value, &dim, -1)?;
    if line.length(importer) == Dim::Fixed(0) {
        let value = importer.builder.cast(value, dtype)?;
        return Ok(importer.fresh(value));
    }
    let builder = &mut importer.builder;
    let axes = vec![line.axis];
    let peak = builder.reduce(Reduction::Max, line.value, axes.clone(), true)?;
    let shifted = builder.binary(Binary::Sub, line.value, peak)?;
    let powers = builder.unary(Unary::Exp, shifted)?;
    let total = builder.reduce(Reduction::Sum, powers, axes, true)?;
    let log = builder.unary(Unary::Log, total)?;
    let result = builder.binary(Binary::Sub, shifted, log)?;
    let result = builder.cast(result, dtype)?;
    let result = line.close(importer, result)?;
    Ok(importer.fresh(result))
}

/// What is normalised together, as the last axis, and weights of that size.
struct Vectors {
    x: Value,
    shape: Vec<Dim>,
    /// The leading axes, then 1 for each normalised one: the shape of statistics.
    statistics: Vec<Dim>,
    weights: Vec<Value>,
}

impl Vectors {
    fn new(
        importer: &mut Importer,
        x: &Item,
        normalized: &Item,
        weights: [&Item; 2],
    ) -> Result<Vectors, String> {
        let x = importer.value(x)?;
        let shape = importer.builder.shape(x).to_vec();
        let count = normalized.dims()?.len();
        let lead = shape
            .len()
            .checked_sub(count)
            .filter(|_| count > 0)
            .ok_or("a normalisation of more axes than there are")?;
        let size = product(&shape[lead..]).ok_or("a size that overflows")?;
        let mut flat = shape[..lead].to_vec();
        let mut statistics = flat.clone();
        statistics.resize(shape.len(), Dim::Fixed(1));
        flat.push(size);
        let x = importer.builder.reshape(x, flat)?;
        let mut values = Vec::new();
        for weight in weights.into_iter().filter(|weight| !weight.is_none()) {
            let weight = importer.value(weight)?;
            values.push(importer.builder.reshape(weight, vec![size])?);
        }
        if weights[0].is_none() && !weights[1].is_none() {
            return Err("a normalisation with a bias and no weight".into());
        }
        Ok(Vectors {
            x,
            shape,
            statistics,
            weights: values,
        })
    }

    fn normalise(&self, importer: &mut Importer, op: Op) -> Result<Value, String> {
        let operands = [&[self.x], self.weights.as_slice()].concat();
        let result = importer.builder.add(op, &operands)?;
        importer.builder.reshape(result, self.shape.clone())
    }

    /// `1 / sqrt(mean(f(x)^2) + eps)` in float32, and the mean.
    fn statistics(
        &self,
        importer: &mut Importer,
        eps: f64,
        centred: bool,
    ) -> Result<(Value, Value), String> {
        let x = importer.builder.cast(self.x, DType::Float32)?;
        let axis = importer.builder.shape(x).len() - 1;
        let (inverse, mean) = inverse_deviation(importer, x, vec![axis], eps, centred)?;
        Ok((
            importer.builder.reshape(inverse, self.statistics.clone())?,
            importer.builder.reshape(mean, self.statistics.clone())?,
        ))
    }
}

/// `1 / sqrt(variance + eps)` and the mean over the axes, which stay with size 1. Not centred, the
/// variance is about 0.
fn inverse_deviation(
    importer: &mut Importer,
    x: Value,
    axes: Vec<usize>,
    eps: f64,
    centred: bool,
) -> Result<(Value, Value), String> {
    let builder = &mut importer.builder;
    let mean = builder.reduce(Reduction::Mean, x, axes.clone(), true)?;
    let gap = match centred {
        true => builder.binary(Binary::Sub, x, mean)?,
        false => x,
    };
    let square = builder.unary(Unary::Square, gap)?;
    let variance = builder.reduce(Reduction::Mean, square, axes, true)?;
    let eps = builder.scalar(Scalar::Float(Float::new(eps)), DType::Float32);
    let shifted = builder.binary(Binary::Add, variance, eps)?;
    Ok((builder.unary(Unary::Rsqrt, shifted)?, mean))
}

/// The value as the call's result of that index, cast.
fn output(importer: &mut Importer, call: &Call, index: usize, value: Value) -> Lowered {
    let value = importer.builder.cast(value, call.output_dtype(index)?)?;
    Ok(importer.fresh(value))
}

fn layer_norm(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, shape, weight, bias, eps, _] = call.bind([
        "input",
        "normalized_shape",
        "weight",
        "bias",
        "eps",
        "cudnn_enable",
    ])?;
    let eps = eps.float_or(1e-5)?;
    let vectors = Vectors::new(importer, &x, &shape, [&weight, &bias])?;
    let op = Op::LayerNorm {
        eps: Float::new(eps),
    };
    let result = vectors.normalise(importer, op)?;
    let result = importer.fresh(result);
    if call.target() == "aten.layer_norm.default" {
        return Ok(result);
    }
    let (inverse, mean) = vectors.statistics(importer, eps, true)?;
    Ok(Item::Tuple(vec![
        result,
        output(importer, call, 1, mean)?,
        output(importer, call, 2, inverse)?,
    ]))
}

fn rms_norm(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, shape, weight, eps] = call.bind(["input", "normalized_shape", "weight", "eps"])?;
    let vectors = Vectors::new(importer, &x, &shape, [&weight, &Item::None])?;
    let default = match importer.builder.dtype(vectors.x) {
        DType::Float16 => 2f64.powi(-10),
        DType::Bfloat16 => 2f64.powi(-7),
        _ => f64::from(f32::EPSILON),
    };
    let eps = eps.float_or(default)?;
    let op = Op::RmsNorm {
        eps: Float::new(eps),
    };
    let result = vectors.normalise(importer, op)?;
    let result = importer.fresh(result);
    if call.target() == "aten.rms_norm.default" {
        return Ok(result);
    }
    let (inverse, _) = vectors.statistics(importer, eps, false)?;
    Ok(Item::Tuple(vec![
        result,
        output(importer, call, 1, inverse)?,
    ]))
}

/// A weight of channels, in float32 and as a column against `[.., channels, ..]`.
fn channel_weight(
    importer: &mut Importer,
    weight: &Item,
    shape: &[Dim],
    default: f64,
) -> Result<Formula, String> {
    if weight.is_none() {
        return Ok(Formula::Number(default));
    }
    let weight = importer.value(weight)?;
    let weight = importer.builder.cast(weight, DType::Float32)?;
    let mut column = vec![Dim::Fixed(1); shape.len()];
    if let (Some(to), Some(from)) = (column.get_mut(1), shape.get(1)) {
        *to = *from;
    }
    Ok(Formula::Value(importer.builder.reshape(weight, column)?))
}

/// Groups of channels (Wu & He 2018), each normalised over its channels and places.
fn group_norm(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, weight, bias, batch, _, _, groups, eps] =
        call.bind(["input", "weight", "bias", "N", "C", "HxW", "group", "eps"])?;
    let eps = eps.float()?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let shape = importer.builder.shape(x).to_vec();
    let total = product(&shape).ok_or("a size that overflows")?;
    let (batch, groups) = (batch.dim()?, groups.int()?);
    let rows = batch
        .checked_mul(Dim::Fixed(groups))
        .ok_or("a size that overflows")?;
    let size = total.checked_div(rows).ok_or("groups of no whole size")?;
    let wide = importer.builder.cast(x, DType::Float32)?;
    let flat = importer
        .builder
        .reshape(wide, vec![batch, Dim::Fixed(groups), size])?;
    let (inverse, mean) = inverse_deviation(importer, flat, vec![2], eps, true)?;
    let normal = (Formula::Value(flat) - mean) * Formula::Value(inverse);
    let normal = importer.formula(&normal, DType::Float32)?;
    let normal = importer.builder.reshape(normal, shape.clone())?;
    let scale = channel_weight(importer, &weight, &shape, 1.0)?;
    let shift = channel_weight(importer, &bias, &shape, 0.0)?;
    let result = importer.formula(&(Formula::Value(normal) * scale + shift), DType::Float32)?;
    let result = importer.builder.cast(result, dtype)?;
    let result = importer.fresh(result);
    let statistics = vec![batch, Dim::Fixed(groups)];
    let mean = importer.builder.reshape(mean, statistics.clone())?;
    let inverse = importer.builder.reshape(inverse, statistics)?;
    Ok(Item::Tuple(vec![
        result,
        output(importer, call, 1, mean)?,
        output(importer, call, 2, inverse)?,
    ]))
}

/// Channels normalised by given statistics, or in training by the batch's own, which then update the
/// given ones (Ioffe & Szegedy 2015).
fn batch_norm(importer: &mut Importer, call: &Call) -> Lowered {
    const STATISTICS: [&str; 5] = ["input", "weight", "bias", "running_mean", "running_var"];
    let [input, w, b, m, v] = STATISTICS;
    let (bound, training, momentum, eps) = match call.target() {
        "aten._native_batch_norm_legit.no_stats" => {
            let [x, weight, bias, training, momentum, eps] =
                call.bind([input, w, b, "training", "momentum", "eps"])?;
            let bound = [x, weight, bias, Item::None, Item::None];
            (bound, training, momentum, eps)
        }
        "aten.native_batch_norm.default" | "aten._native_batch_norm_legit.default" => {
            let [x, weight, bias, mean, variance, training, momentum, eps] =
                call.bind([input, w, b, m, v, "training", "momentum", "eps"])?;
            ([x, weight, bias, mean, variance], training, momentum, eps)
        }
        _ => {
            let [x, weight, bias, mean, variance, momentum, eps] =
                call.bind([input, w, b, m, v, "momentum", "eps"])?;
            let bound = [x, weight, bias, mean, variance];
            (bound, Item::Bool(false), momentum, eps)
        }
    };
    let [x, weight, bias, mean, variance] = bound;
    let (training, eps) = (training.bool_or(false)?, eps.float()?);
    let momentum = momentum.float_or(0.1)?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let shape = importer.builder.shape(x).to_vec();
    let wide = importer.builder.cast(x, DType::Float32)?;
    let channels = *shape.get(1).ok_or("a batch without channels")?;
    let (inverse, centre, saved) = if training {
        let axes: Vec<usize> = (0..shape.len()).filter(|axis| *axis != 1).collect();
        let sizes: Vec<Dim> = axes.iter().map(|axis| shape[*axis]).collect();
        let count = product(&sizes).ok_or("a size that overflows")?;
        let (inverse, centre) = inverse_deviation(importer, wide, axes, eps, true)?;
        let flat = |importer: &mut Importer, x| importer.builder.reshape(x, vec![channels]);
        let saved = [flat(importer, centre)?, flat(importer, inverse)?];
        update_statistics(importer, [&mean, &variance], saved, momentum, eps, count)?;
        (Formula::Value(inverse), Formula::Value(centre), Some(saved))
    } else {
        let variance = channel_weight(importer, &variance, &shape, 1.0)?;
        let inverse = Formula::Number(1.0) / (variance + eps).sqrt();
        (inverse, channel_weight(importer, &mean, &shape, 0.0)?, None)
    };
    let scale = channel_weight(importer, &weight, &shape, 1.0)?;
    let shift = channel_weight(importer, &bias, &shape, 0.0)?;
    let result = (Formula::Value(wide) - centre) * inverse * scale + shift;
    let result = importer.formula(&result, DType::Float32)?;
    let result = importer.builder.cast(result, dtype)?;
    let mut items = vec![importer.fresh(result)];
    for index in 0..2 {
        // Without training nothing is saved, and the results have no elements.
        let value = match &saved {
            Some(saved) => saved[index],
            None => nothing(importer),
        };
        items.push(output(importer, call, index + 1, value)?);
    }
    if call.target() == "aten._batch_norm_no_update.default" {
        items.push(Item::None);
    }
    Ok(Item::Tuple(items))
}

/// Moves the kept mean and variance, the unbiased one, towards the batch's.
fn update_statistics(
    importer: &mut Importer,
    kept: [&Item; 2],
    [mean, inverse]: [Value; 2],
    momentum: f64,
    eps: f64,
    count: Dim,
) -> Result<(), String> {
    let count = importer.builder.scalar(Scalar::Size(count), DType::Float32);
    let count = Formula::Value(count);
    let variance = Formula::Number(1.0) / Formula::Value(inverse).square() - eps;
    let unbiased = variance * count.clone() / (count - 1.0);
    for (item, new) in kept.into_iter().zip([Formula::Value(mean), unbiased]) {
        if item.is_none() {
            continue;
        }
        let old = importer.value(item)?;
        let old = importer.builder.cast(old, DType::Float32)?;
        let moved = Formula::Value(old) * (1.0 - momentum) + new * momentum;
        let moved = importer.formula(&moved, DType::Float32)?;
        importer.store(item, moved)?;
    }
    Ok(())
}

/// A vector without elements.
fn nothing(importer: &mut Importer) -> Value {
    let shape = vec![Dim::Fixed(0)];
    let value = TensorType {
        dtype: DType::Float32,
        shape: shape.clone(),
    };
    let op = Op::Full {
        value: Scalar::Int(0),
        shape,
    };
    let node = importer.builder.node(op, &[], vec![value]);
    Value { node, output: 0 }
}
