// SPDX-License-Identifier: Apache-2.0
//! Padding.

use super::call::{Call, Item, fixed};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use super::movement::flipped;
use crate::ir::{Dim, Op, Scalar, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.constant_pad_nd.default", constant_pad),
    ("aten.reflection_pad1d.default", |i, call| {
        edge_pad(i, call, reflected)
    }),
    ("aten.reflection_pad2d.default", |i, call| {
        edge_pad(i, call, reflected)
    }),
    ("aten.reflection_pad3d.default", |i, call| {
        edge_pad(i, call, reflected)
    }),
    ("aten.replication_pad1d.default", |i, call| {
        edge_pad(i, call, repeated)
    }),
    ("aten.replication_pad2d.default", |i, call| {
        edge_pad(i, call, repeated)
    }),
    ("aten.replication_pad3d.default", |i, call| {
        edge_pad(i, call, repeated)
    }),
];

/// Pairs of paddings of a call, last axis first, by axis.
fn paddings(pad: &Item, rank: usize) -> Result<Vec<(i64, i64)>, String> {
    let mut sizes = vec![(0, 0); rank];
    for (i, pair) in pad.list()?.chunks(2).enumerate() {
        let axis = rank
            .checked_sub(i + 1)
            .ok_or("padding of more axes than there are")?;
        let [before, after] = pair else {
            return Err("an odd number of paddings".into());
        };
        sizes[axis] = (before.int()?, after.int()?);
    }
    Ok(sizes)
}

/// Negative padding cuts.
fn cut(
    importer: &mut Importer,
    value: Value,
    axis: usize,
    (low, high): (i64, i64),
) -> Result<Value, String> {
    let length = importer.builder.shape(value)[axis];
    let stop = length
        .checked_add(Dim::Fixed(high.min(0)))
        .ok_or("a padded size overflows")?;
    let start = Dim::Fixed(low.min(0).saturating_neg());
    importer.builder.slice(value, axis, start, stop, 1)
}

fn constant_pad(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, pad, value] = call.bind(["self", "pad", "value"])?;
    let mut result = importer.value(&x)?;
    let rank = importer.builder.shape(result).len();
    let sizes = paddings(&pad, rank)?;
    for (axis, size) in sizes.iter().enumerate() {
        result = cut(importer, result, axis, *size)?;
    }
    let value = match value.is_none() {
        true => Scalar::Int(0),
        false => value.scalar()?,
    };
    let (low, high) = sizes
        .into_iter()
        .map(|(low, high)| (low.max(0), high.max(0)))
        .unzip();
    let result = importer
        .builder
        .add(Op::Pad { low, high, value }, &[result])?;
    Ok(importer.fresh(result))
}

type Edge = fn(&mut Importer, Value, usize, i64, bool) -> Result<Value, String>;

/// Padding by what is at the edges of the last axes. Negative padding cuts afterwards.
fn edge_pad(importer: &mut Importer, call: &Call, edge: Edge) -> Lowered {
    let [x, pad] = call.bind(["self", "padding"])?;
    let mut value = importer.value(&x)?;
    let rank = importer.builder.shape(value).len();
    for (axis, (low, high)) in paddings(&pad, rank)?.into_iter().enumerate() {
        let mut parts = vec![value];
        if low > 0 {
            parts.insert(0, edge(importer, value, axis, low, true)?);
        }
        if high > 0 {
            parts.push(edge(importer, value, axis, high, false)?);
        }
        value = importer.builder.concat(&parts, axis)?;
        value = cut(importer, value, axis, (low, high))?;
    }
    Ok(importer.fresh(value))
}

/// Elements next to the edge, mirrored at the outermost.
fn reflected(
    importer: &mut Importer,
    value: Value,
    axis: usize,
    size: i64,
    low: bool,
) -> Result<Value, String> {
    let length = fixed(importer.builder.shape(value)[axis])?;
    if size >= length {
        return Err(format!("a reflection of {size} of {length} elements"));
    }
    let start = if low { 1 } else { length - 1 - size };
    let (start, stop) = (Dim::Fixed(start), Dim::Fixed(start + size));
    let part = importer.builder.slice(value, axis, start, stop, 1)?;
    flipped(importer, part, axis)
}

/// The outermost element, repeated.
fn repeated(
    importer: &mut Importer,
    value: Value,
    axis: usize,
    size: i64,
    low: bool,
) -> Result<Value, String> {
    let mut shape = importer.builder.shape(value).to_vec();
    let length = fixed(shape[axis])?;
    if length == 0 {
        return Err("the edge of no elements".into());
    }
    let start = if low { 0 } else { length - 1 };
    let (start, stop) = (Dim::Fixed(start), Dim::Fixed(start + 1));
    let part = importer.builder.slice(value, axis, start, stop, 1)?;
    shape[axis] = Dim::Fixed(size);
    importer.builder.broadcast(part, shape)
}
