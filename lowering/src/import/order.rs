// SPDX-License-Identifier: Apache-2.0
//! Sorting and what is picked by rank.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::reduce::Line;
use crate::ir::{DType, Dim, Op, Reduction, Scalar, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.bucketize.Scalar", bucketize),
    ("aten.bucketize.Tensor", bucketize),
    ("aten.kthvalue.default", kthvalue),
    ("aten.median.default", |i, call| median(i, call, false)),
    ("aten.median.dim", |i, call| median_along(i, call, false)),
    ("aten.nanmedian.default", |i, call| median(i, call, true)),
    ("aten.nanmedian.dim", |i, call| median_along(i, call, true)),
    ("aten.searchsorted.Scalar", searchsorted),
    ("aten.searchsorted.Tensor", searchsorted),
    ("aten.sort.default", sort),
    ("aten.sort.stable", sort),
    ("aten.topk.default", topk),
];

/// Values and indices along a line, sorted ascending or descending; NaN counts as the largest.
fn sorted(
    importer: &mut Importer,
    line: &Line,
    descending: bool,
) -> Result<(Value, Value), String> {
    let op = Op::Sort {
        axis: line.axis,
        descending,
    };
    let values = importer.builder.add(op, &[line.value])?;
    let node = values.node;
    Ok((values, Value { node, output: 1 }))
}

fn pair(importer: &mut Importer, line: &Line, values: Value, indices: Value) -> Lowered {
    let values = line.close(importer, values)?;
    let indices = line.close(importer, indices)?;
    Ok(Item::Tuple(vec![
        importer.fresh(values),
        importer.fresh(indices),
    ]))
}

fn sort(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, descending, _] = match call.target() {
        // Every sort here is stable.
        "aten.sort.stable" => {
            let [x, stable, dim, descending] =
                call.bind(["self", "stable", "dim", "descending"])?;
            [x, dim, descending, stable]
        }
        _ => {
            let [x, dim, descending] = call.bind(["self", "dim", "descending"])?;
            [x, dim, descending, Item::None]
        }
    };
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, -1)?;
    let (values, indices) = sorted(importer, &line, descending.bool_or(false)?)?;
    pair(importer, &line, values, indices)
}

fn topk(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, k, dim, largest, _sorted] = call.bind(["self", "k", "dim", "largest", "sorted"])?;
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, -1)?;
    let (axis, k) = (line.axis, k.int()?);
    if line
        .length(importer)
        .fixed()
        .is_some_and(|length| k > length)
        || k < 0
    {
        return Err(format!("the {k} largest of fewer elements"));
    }
    if largest.bool_or(true)? {
        let values = importer.builder.add(Op::Topk { axis, k }, &[line.value])?;
        let node = values.node;
        return pair(importer, &line, values, Value { node, output: 1 });
    }
    let (values, indices) = sorted(importer, &line, false)?;
    let cut = |importer: &mut Importer, value| {
        importer
            .builder
            .slice(value, axis, Dim::Fixed(0), Dim::Fixed(k), 1)
    };
    let (values, indices) = (cut(importer, values)?, cut(importer, indices)?);
    pair(importer, &line, values, indices)
}

/// Values and indices at one rank of each line: the axis goes, or has size 1.
fn at_rank(
    importer: &mut Importer,
    line: &Line,
    rank: i64,
    keepdims: bool,
) -> Result<(Value, Value), String> {
    let (values, indices) = sorted(importer, line, false)?;
    let mut picked = [values, indices];
    for value in &mut picked {
        let cut =
            importer
                .builder
                .slice(*value, line.axis, Dim::Fixed(rank), Dim::Fixed(rank + 1), 1)?;
        *value = drop_axis(importer, line, cut, keepdims)?;
    }
    Ok((picked[0], picked[1]))
}

fn drop_axis(
    importer: &mut Importer,
    line: &Line,
    value: Value,
    keepdims: bool,
) -> Result<Value, String> {
    let value = line.close(importer, value)?;
    let mut shape = importer.builder.shape(value).to_vec();
    if keepdims || shape.is_empty() {
        return Ok(value);
    }
    shape.remove(line.axis);
    importer.builder.reshape(value, shape)
}

fn kthvalue(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, k, dim, keepdim] = call.bind(["self", "k", "dim", "keepdim"])?;
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, -1)?;
    let k = k.int()?;
    let (values, indices) = at_rank(importer, &line, k - 1, keepdim.bool_or(false)?)?;
    Ok(Item::Tuple(vec![
        importer.fresh(values),
        importer.fresh(indices),
    ]))
}

/// The lower median of each line and where it stands: of the numbers, or NaN where there is one.
fn middle(
    importer: &mut Importer,
    line: &Line,
    skip_nan: bool,
    keepdims: bool,
) -> Result<(Value, Value), String> {
    let axis = line.axis;
    let length = line.length(importer).fixed();
    let length = length.ok_or("a median of a symbolic size")?;
    if length == 0 {
        return Err("a median of no elements".into());
    }
    if !importer.builder.dtype(line.value).is_float() {
        return at_rank(importer, line, (length - 1) / 2, keepdims);
    }
    let (values, indices) = sorted(importer, line, false)?;
    // NaN stand at the end. Counted, they say which rank is the middle one of the numbers.
    let is_nan = importer.formula(&Formula::Value(line.value).nan(), DType::Bool)?;
    let is_nan = importer.builder.cast(is_nan, DType::Int64)?;
    let broken = importer
        .builder
        .reduce(Reduction::Sum, is_nan, vec![axis], true)?;
    let last = importer
        .builder
        .scalar(Scalar::Int(length - 1), DType::Int64);
    let broken = Formula::Value(broken);
    let rank = match skip_nan {
        true => (Formula::Value(last) - broken)
            .floor_divide(2.0)
            .maximum(0.0),
        false => {
            let first_nan = Formula::Value(last) - (broken.clone() - 1.0);
            let middle = ((length - 1) / 2) as f64;
            broken.greater(0.0).choose(first_nan, middle)
        }
    };
    let rank = importer.formula(&rank, DType::Int64)?;
    let take = Op::TakeAlongAxis { axis };
    let value = importer.builder.add(take.clone(), &[values, rank])?;
    let place = importer.builder.add(take, &[indices, rank])?;
    let value = drop_axis(importer, line, value, keepdims)?;
    let place = drop_axis(importer, line, place, keepdims)?;
    Ok((value, place))
}

fn median_along(importer: &mut Importer, call: &Call, skip_nan: bool) -> Lowered {
    let [x, dim, keepdim] = call.bind(["self", "dim", "keepdim"])?;
    let value = importer.value(&x)?;
    let line = Line::new(importer, value, &dim, -1)?;
    let (value, place) = middle(importer, &line, skip_nan, keepdim.bool_or(false)?)?;
    Ok(Item::Tuple(vec![
        importer.fresh(value),
        importer.fresh(place),
    ]))
}

fn median(importer: &mut Importer, call: &Call, skip_nan: bool) -> Lowered {
    let [x] = call.bind(["self"])?;
    let value = importer.value(&x)?;
    let total = importer
        .builder
        .num_elements(value)
        .ok_or("a size that overflows")?;
    let flat = importer.builder.reshape(value, vec![total])?;
    let line = Line::new(importer, flat, &Item::None, 0)?;
    let (value, _) = middle(importer, &line, skip_nan, false)?;
    Ok(importer.fresh(value))
}

/// How many elements of each sorted line `[.., n]` are before `[.., m]` values: all pairs are compared.
fn count_before(
    importer: &mut Importer,
    call: &Call,
    lines: Value,
    values: Value,
    right: bool,
) -> Lowered {
    let rank = importer.builder.shape(values).len();
    let columns = importer.builder.expand_dims(values, rank)?;
    let lines = match importer.builder.shape(lines).len() {
        1 => lines,
        lines_rank => importer.builder.expand_dims(lines, lines_rank - 1)?,
    };
    let (lines, columns) = (importer.fresh(lines), importer.fresh(columns));
    let before = importer.compute_value([&lines, &columns], DType::Bool, |[line, value]| {
        let after = match right {
            true => line.greater(value),
            false => line.greater_equal(value),
        };
        !after
    })?;
    let ones = importer.builder.cast(before, DType::Int64)?;
    let axis = importer.builder.shape(ones).len() - 1;
    let count = importer
        .builder
        .reduce(Reduction::Sum, ones, vec![axis], false)?;
    let count = importer.builder.cast(count, call.result_dtype()?)?;
    Ok(importer.fresh(count))
}

fn number_or_tensor(importer: &mut Importer, item: &Item, like: Value) -> Result<Value, String> {
    match item {
        Item::Tensor(_) => importer.value(item),
        number => {
            let dtype = importer.builder.dtype(like);
            Ok(importer.builder.scalar(number.scalar()?, dtype))
        }
    }
}

fn bucketize(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, boundaries, _, right] = call.bind(["self", "boundaries", "out_int32", "right"])?;
    let boundaries = importer.value(&boundaries)?;
    let x = number_or_tensor(importer, &x, boundaries)?;
    count_before(importer, call, boundaries, x, right.bool_or(false)?)
}

fn searchsorted(importer: &mut Importer, call: &Call) -> Lowered {
    let [lines, x, _, right, side, sorter] = call.bind([
        "sorted_sequence",
        "self",
        "out_int32",
        "right",
        "side",
        "sorter",
    ])?;
    let mut lines = importer.value(&lines)?;
    let x = number_or_tensor(importer, &x, lines)?;
    if !sorter.is_none() {
        let order = importer.value(&sorter)?;
        let axis = importer.builder.shape(lines).len().checked_sub(1);
        let axis = axis.ok_or("a sequence of rank 0")?;
        let order = super::index::in_range(importer, order, importer.builder.shape(lines)[axis])?;
        lines = importer
            .builder
            .add(Op::TakeAlongAxis { axis }, &[lines, order])?;
    }
    let right = match &side {
        Item::Str(side) => side == "right",
        _ => right.bool_or(false)?,
    };
    count_before(importer, call, lines, x, right)
}
