// SPDX-License-Identifier: Apache-2.0
//! Constants and ranges.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::{DType, Dim, MAX_SIZE, Op, Scalar, TensorType, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    // What is never written before it is read may hold anything: zeros are as good.
    ("aten.empty.memory_format", |i, call| constant(i, call, 0)),
    ("aten.empty_strided.default", |i, call| constant(i, call, 0)),
    ("aten.empty_permuted.default", empty_permuted),
    ("aten.new_empty_strided.default", new_empty_strided),
    ("aten.zeros.default", |i, call| constant(i, call, 0)),
    ("aten.ones.default", |i, call| constant(i, call, 1)),
    ("aten.empty_like.default", |i, call| like(i, call, 0)),
    ("aten.zeros_like.default", |i, call| like(i, call, 0)),
    ("aten.ones_like.default", |i, call| like(i, call, 1)),
    ("aten.new_empty.default", |i, call| new(i, call, 0)),
    ("aten.new_zeros.default", |i, call| new(i, call, 0)),
    ("aten.new_ones.default", |i, call| new(i, call, 1)),
    ("aten.full.default", full),
    ("aten.full_like.default", full_like),
    ("aten.new_full.default", new_full),
    ("aten.scalar_tensor.default", scalar_tensor),
    ("aten.arange.default", arange),
    ("aten.arange.start", arange),
    ("aten.arange.start_step", arange),
    ("aten.eye.default", eye),
    ("aten.eye.m", eye),
    ("aten.linspace.Scalar_Tensor", linspace),
    ("aten.linspace.Tensor_Scalar", linspace),
    ("aten.linspace.Tensor_Tensor", linspace),
    ("aten.linspace.default", linspace),
    ("aten.logspace.Scalar_Tensor", logspace),
    ("aten.logspace.Tensor_Scalar", logspace),
    ("aten.logspace.Tensor_Tensor", logspace),
    ("aten.logspace.default", logspace),
];

fn constant(importer: &mut Importer, call: &Call, value: i64) -> Result<Item, String> {
    let [size, _, _] = call.bind(["size", "stride", "dtype"])?;
    build(importer, call, size.dims()?, Scalar::Int(value))
}

fn like(importer: &mut Importer, call: &Call, value: i64) -> Result<Item, String> {
    let [x, _] = call.bind(["self", "dtype"])?;
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x).to_vec();
    build(importer, call, shape, Scalar::Int(value))
}

fn new(importer: &mut Importer, call: &Call, value: i64) -> Result<Item, String> {
    let [_, size, _] = call.bind(["self", "size", "dtype"])?;
    build(importer, call, size.dims()?, Scalar::Int(value))
}

fn full(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [size, value, _] = call.bind(["size", "fill_value", "dtype"])?;
    build(importer, call, size.dims()?, value.scalar()?)
}

fn full_like(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, value, _] = call.bind(["self", "fill_value", "dtype"])?;
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x).to_vec();
    build(importer, call, shape, value.scalar()?)
}

fn new_full(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [_, size, value, _] = call.bind(["self", "size", "fill_value", "dtype"])?;
    build(importer, call, size.dims()?, value.scalar()?)
}

fn scalar_tensor(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [value, _] = call.bind(["s", "dtype"])?;
    build(importer, call, vec![], value.scalar()?)
}

fn build(
    importer: &mut Importer,
    call: &Call,
    shape: Vec<Dim>,
    value: Scalar,
) -> Result<Item, String> {
    let dtype = call.result_dtype()?;
    let types = vec![TensorType {
        dtype,
        shape: shape.clone(),
    }];
    types.iter().try_for_each(TensorType::check_sizes)?;
    let node = importer.builder.node(Op::Full { value, shape }, &[], types);
    Ok(importer.fresh(Value { node, output: 0 }))
}

fn empty_permuted(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [size, _, _] = call.bind(["size", "physical_layout", "dtype"])?;
    build(importer, call, size.dims()?, Scalar::Int(0))
}

fn new_empty_strided(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [_, size, _, _] = call.bind(["self", "size", "stride", "dtype"])?;
    build(importer, call, size.dims()?, Scalar::Int(0))
}

fn arange(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let (start, end, step) = match call.target() {
        "aten.arange.default" => call
            .bind(["end", "dtype"])
            .map(|[end, _]| (Item::None, end, Item::None))?,
        _ => call
            .bind(["start", "end", "step", "dtype"])
            .map(|[start, end, step, _]| (start, end, step))?,
    };
    let dtype = call.result_dtype()?;
    let is_float = |item: &Item| matches!(item, Item::Float(_));
    if is_float(&start) || is_float(&end) || is_float(&step) {
        return float_arange(importer, dtype, &start, &end, &step);
    }
    let start = if start.is_none() {
        Dim::Fixed(0)
    } else {
        start.dim()?
    };
    let (end, step) = (end.dim()?, step.int_or(1)?);
    let length = match step {
        1.. => crate::ir::slice_length(start, end, step),
        0 => None,
        _ => crate::ir::slice_length(end, start, step.saturating_neg()),
    };
    let length = length.ok_or("a range whose length is not affine")?;
    let range = importer.affine_range(start, step, length)?;
    let range = importer.builder.cast(range, dtype)?;
    Ok(importer.fresh(range))
}

/// `start + step * i` of floats.
fn float_arange(
    importer: &mut Importer,
    dtype: DType,
    start: &Item,
    end: &Item,
    step: &Item,
) -> Result<Item, String> {
    let (start, end, step) = (start.float_or(0.0)?, end.float()?, step.float_or(1.0)?);
    let length = ((end - start) / step).ceil();
    if !(0.0..=MAX_SIZE as f64).contains(&length) {
        return Err(format!("a range of {length} elements"));
    }
    let steps = importer.range(Dim::Fixed(length as i64))?;
    let steps = importer.builder.cast(steps, DType::Float32)?;
    let range = Formula::Value(steps) * step + start;
    let range = importer.formula(&range, DType::Float32)?;
    let range = importer.builder.cast(range, dtype)?;
    Ok(importer.fresh(range))
}

fn eye(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let (rows, columns) = match call.target() {
        "aten.eye.m" => {
            let [rows, columns, _] = call.bind(["n", "m", "dtype"])?;
            (rows.dim()?, columns.dim()?)
        }
        _ => {
            let [rows, _] = call.bind(["n", "dtype"])?;
            (rows.dim()?, rows.dim()?)
        }
    };
    let rows = importer.range(rows)?;
    let rows = importer.builder.expand_dims(rows, 1)?;
    let columns = importer.range(columns)?;
    let same = importer
        .builder
        .binary(crate::ir::Binary::Equal, rows, columns)?;
    let value = importer.builder.cast(same, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

/// Evenly spaced float32 numbers, counted from the nearer end. Whole numbers are spaced in float64 and
/// then cut, 16-bit floats in their own arithmetic: those are refused.
fn spaced(
    importer: &mut Importer,
    start: &Item,
    end: &Item,
    steps: &Item,
    result: DType,
) -> Result<Value, String> {
    if result != DType::Float32 {
        return Err(format!("evenly spaced {result} numbers"));
    }
    let steps = steps.int()?;
    let mut ends = [start, end].map(|_| None);
    for (slot, item) in ends.iter_mut().zip([start, end]) {
        *slot = Some(match item {
            Item::Tensor(_) => {
                let value = importer.value(item)?;
                importer.builder.cast(value, result)?
            }
            number => importer.builder.scalar(number.scalar()?, result),
        });
    }
    let [Some(start), Some(end)] = ends else {
        return Err("a range without ends".into());
    };
    let range = importer.range(Dim::Fixed(steps))?;
    let range = importer.builder.cast(range, DType::Float32)?;
    let (start, end, index) = (
        Formula::Value(start),
        Formula::Value(end),
        Formula::Value(range),
    );
    let step = (end.clone() - start.clone()) / ((steps - 1).max(1) as f64);
    let from_start = start.clone() + step.clone() * index.clone();
    let from_end = end - step * (Formula::Number((steps - 1) as f64) - index.clone());
    let spaced = match steps {
        1 => start + index * 0.0,
        _ => index.less((steps / 2) as f64).choose(from_start, from_end),
    };
    importer.formula(&spaced, DType::Float32)
}

fn linspace(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [start, end, steps, _] = call.bind(["start", "end", "steps", "dtype"])?;
    let dtype = call.result_dtype()?;
    let value = spaced(importer, &start, &end, &steps, dtype)?;
    Ok(importer.fresh(value))
}

fn logspace(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [start, end, steps, base, _] = call.bind(["start", "end", "steps", "base", "dtype"])?;
    let dtype = call.result_dtype()?;
    let exponents = spaced(importer, &start, &end, &steps, dtype)?;
    let powers = Formula::Number(base.float_or(10.0)?).pow(exponents);
    let value = importer.formula(&powers, dtype)?;
    Ok(importer.fresh(value))
}
