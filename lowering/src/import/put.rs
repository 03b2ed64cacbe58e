// SPDX-License-Identifier: Apache-2.0
//! Elements replaced or added to at places that tensors of indices and masks name together.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::index::{Joined, in_range, indices};
use super::promote::select;
use super::reduce::Line;
use super::scatter::{How, scattered};
use crate::ir::{Binary, DType, Dim, Op, Scan, Value, product};

/// Operators without an in-place form.
pub const CLAIMS: Claims = &[
    ("aten._unsafe_index_put.default", index_put),
    ("aten._unsafe_masked_index.default", masked_index),
    (
        "aten._unsafe_masked_index_put_accumulate.default",
        masked_index_put,
    ),
];

/// Those that have one.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.index_put.default", index_put),
    ("aten.masked_fill.Scalar", masked_fill),
    ("aten.masked_fill.Tensor", masked_fill),
    ("aten.masked_scatter.default", masked_scatter),
    ("aten.put.default", put),
];

fn masked_fill(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, mask, value] = call.bind(["self", "mask", "value"])?;
    let result = select(importer, &mask, &value, &x, call.result_dtype()?)?;
    Ok(importer.fresh(result))
}

/// Elements by their place in row-major order.
fn put(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, place, source, accumulate] = call.bind(["self", "index", "source", "accumulate"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let source = importer.value(&source)?;
    let shape = importer.builder.shape(x).to_vec();
    let mut flat = [x, place, source];
    for value in &mut flat {
        let total = importer
            .builder
            .num_elements(*value)
            .ok_or("a size that overflows")?;
        *value = importer.builder.reshape(*value, vec![total])?;
    }
    let [x, place, source] = flat;
    let how = match accumulate.bool_or(false)? {
        true => How::Add,
        false => How::Replace,
    };
    let line = Line::new(importer, x, &Item::None, 0)?;
    let value = scattered(importer, &line, place, source, how)?;
    let value = importer.builder.reshape(value, shape)?;
    Ok(importer.fresh(value))
}

fn index_put(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, places, values, accumulate] = match call.target() {
        "aten._unsafe_index_put.default" => {
            call.bind(["self", "indices", "values", "accumulate"])?
        }
        _ => {
            let [x, places, values, accumulate, _] =
                call.bind(["self", "indices", "values", "accumulate", "unsafe"])?;
            [x, places, values, accumulate]
        }
    };
    let how = match accumulate.bool_or(false)? {
        true => How::Add,
        false => How::Replace,
    };
    if let Some((axis, mask)) = only_mask(importer, &places)? {
        return put_masked(importer, &x, axis, mask, &values, how);
    }
    let x = importer.value(&x)?;
    let values = importer.value(&values)?;
    let value = put_joined(importer, x, &places, values, how)?;
    Ok(importer.fresh(value))
}

/// `x` with values at the places that index tensors name together.
fn put_joined(
    importer: &mut Importer,
    x: Value,
    places: &Item,
    values: Value,
    how: How,
) -> Result<Value, String> {
    let shape = importer.builder.shape(x).to_vec();
    let joined = Joined::new(importer, x, places)?;
    let flat = joined.open(importer, x)?;
    let axis = joined.axis;
    let place_shape = importer.builder.shape(joined.place).to_vec();
    let count = product(&place_shape).ok_or("a size that overflows")?;
    let result_shape = [
        &joined.shape[..axis],
        &place_shape,
        &joined.shape[axis + 1..],
    ]
    .concat();
    let values = importer.broadcast_value(values, &result_shape)?;
    let mut update_shape = joined.shape.clone();
    update_shape[axis] = count;
    let values = importer.builder.reshape(values, update_shape.clone())?;
    let mut column = vec![Dim::Fixed(1); update_shape.len()];
    column[axis] = count;
    let place = importer.builder.reshape(joined.place, column)?;
    let place = importer.builder.broadcast(place, update_shape)?;
    let line = Line::new(importer, flat, &Item::Size(Dim::Fixed(axis as i64)), 0)?;
    let value = scattered(importer, &line, place, values, how)?;
    joined.close(importer, value, &shape)
}

/// The mask and its first axis, where it is the only index.
fn only_mask(importer: &mut Importer, places: &Item) -> Result<Option<(usize, Value)>, String> {
    let given: Vec<(usize, &Item)> = places
        .list()?
        .iter()
        .enumerate()
        .filter(|(_, item)| !item.is_none())
        .collect();
    let [(axis, item)] = given.as_slice() else {
        return Ok(None);
    };
    let mask = importer.value(item)?;
    let is_mask = importer.builder.dtype(mask) == DType::Bool;
    Ok(is_mask.then_some((*axis, mask)))
}

/// Where a mask holds, one value: how many elements that are is not known before a step.
fn put_masked(
    importer: &mut Importer,
    x: &Item,
    axis: usize,
    mask: Value,
    values: &Item,
    how: How,
) -> Lowered {
    let (x, values) = (importer.value(x)?, importer.value(values)?);
    if importer.builder.num_elements(values) != Some(Dim::Fixed(1)) {
        return Err("several values for a boolean mask".into());
    }
    let rank = importer.builder.shape(x).len();
    let dtype = importer.builder.dtype(x);
    let values = importer.builder.cast(values, dtype)?;
    let values = importer.builder.reshape(values, vec![])?;
    let mut shape = importer.builder.shape(mask).to_vec();
    let end = axis + shape.len();
    let trailing = rank.checked_sub(end).ok_or("a mask of more axes")?;
    shape.extend(vec![Dim::Fixed(1); trailing]);
    let mask = importer.builder.reshape(mask, shape)?;
    let values = match how {
        How::Add => importer.builder.binary(Binary::Add, x, values)?,
        How::Replace => values,
    };
    let value = importer.builder.add(Op::Where, &[mask, values, x])?;
    Ok(importer.fresh(value))
}

/// Where the mask holds, the elements of the source in order.
fn masked_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, mask, source] = call.bind(["self", "mask", "source"])?;
    let (x, mask) = (importer.value(&x)?, importer.value(&mask)?);
    let source = importer.value(&source)?;
    let shape = crate::ir::broadcast(importer.builder.shape(x), importer.builder.shape(mask))?;
    let x = importer.builder.broadcast(x, shape.clone())?;
    let mask = importer.builder.broadcast(mask, shape.clone())?;
    let total = product(&shape).ok_or("a size that overflows")?;
    let available = importer
        .builder
        .num_elements(source)
        .ok_or("a size that overflows")?;
    if available == Dim::Fixed(0) || total == Dim::Fixed(0) {
        return Ok(importer.fresh(x));
    }
    let flat = importer.builder.reshape(mask, vec![total])?;
    let ones = importer.builder.cast(flat, DType::Int64)?;
    let scan = Op::Scan {
        function: Scan::Sum,
        axis: 0,
    };
    let count = importer.builder.add(scan, &[ones])?;
    let place = importer.formula(&(Formula::Value(count) - 1.0).maximum(0.0), DType::Int64)?;
    let place = in_range(importer, place, available)?;
    let source = importer.builder.reshape(source, vec![available])?;
    let taken = importer
        .builder
        .add(Op::Take { axis: 0 }, &[source, place])?;
    let taken = importer.builder.reshape(taken, shape)?;
    let value = importer.builder.add(Op::Where, &[mask, taken, x])?;
    Ok(importer.fresh(value))
}

/// `x[indices]` where the mask holds, else the fill.
fn masked_index(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, mask, places, fill] = call.bind(["self", "mask", "indices", "fill"])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let joined = Joined::new(importer, x, &places)?;
    let flat = joined.open(importer, x)?;
    let op = Op::Take { axis: joined.axis };
    let value = importer.builder.add(op, &[flat, joined.place])?;
    let value = importer.fresh(value);
    let result = select(importer, &mask, &value, &fill, dtype)?;
    Ok(importer.fresh(result))
}

/// Values added at `x[indices]` where the mask holds.
fn masked_index_put(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, mask, places, values] = call.bind(["self", "mask", "indices", "values"])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let values = select(importer, &mask, &values, &Item::Size(Dim::Fixed(0)), dtype)?;
    let value = put_joined(importer, x, &places, values, How::Add)?;
    Ok(importer.fresh(value))
}
