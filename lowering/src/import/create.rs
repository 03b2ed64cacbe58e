// SPDX-License-Identifier: Apache-2.0
//! Constants and ranges.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Dim, Op, Scalar, TensorType, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    // What is never written before it is read may hold anything: zeros are as good.
    ("aten.empty.memory_format", |i, call| constant(i, call, 0)),
    ("aten.empty_strided.default", |i, call| constant(i, call, 0)),
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

fn arange(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let (start, end, step) = match call.target() {
        "aten.arange.default" => call
            .bind(["end", "dtype"])
            .map(|[end, _]| (Item::None, end, Item::None))?,
        _ => call
            .bind(["start", "end", "step", "dtype"])
            .map(|[start, end, step, _]| (start, end, step))?,
    };
    let start = if start.is_none() {
        Dim::Fixed(0)
    } else {
        start.dim()?
    };
    let step = step.int_or(1)?;
    let length = crate::ir::slice_length(start, end.dim()?, step.max(1));
    let length = length
        .filter(|_| step > 0)
        .ok_or("a range whose length is not affine")?;
    let dtype = call.result_dtype()?;
    let types = vec![TensorType {
        dtype,
        shape: vec![length],
    }];
    types.iter().try_for_each(TensorType::check_sizes)?;
    let node = importer.builder.node(
        Op::Arange {
            start,
            step,
            length,
        },
        &[],
        types,
    );
    Ok(importer.fresh(Value { node, output: 0 }))
}
