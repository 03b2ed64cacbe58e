// SPDX-License-Identifier: Apache-2.0
//! Slices, selections and splits.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use super::shape::reshape;
use crate::ir::{Dim, Op, slice_length};

/// Operators of this family that are no views.
pub const CLAIMS: Claims = &[
    ("aten.unsafe_chunk.default", split),
    ("aten.unsafe_split.Tensor", split),
    ("aten.unsafe_split_with_sizes.default", split),
];

/// Views, also claimed as copies where PyTorch has them.
pub const VIEWS: Claims = &[
    ("aten.select.int", select),
    ("aten.slice.Tensor", slice),
    ("aten.split.Tensor", split),
    ("aten.split_with_sizes.default", split),
    ("aten.unbind.int", unbind),
];

/// Views that have no copying form.
pub const ONLY_VIEWS: Claims = &[
    ("aten.chunk.default", split),
    ("aten.narrow.default", narrow),
    ("aten.split.sizes", split),
];

/// Copies of views that are no operators of their own.
pub const COPIES: Claims = &[("aten.narrow_copy.default", narrow)];

/// A bound of a slice, counted from the axis's start.
fn from_start(bound: Dim, length: Dim) -> Option<Dim> {
    let is_negative = |bound: Dim| {
        bound != Dim::Fixed(0)
            && bound
                .checked_mul(Dim::Fixed(-1))
                .is_some_and(Dim::is_non_negative)
    };
    match bound {
        Dim::Fixed(i64::MAX) => Some(length),
        Dim::Fixed(i64::MIN) => Some(Dim::Fixed(0)),
        bound if is_negative(bound) => length.checked_add(bound),
        bound => Some(bound),
    }
}

/// `x[start:stop:step]` with bounds that PyTorch puts inside the axis. Where only the traced program's
/// guards decide whether they lie inside it, the size that PyTorch found tells.
fn slice_bounds(
    start: Dim,
    stop: Dim,
    step: i64,
    length: Dim,
    found: Option<Dim>,
) -> Option<(Dim, Dim)> {
    let (start, stop) = (from_start(start, length)?, from_start(stop, length)?);
    let inside = |bound: Dim| bound.maximum(Dim::Fixed(0))?.minimum(length);
    let (first, last) = (inside(start)?, inside(stop)?);
    let last = match last.checked_sub(first)? {
        Dim::Fixed(span) if span < 0 => first,
        _ => last,
    };
    for from in [first, start] {
        for to in [last, stop, length] {
            if found.is_some() && slice_length(from, to, step) == found {
                return Some((from, to));
            }
        }
    }
    Some((first, last))
}

fn slice_view(
    importer: &mut Importer,
    x: &Item,
    axis: usize,
    start: Dim,
    stop: Dim,
    step: i64,
) -> Lowered {
    let shape = importer.shape_of(x)?;
    let length = *shape.get(axis).ok_or("a slice of rank 0")?;
    importer.view(
        x,
        Op::Slice {
            axis,
            start,
            stop,
            step,
            length,
        },
    )
}

fn slice(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, start, end, step] = call.bind(["self", "dim", "start", "end", "step"])?;
    slice_of(
        importer,
        &x,
        [&dim, &start, &end, &step],
        |importer, axis| importer.result_size(call, axis),
    )
}

/// `x[start:end:step]` along an axis, as a view. `found` gives the size that PyTorch found, if any.
pub fn slice_of(
    importer: &mut Importer,
    x: &Item,
    [dim, start, end, step]: [&Item; 4],
    found: impl FnOnce(&Importer, usize) -> Option<Dim>,
) -> Lowered {
    let shape = importer.shape_of(x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let length = *shape.get(axis).ok_or("a slice of rank 0")?;
    let bound = |item: &Item, open: i64| match item {
        Item::None => Ok(Dim::Fixed(open)),
        item => item.dim(),
    };
    let (start, stop, step) = (bound(start, 0)?, bound(end, i64::MAX)?, step.int_or(1)?);
    let found = found(importer, axis);
    let (start, stop) = slice_bounds(start, stop, step, length, found)
        .ok_or_else(|| format!("slice {start}:{stop} of {length} elements"))?;
    slice_view(importer, x, axis, start, stop, step)
}

fn narrow(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, start, length] = call.bind(["self", "dim", "start", "length"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let size = *shape.get(axis).ok_or("a slice of rank 0")?;
    let start = from_start(start.dim()?, size).ok_or("a slice start that overflows")?;
    let stop = start
        .checked_add(length.dim()?)
        .ok_or("a slice end that overflows")?;
    slice_view(importer, &x, axis, start, stop, 1)
}

fn select(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, index] = call.bind(["self", "dim", "index"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let index = index.dim()?;
    select_view(importer, &x, axis, index)
}

pub fn select_view(importer: &mut Importer, x: &Item, axis: usize, index: Dim) -> Lowered {
    let mut shape = importer.shape_of(x)?;
    let length = *shape.get(axis).ok_or("a row of rank 0")?;
    let index = from_start(index, length).ok_or("an index that overflows")?;
    let stop = index
        .checked_add(Dim::Fixed(1))
        .ok_or("an index that overflows")?;
    let row = slice_view(importer, x, axis, index, stop, 1)?;
    shape.remove(axis);
    reshape(importer, &row, shape)
}

/// Parts into which one call may cut a tensor.
const MAX_PARTS: i64 = 1 << 16;

fn split(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, size, dim] = call.bind(["self", "split_size", "dim"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let length = *shape.get(axis).ok_or("a split of rank 0")?;
    let sizes: Vec<Dim> = match &size {
        Item::Tuple(_) => size.dims()?,
        _ => {
            let total = length
                .fixed()
                .ok_or("the number of parts is not known before a step")?;
            let mut part = size.int()?;
            if call.target().contains("chunk") {
                part = total.saturating_add(part.max(1) - 1) / part.max(1);
            }
            if part < 1 || total / part >= MAX_PARTS {
                return Err(format!("parts of {part} of {total} elements"));
            }
            (0..total)
                .step_by(part as usize)
                .map(|start| Dim::Fixed(part.min(total - start)))
                .collect()
        }
    };
    let mut start = Dim::Fixed(0);
    let mut parts = Vec::new();
    for size in sizes {
        let stop = start.checked_add(size).ok_or("a part's end overflows")?;
        parts.push(slice_view(importer, &x, axis, start, stop, 1)?);
        start = stop;
    }
    Ok(Item::Tuple(parts))
}

fn unbind(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let count = shape.get(axis).and_then(|size| size.fixed());
    let count = count.ok_or("the number of parts is not known before a step")?;
    if count > MAX_PARTS {
        return Err(format!("{count} parts"));
    }
    let parts: Result<Vec<Item>, String> = (0..count)
        .map(|index| select_view(importer, &x, axis, Dim::Fixed(index)))
        .collect();
    Ok(Item::Tuple(parts?))
}
