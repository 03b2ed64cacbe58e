// SPDX-License-Identifier: Apache-2.0
//! Scatters: tensors with some elements replaced or added to.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::index::{in_range, indices};
use super::reduce::Line;
use crate::ir::{Binary, DType, Dim, Float, Op, Reduction, Scalar, Value};

/// Those that have one.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.index_add.default", index_add),
    ("aten.index_copy.default", index_copy),
    ("aten.index_fill.int_Scalar", index_fill),
    ("aten.index_fill.int_Tensor", index_fill),
    ("aten.index_reduce.default", index_reduce),
    ("aten.scatter.reduce", scatter),
    ("aten.scatter.src", scatter),
    ("aten.scatter.value", scatter),
    ("aten.scatter.value_reduce", scatter),
    ("aten.scatter_add.default", scatter_add),
    ("aten.scatter_reduce.two", scatter_reduce),
];

/// What a scatter does with an element that it meets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    Replace,
    Add,
}

/// The tensor with updates at `place` along the line. Updates may be larger than the indices.
pub fn scattered(
    importer: &mut Importer,
    line: &Line,
    place: Value,
    updates: Value,
    how: How,
) -> Result<Value, String> {
    let value = raw_scatter(importer, line, place, updates, how)?;
    line.close(importer, value)
}

/// As [`scattered`], with the line's own rank.
fn raw_scatter(
    importer: &mut Importer,
    line: &Line,
    place: Value,
    updates: Value,
    how: How,
) -> Result<Value, String> {
    if importer.builder.num_elements(place) == Some(Dim::Fixed(0)) {
        return Ok(line.value);
    }
    let place = match importer.builder.shape(place).is_empty() {
        true => importer.builder.reshape(place, vec![Dim::Fixed(1)])?,
        false => place,
    };
    let updates = match importer.builder.shape(updates).is_empty() {
        true => importer.builder.reshape(updates, vec![Dim::Fixed(1)])?,
        false => updates,
    };
    let axis = line.axis;
    let place = in_range(importer, place, line.length(importer))?;
    // Booleans are added as numbers.
    let dtype = importer.builder.dtype(line.value);
    let (x, updates) = match (dtype, how) {
        (DType::Bool, How::Add) => (
            importer.builder.cast(line.value, DType::Int32)?,
            importer.builder.cast(updates, DType::Int32)?,
        ),
        _ => (line.value, importer.builder.cast(updates, dtype)?),
    };
    let op = match how {
        How::Replace => Op::PutAlongAxis { axis },
        How::Add => Op::AddAlongAxis { axis },
    };
    let value = importer.builder.add(op, &[x, place, updates])?;
    importer.builder.cast(value, dtype)
}

/// A number in the shape of the indices, or the tensor that is given.
fn updates_of(
    importer: &mut Importer,
    given: &Item,
    place: Value,
    dtype: DType,
) -> Result<Value, String> {
    match given {
        Item::Tensor(_) => importer.value(given),
        number => {
            let value = importer.builder.scalar(number.scalar()?, dtype);
            let shape = importer.builder.shape(place).to_vec();
            importer.builder.broadcast(value, shape)
        }
    }
}

fn scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let source = match call.target().contains("value") {
        true => "value",
        false => "src",
    };
    let [x, dim, place, updates, how] = call.bind(["self", "dim", "index", source, "reduce"])?;
    let how = match &how {
        Item::None => How::Replace,
        Item::Str(how) if how == "add" => How::Add,
        other => return Err(format!("a scatter by {other:?}")),
    };
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let dtype = importer.builder.dtype(x);
    let line = Line::new(importer, x, &dim, 0)?;
    let updates = updates_of(importer, &updates, place, dtype)?;
    let value = scattered(importer, &line, place, updates, how)?;
    Ok(importer.fresh(value))
}

fn scatter_add(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, updates] = call.bind(["self", "dim", "index", "src"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let updates = importer.value(&updates)?;
    let line = Line::new(importer, x, &dim, 0)?;
    let value = scattered(importer, &line, place, updates, How::Add)?;
    Ok(importer.fresh(value))
}

fn scatter_reduce(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, updates, how, include] =
        call.bind(["self", "dim", "index", "src", "reduce", "include_self"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let updates = importer.value(&updates)?;
    let line = Line::new(importer, x, &dim, 0)?;
    reduced(
        importer,
        &line,
        place,
        updates,
        &how,
        include.bool_or(true)?,
    )
}

fn index_reduce(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, source, how, include] =
        call.bind(["self", "dim", "index", "source", "reduce", "include_self"])?;
    let (x, source) = (importer.value(&x)?, importer.value(&source)?);
    let line = Line::new(importer, x, &dim, 0)?;
    let (place, shape) = slices(importer, &line, &place)?;
    let source = match importer.builder.shape(source).is_empty() {
        true => importer.builder.broadcast(source, shape)?,
        false => source,
    };
    reduced(importer, &line, place, source, &how, include.bool_or(true)?)
}

/// Each element of the line reduced with the updates that are meant for it; without `include`, one
/// that updates are meant for does not count itself.
fn reduced(
    importer: &mut Importer,
    line: &Line,
    place: Value,
    updates: Value,
    how: &Item,
    include: bool,
) -> Lowered {
    let Item::Str(how) = how else {
        return Err(format!("a scatter by {how:?}"));
    };
    let dtype = importer.builder.dtype(line.value);
    if importer.builder.num_elements(place) == Some(Dim::Fixed(0)) {
        let value = line.close(importer, line.value)?;
        return Ok(importer.fresh(value));
    }
    let compute = match dtype {
        DType::Bool => DType::Int32,
        dtype if dtype.is_half() => DType::Float32,
        dtype => dtype,
    };
    let column = |importer: &mut Importer, value| match importer.builder.shape(value).is_empty() {
        true => importer.builder.reshape(value, vec![Dim::Fixed(1)]),
        false => Ok(value),
    };
    let place = column(importer, place)?;
    let mut updates = column(importer, updates)?;
    for (axis, size) in importer
        .builder
        .shape(place)
        .to_vec()
        .into_iter()
        .enumerate()
    {
        updates = importer
            .builder
            .slice(updates, axis, Dim::Fixed(0), size, 1)?;
    }
    let updates = importer.builder.cast(updates, compute)?;
    let x = importer.builder.cast(line.value, compute)?;
    let own = line.of(x);
    let ones = importer.builder.scalar(Scalar::Int(1), compute);
    let shape = importer.builder.shape(place).to_vec();
    let ones = importer.builder.broadcast(ones, shape)?;
    let zero = importer.builder.scalar(Scalar::Int(0), compute);
    let shape = importer.builder.shape(x).to_vec();
    let zeros = line.of(importer.builder.broadcast(zero, shape)?);
    let counts = raw_scatter(importer, &zeros, place, ones, How::Add)?;
    let met = Formula::Value(counts).greater(0.0);
    let value = match how.as_str() {
        "sum" | "mean" => {
            let sums = raw_scatter(importer, &zeros, place, updates, How::Add)?;
            let own = Formula::Value(own.value);
            let start = match include {
                true => own,
                false => met.clone().choose(0.0, own),
            };
            let sum = start + Formula::Value(sums);
            if how == "sum" {
                sum
            } else {
                let counts = Formula::Value(counts);
                let counts = match include {
                    true => counts + 1.0,
                    false => counts.maximum(1.0),
                };
                match compute.is_float() {
                    true => sum / counts,
                    false => sum.floor_divide(counts),
                }
            }
        }
        "prod" => {
            let product = pairs(importer, &own, place, updates, Reduction::Prod)?;
            let start = match include {
                true => Formula::Value(own.value),
                false => met.choose(1.0, Formula::Value(own.value)),
            };
            start * Formula::Value(product)
        }
        "amax" | "amin" => {
            let function = match how.as_str() {
                "amax" => Reduction::Max,
                _ => Reduction::Min,
            };
            let extreme = Formula::Value(pairs(importer, &own, place, updates, function)?);
            let own = Formula::Value(own.value);
            let found = match (include, function) {
                (false, _) => extreme,
                (true, Reduction::Max) => own.clone().maximum(extreme),
                _ => own.clone().minimum(extreme),
            };
            met.choose(found, own)
        }
        other => return Err(format!("a scatter by {other:?}")),
    };
    let value = importer.formula(&value, compute)?;
    let value = importer.builder.cast(value, dtype)?;
    let value = line.close(importer, value)?;
    Ok(importer.fresh(value))
}

/// Most pairs of elements and updates that are compared with each other.
const MAX_PAIRS: i64 = 1 << 26;

/// The updates meant for each element, reduced: every element is compared with every update of its
/// line. For elements without updates, the result is that of no elements.
fn pairs(
    importer: &mut Importer,
    line: &Line,
    place: Value,
    updates: Value,
    function: Reduction,
) -> Result<Value, String> {
    let axis = line.axis;
    let dtype = importer.builder.dtype(updates);
    let place = in_range(importer, place, line.length(importer))?;
    let place = importer.builder.cast(place, DType::Int64)?;
    let length = line.length(importer);
    let total = importer.builder.num_elements(place);
    let compared = total.and_then(|total| total.checked_mul(length)?.fixed());
    if compared.is_none_or(|pairs| pairs > MAX_PAIRS) {
        return Err("a scatter that compares too many pairs".into());
    }
    let rank = importer.builder.shape(place).len();
    let mut column = vec![Dim::Fixed(1); rank + 1];
    column[axis] = length;
    let own = importer.range(length)?;
    let own = importer.builder.reshape(own, column)?;
    let place = importer.builder.expand_dims(place, axis)?;
    let updates = importer.builder.expand_dims(updates, axis)?;
    let meant = importer.builder.binary(Binary::Equal, own, place)?;
    let neutral = match (function, dtype.is_float()) {
        (Reduction::Prod, _) => Scalar::Int(1),
        (Reduction::Max, true) => Scalar::Float(Float::new(f64::NEG_INFINITY)),
        (_, true) => Scalar::Float(Float::new(f64::INFINITY)),
        (Reduction::Max, false) => Scalar::Int(least(dtype)),
        (_, false) => Scalar::Int(!least(dtype)),
    };
    let neutral = importer.builder.scalar(neutral, dtype);
    let terms = importer
        .builder
        .add(Op::Where, &[meant, updates, neutral])?;
    let result = importer
        .builder
        .reduce(function, terms, vec![axis + 1], false)?;
    // Indices may be shorter than the tensor on the other axes.
    let shape = importer.builder.shape(line.value).to_vec();
    let found = importer.builder.shape(result).to_vec();
    let high: Option<Vec<i64>> = shape
        .iter()
        .zip(&found)
        .map(|(full, part)| full.checked_sub(*part)?.fixed())
        .collect();
    let pad = Op::Pad {
        low: vec![0; shape.len()],
        high: high.ok_or("a scatter along a symbolic size")?,
        value: Scalar::Int(1),
    };
    importer.builder.add(pad, &[result])
}

/// The least number of a whole dtype; its complement is the largest.
fn least(dtype: DType) -> i64 {
    match dtype {
        DType::Int8 => i8::MIN.into(),
        DType::Int16 => i16::MIN.into(),
        DType::Int32 => i32::MIN.into(),
        DType::Int64 => i64::MIN,
        _ => 0,
    }
}

/// Indices of whole slices along an axis, spread to the shape of the source.
fn slices(importer: &mut Importer, line: &Line, place: &Item) -> Result<(Value, Vec<Dim>), String> {
    let place = indices(importer, place)?;
    let total = importer
        .builder
        .num_elements(place)
        .ok_or("a size that overflows")?;
    let mut shape = importer.builder.shape(line.value).to_vec();
    shape[line.axis] = total;
    let mut column = vec![Dim::Fixed(1); shape.len()];
    column[line.axis] = total;
    let place = importer.builder.reshape(place, column)?;
    let place = importer.builder.broadcast(place, shape.clone())?;
    Ok((place, shape))
}

fn index_fill(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, value] = call.bind(["self", "dim", "index", "value"])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let line = Line::new(importer, x, &dim, 0)?;
    let (place, shape) = slices(importer, &line, &place)?;
    let value = updates_of(importer, &value, place, dtype)?;
    let value = importer.builder.cast(value, dtype)?;
    let value = importer.builder.broadcast(value, shape)?;
    let value = scattered(importer, &line, place, value, How::Replace)?;
    Ok(importer.fresh(value))
}

fn index_copy(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, source] = call.bind(["self", "dim", "index", "source"])?;
    by_slices(importer, &x, &dim, &place, &source, 1.0, How::Replace)
}

fn index_add(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, source, alpha] = call.bind(["self", "dim", "index", "source", "alpha"])?;
    let alpha = alpha.float_or(1.0)?;
    by_slices(importer, &x, &dim, &place, &source, alpha, How::Add)
}

fn by_slices(
    importer: &mut Importer,
    x: &Item,
    dim: &Item,
    place: &Item,
    source: &Item,
    scale: f64,
    how: How,
) -> Lowered {
    let x = importer.value(x)?;
    let line = Line::new(importer, x, dim, 0)?;
    let (place, shape) = slices(importer, &line, place)?;
    let source = match scale {
        1.0 => importer.value(source)?,
        scale => {
            let dtype = importer.value(source)?;
            let dtype = importer.builder.dtype(dtype);
            importer.compute_value([source], dtype, |[source]| source * scale)?
        }
    };
    let source = match importer.builder.shape(source).is_empty() {
        true => importer.builder.broadcast(source, shape)?,
        false => source,
    };
    let value = scattered(importer, &line, place, source, how)?;
    Ok(importer.fresh(value))
}
