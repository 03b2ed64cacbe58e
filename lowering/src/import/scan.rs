// SPDX-License-Identifier: Apache-2.0
//! Running reductions.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::reduce::{Line, comparable};
use crate::ir::{DType, Dim, Op, Scalar, Scan};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.cummax.default", |i, call| {
        extremes(i, call, Scan::Max)
    }),
    ("aten.cummin.default", |i, call| {
        extremes(i, call, Scan::Min)
    }),
    ("aten.logcumsumexp.default", logcumsumexp),
];

/// Those that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.cumprod.default", |i, call| scan(i, call, Scan::Prod)),
    ("aten.cumsum.default", |i, call| scan(i, call, Scan::Sum)),
];

fn scan(importer: &mut Importer, call: &Call, function: Scan) -> Lowered {
    let [x, dim, _] = call.bind(["self", "dim", "dtype"])?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    let line = Line::new(importer, value, &dim, 0)?;
    let op = Op::Scan {
        function,
        axis: line.axis,
    };
    let result = importer.builder.add(op, &[line.value])?;
    let result = line.close(importer, result)?;
    Ok(importer.fresh(result))
}

/// `log(cumsum(exp(x)))`: sums of 2, 4, 8.. elements, each of two that were added before (Hillis &
/// Steele 1986), so that no exponential is of more than the distance of two sums.
fn logcumsumexp(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let dtype = call.result_dtype()?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, DType::Float32)?;
    let mut line = Line::new(importer, value, &dim, 0)?;
    let length = line.length(importer).fixed();
    let length = length.ok_or("a running sum of a symbolic size")?;
    let axis = line.axis;
    let mut reach = 1;
    while reach < length {
        let mut low = vec![0; importer.builder.shape(line.value).len()];
        let high = low.clone();
        low[axis] = reach;
        let stop = Dim::Fixed(length - reach);
        let before = importer
            .builder
            .slice(line.value, axis, Dim::Fixed(0), stop, 1)?;
        let value = Scalar::Float(crate::ir::Float::new(f64::NEG_INFINITY));
        let before = importer
            .builder
            .add(Op::Pad { low, high, value }, &[before])?;
        let sum = super::special::log_add(line.value.into(), before.into(), 1.0);
        line.value = importer.formula(&sum, DType::Float32)?;
        reach *= 2;
    }
    let result = line.close(importer, line.value)?;
    let result = importer.builder.cast(result, dtype)?;
    Ok(importer.fresh(result))
}

/// Running extremes, and where the latest of them stood: an element that equals the extreme so far
/// is the latest, and the largest index up to here is the latest's.
fn extremes(importer: &mut Importer, call: &Call, function: Scan) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let value = importer.value(&x)?;
    let dtype = importer.builder.dtype(value);
    let value = comparable(importer, value)?;
    let line = Line::new(importer, value, &dim, 0)?;
    let axis = line.axis;
    let running = importer
        .builder
        .add(Op::Scan { function, axis }, &[line.value])?;
    let here = Formula::Value(line.value);
    let mut is_extreme = here.clone().equal(running);
    if importer.builder.dtype(line.value).is_float() {
        is_extreme = is_extreme.or(here.nan());
    }
    let is_extreme = importer.formula(&is_extreme, dtype)?;
    let positions = importer.positions(line.value, axis)?;
    let zero = importer.builder.scalar(Scalar::Int(0), DType::Int64);
    let marked = importer
        .builder
        .add(Op::Where, &[is_extreme, positions, zero])?;
    let latest = Op::Scan {
        function: Scan::Max,
        axis,
    };
    let places = importer.builder.add(latest, &[marked])?;
    let running = importer.builder.cast(running, dtype)?;
    let (running, places) = (
        line.close(importer, running)?,
        line.close(importer, places)?,
    );
    Ok(Item::Tuple(vec![
        importer.fresh(running),
        importer.fresh(places),
    ]))
}
