// SPDX-License-Identifier: Apache-2.0
//! Pooling over windows: along one axis after the other, from slices of the padded input.

use super::call::{Call, Item};
use super::convolution::per_axis;
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Binary, DType, Dim, Float, Op, Reduction, Scalar, TensorType, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.max_pool1d.default", max_pool),
    ("aten.max_pool2d.default", max_pool),
    ("aten.max_pool2d_with_indices.default", max_pool),
    ("aten.max_pool3d.default", max_pool),
    ("aten.max_pool3d_with_indices.default", max_pool),
    ("aten.avg_pool1d.default", avg_pool),
    ("aten.avg_pool2d.default", avg_pool),
    ("aten.avg_pool3d.default", avg_pool),
    ("aten.adaptive_avg_pool1d.default", adaptive_avg_pool),
    ("aten._adaptive_avg_pool2d.default", adaptive_avg_pool),
    ("aten._adaptive_avg_pool3d.default", adaptive_avg_pool),
];

/// Each element of a window is one slice, so that a huge window is better left to PyTorch.
const MAX_WINDOW: i64 = 64;

/// Windows along one axis.
#[derive(Clone, Copy)]
struct Windows {
    axis: usize,
    size: i64,
    step: i64,
    padding: i64,
    dilation: i64,
    /// A last window may reach beyond the padding.
    ceil: bool,
}

impl Windows {
    /// Number of windows over `length` elements, and how far the last reaches beyond the padding.
    fn count(&self, length: Dim) -> Result<(Dim, i64), String> {
        let reach = self.dilation * (self.size - 1) + 1;
        let overflow = || "a pooled size that overflows".to_owned();
        let room = length
            .checked_add(Dim::Fixed(2 * self.padding - reach))
            .ok_or_else(overflow)?;
        let floor = room.floor_div(Dim::Fixed(self.step)).ok_or_else(overflow)?;
        let count = floor.checked_add(Dim::Fixed(1)).ok_or_else(overflow)?;
        if !self.ceil {
            return Ok((count, 0));
        }
        let (Dim::Fixed(room), Dim::Fixed(length)) = (room, length) else {
            return Err("a symbolic size is pooled with ceil_mode".into());
        };
        let mut count = (room + self.step - 1).div_euclid(self.step) + 1;
        // The last window has to begin inside the input or its left padding.
        if (count - 1) * self.step >= length + self.padding {
            count -= 1;
        }
        let beyond = (count - 1) * self.step + reach - length - 2 * self.padding;
        Ok((Dim::Fixed(count), beyond.max(0)))
    }
}

/// The windows of each of the last `axes` axes.
fn windows(
    importer: &Importer,
    x: Value,
    axes: usize,
    [kernel, stride, padding, dilation]: [&Item; 4],
    ceil: bool,
) -> Result<Vec<Windows>, String> {
    let first = importer
        .builder
        .shape(x)
        .len()
        .checked_sub(axes)
        .ok_or("a pooled tensor of too low a rank")?;
    let size = per_axis(kernel, axes, 1)?;
    let step = match stride.list()? {
        [] => size.clone(),
        _ => per_axis(stride, axes, 1)?,
    };
    let (padding, dilation) = (per_axis(padding, axes, 0)?, per_axis(dilation, axes, 1)?);
    let windows: Vec<Windows> = (0..axes)
        .map(|axis| Windows {
            axis: first + axis,
            size: size[axis],
            step: step[axis],
            padding: padding[axis],
            dilation: dilation[axis],
            ceil,
        })
        .collect();
    let fits = |w: &Windows| {
        (1..=MAX_WINDOW).contains(&w.size)
            && [w.step, w.dilation]
                .iter()
                .all(|step| (1..=MAX_WINDOW * MAX_WINDOW).contains(step))
            && (0..=w.size).contains(&w.padding)
    };
    match windows.iter().all(fits) {
        true => Ok(windows),
        false => Err(format!("windows of {size:?}")),
    }
}

fn padded(
    importer: &mut Importer,
    x: Value,
    axis: usize,
    [low, high]: [i64; 2],
    value: Scalar,
) -> Result<Value, String> {
    if low == 0 && high == 0 {
        return Ok(x);
    }
    let rank = importer.builder.shape(x).len();
    let at = |count: i64| {
        (0..rank)
            .map(|i| if i == axis { count } else { 0 })
            .collect()
    };
    let (low, high) = (at(low), at(high));
    importer.builder.add(Op::Pad { low, high, value }, &[x])
}

/// `combine` over each window of an axis, which is padded already.
fn pooled(
    importer: &mut Importer,
    x: Value,
    windows: Windows,
    count: Dim,
    combine: Binary,
) -> Result<Value, String> {
    let overflow = || "a pooled size that overflows".to_owned();
    let span = count
        .checked_sub(Dim::Fixed(1))
        .and_then(|last| last.checked_mul(Dim::Fixed(windows.step)))
        .ok_or_else(overflow)?;
    let mut result: Option<Value> = None;
    for element in 0..windows.size {
        let start = element * windows.dilation;
        let stop = span
            .checked_add(Dim::Fixed(start + 1))
            .ok_or_else(overflow)?;
        let part = importer
            .builder
            .slice(x, windows.axis, start.into(), stop, windows.step)?;
        result = Some(match result {
            Some(result) => importer.builder.binary(combine, result, part)?,
            None => part,
        });
    }
    result.ok_or_else(|| "an empty window".into())
}

fn axes_of(target: &str) -> usize {
    match target {
        name if name.contains("1d") => 1,
        name if name.contains("2d") => 2,
        _ => 3,
    }
}

fn max_pool(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, kernel, stride, padding, dilation, ceil] = call.bind([
        "self",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "ceil_mode",
    ])?;
    let mut value = importer.value(&x)?;
    if !importer.builder.dtype(value).is_float() {
        return Err("a pooled tensor of whole numbers".into());
    }
    let lowest = Scalar::Float(Float::new(f64::NEG_INFINITY));
    let axes = axes_of(call.target());
    let options = [&kernel, &stride, &padding, &dilation];
    for along in windows(importer, value, axes, options, ceil.bool_or(false)?)? {
        let (count, beyond) = along.count(importer.builder.shape(value)[along.axis])?;
        let around = [along.padding, along.padding + beyond];
        value = padded(importer, value, along.axis, around, lowest)?;
        value = pooled(importer, value, along, count, Binary::Maximum)?;
    }
    let result = importer.fresh(value);
    // Nothing computes the indices; a graph that reads them is refused.
    Ok(match call.target().contains("with_indices") {
        true => Item::Tuple(vec![result, Item::None]),
        false => result,
    })
}

fn avg_pool(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, kernel, stride, padding, ceil, include, divisor] = call.bind([
        "self",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    if !dtype.is_float() {
        return Err("an average of whole numbers".into());
    }
    let wide = if dtype.is_half() {
        DType::Float32
    } else {
        dtype
    };
    let mut value = importer.builder.cast(x, wide)?;
    let include = include.bool_or(true)?;
    let mut counts: Vec<Value> = Vec::new();
    let zero = Scalar::Float(Float::new(0.0));
    let options = [&kernel, &stride, &padding, &Item::None];
    let axes = axes_of(call.target());
    for along in windows(importer, value, axes, options, ceil.bool_or(false)?)? {
        let length = importer.builder.shape(value)[along.axis];
        let (count, beyond) = along.count(length)?;
        let around = [along.padding, along.padding + beyond];
        value = padded(importer, value, along.axis, around, zero)?;
        value = pooled(importer, value, along, count, Binary::Add)?;
        if !divisor.is_none() {
            continue;
        }
        if beyond == 0 && (include || along.padding == 0) {
            let size = Scalar::Float(Float::new(along.size as f64));
            counts.push(importer.builder.scalar(size, wide));
            continue;
        }
        // How many elements of each window count: the same sum over ones.
        let one = Scalar::Float(Float::new(1.0));
        let axis = along.axis;
        let rank = importer.builder.shape(value).len();
        let shape = (0..rank).map(|i| if i == axis { length } else { 1.into() });
        let ones = full(importer, shape.collect(), one, wide);
        let edge = if include { one } else { zero };
        let ones = padded(importer, ones, axis, [along.padding; 2], edge)?;
        let ones = padded(importer, ones, axis, [0, beyond], zero)?;
        counts.push(pooled(importer, ones, along, count, Binary::Add)?);
    }
    if !divisor.is_none() {
        counts.push(importer.builder.scalar(divisor.scalar()?, wide));
    }
    let total = counts
        .into_iter()
        .map(Ok)
        .reduce(|a: Result<Value, String>, b| importer.builder.binary(Binary::Mul, a?, b?));
    if let Some(total) = total {
        value = importer.builder.binary(Binary::Div, value, total?)?;
    }
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

fn full(importer: &mut Importer, shape: Vec<Dim>, value: Scalar, dtype: DType) -> Value {
    let op = Op::Full {
        value,
        shape: shape.clone(),
    };
    let node = importer
        .builder
        .node(op, &[], vec![TensorType { dtype, shape }]);
    Value { node, output: 0 }
}

fn adaptive_avg_pool(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, output] = call.bind(["self", "output_size"])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let wide = if dtype.is_half() {
        DType::Float32
    } else {
        dtype
    };
    let mut value = importer.builder.cast(x, wide)?;
    let outputs = output.dims()?;
    let rank = importer.builder.shape(value).len();
    let first = rank
        .checked_sub(outputs.len())
        .ok_or("a pooled tensor of too low a rank")?;
    for (axis, output) in (first..rank).zip(outputs) {
        value = match importer.builder.shape(value)[axis] {
            length if length == output => value,
            _ if output == Dim::Fixed(1) => {
                let mean = Reduction::Mean;
                importer.builder.reduce(mean, value, vec![axis], true)?
            }
            length => spread(importer, value, axis, length, output, wide)?,
        };
    }
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

/// Means over `output` windows of nearly one size: `i` begins at `floor(i * length / output)` and ends
/// before `ceil((i + 1) * length / output)`. A product with the matrix of the windows' weights.
fn spread(
    importer: &mut Importer,
    x: Value,
    axis: usize,
    length: Dim,
    output: Dim,
    dtype: DType,
) -> Result<Value, String> {
    let builder = &mut importer.builder;
    let mut range = |size: Dim, start: i64| {
        let op = Op::Arange {
            start: start.into(),
            step: 1,
            length: size,
        };
        let kind = TensorType {
            dtype: DType::Int64,
            shape: vec![size],
        };
        Value {
            node: builder.node(op, &[], vec![kind]),
            output: 0,
        }
    };
    let (this, next, place) = (range(output, 0), range(output, 1), range(length, 0));
    let number = |dim: Dim| match dim {
        Dim::Fixed(value) => Scalar::Int(value),
        dim => Scalar::Size(dim),
    };
    let size = builder.scalar(number(length), DType::Int64);
    let parts = builder.scalar(number(output), DType::Int64);
    let start = builder.binary(Binary::Mul, this, size)?;
    let start = builder.binary(Binary::FloorDivide, start, parts)?;
    let end = builder.binary(Binary::Mul, next, size)?;
    let one = builder.scalar(Scalar::Int(1), DType::Int64);
    let round = builder.binary(Binary::Sub, parts, one)?;
    let end = builder.binary(Binary::Add, end, round)?;
    let end = builder.binary(Binary::FloorDivide, end, parts)?;
    // [length, output]
    let place = builder.expand_dims(place, 1)?;
    let after = builder.binary(Binary::GreaterEqual, place, start)?;
    let before = builder.binary(Binary::Less, place, end)?;
    let inside = builder.binary(Binary::LogicalAnd, after, before)?;
    let inside = builder.cast(inside, dtype)?;
    let share = builder.binary(Binary::Sub, end, start)?;
    let share = builder.cast(share, dtype)?;
    let weights = builder.binary(Binary::Div, inside, share)?;
    let rank = builder.shape(x).len();
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(axis, rank - 1);
    let x = builder.transpose(x, order.clone())?;
    let value = match rank {
        1 => return Err("a pooled vector".into()),
        _ => builder.matmul(x, weights)?,
    };
    builder.transpose(value, order)
}
