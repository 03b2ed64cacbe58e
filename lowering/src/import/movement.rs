// SPDX-License-Identifier: Apache-2.0
//! Movements beyond reshaping: windows, flips, rolls and channels; parts that are replaced.

use super::call::{Call, Item, fixed, normalise_axis};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use crate::ir::{Dim, Op, Value, product};

/// Views, which [`super::dispatch`] also claims as copies.
pub const VIEWS: Claims = &[("aten.unfold.default", unfold)];

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.channel_shuffle.default", channel_shuffle),
    ("aten.flip.default", flip),
    ("aten.pixel_shuffle.default", |i, call| {
        pixels(i, call, true)
    }),
    ("aten.pixel_unshuffle.default", |i, call| {
        pixels(i, call, false)
    }),
    ("aten.roll.default", roll),
    ("aten.rot90.default", rot90),
    ("aten.select_scatter.default", select_scatter),
    ("aten.slice_scatter.default", slice_scatter),
];

/// A copy of the first argument with part of it replaced.
pub fn replaced(
    importer: &mut Importer,
    x: &Item,
    source: &Item,
    part: impl FnOnce(&mut Importer, &Item) -> Lowered,
) -> Lowered {
    let value = importer.value(x)?;
    let copy = importer.fresh(value);
    let view = part(importer, &copy)?;
    let source = importer.value(source)?;
    importer.store(&view, source)?;
    Ok(copy)
}

fn select_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, dim, index] = call.bind(["self", "src", "dim", "index"])?;
    let rank = importer.shape_of(&x)?.len();
    let (axis, index) = (dim.axis(rank, 0)?, index.dim()?);
    replaced(importer, &x, &source, |importer, copy| {
        super::slice::select_view(importer, copy, axis, index)
    })
}

fn slice_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, dim, start, end, step] =
        call.bind(["self", "src", "dim", "start", "end", "step"])?;
    replaced(importer, &x, &source, |importer, copy| {
        super::slice::slice_of(importer, copy, [&dim, &start, &end, &step], |_, _| None)
    })
}

/// Windows of a size along an axis, each as the last axis (`torch.Tensor.unfold`).
fn unfold(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, size, step] = call.bind(["self", "dimension", "size", "step"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let (size, step) = (size.int()?, step.int()?);
    let Some(length) = shape.get(axis) else {
        let flat = importer.view(
            &x,
            Op::Reshape {
                shape: vec![Dim::Fixed(1)],
            },
        )?;
        return match size {
            1 => Ok(flat),
            _ => super::slice::slice_of(
                importer,
                &flat,
                [
                    &Item::None,
                    &Item::None,
                    &Item::Size(Dim::Fixed(size)),
                    &Item::None,
                ],
                |_, _| None,
            ),
        };
    };
    let length = fixed(*length)?;
    if size < 0 || size > length || step < 1 {
        return Err(format!("windows of {size} by {step} of {length} elements"));
    }
    let count = (length - size) / step + 1;
    let starts = importer.affine_range(Dim::Fixed(0), step, Dim::Fixed(count))?;
    let starts = importer.builder.expand_dims(starts, 1)?;
    let offsets = importer.range(Dim::Fixed(size))?;
    let places = importer
        .builder
        .binary(crate::ir::Binary::Add, starts, offsets)?;
    let windows = importer.gather_view(&x, axis, places)?;
    let rank = shape.len();
    let permutation = (0..=axis).chain(axis + 2..=rank).chain([axis + 1]);
    importer.view(
        &windows,
        Op::Transpose {
            permutation: permutation.collect(),
        },
    )
}

/// The value with one axis in the opposite order.
pub fn flipped(importer: &mut Importer, value: Value, axis: usize) -> Result<Value, String> {
    let length = *importer
        .builder
        .shape(value)
        .get(axis)
        .ok_or("a missing axis")?;
    if length == Dim::Fixed(0) {
        return Ok(value);
    }
    let last = length
        .checked_sub(Dim::Fixed(1))
        .ok_or("a size that overflows")?;
    let places = importer.affine_range(last, -1, length)?;
    importer.builder.add(Op::Take { axis }, &[value, places])
}

fn flip(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dims] = call.bind(["self", "dims"])?;
    let mut value = importer.value(&x)?;
    let rank = importer.builder.shape(value).len();
    for dim in dims.list()? {
        let axis = dim.axis(rank, 0)?;
        if rank > 0 {
            value = flipped(importer, value, axis)?;
        }
    }
    Ok(importer.fresh(value))
}

/// The value with its elements moved along an axis by a number of places, the last to the front.
pub fn rolled(
    importer: &mut Importer,
    value: Value,
    axis: usize,
    by: i64,
) -> Result<Value, String> {
    let length = *importer
        .builder
        .shape(value)
        .get(axis)
        .ok_or("a missing axis")?;
    let size = fixed(length)?;
    if size == 0 {
        return Ok(value);
    }
    let cut = Dim::Fixed((-by).rem_euclid(size));
    let tail = importer.builder.slice(value, axis, cut, length, 1)?;
    let head = importer.builder.slice(value, axis, Dim::Fixed(0), cut, 1)?;
    importer.builder.concat(&[tail, head], axis)
}

fn roll(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, shifts, dims] = call.bind(["self", "shifts", "dims"])?;
    let mut value = importer.value(&x)?;
    let shape = importer.builder.shape(value).to_vec();
    let dims = dims.list()?;
    let shifts: Result<Vec<i64>, String> = shifts.list()?.iter().map(Item::int).collect();
    let shifts = shifts?;
    if dims.is_empty() {
        let [by] = shifts[..] else {
            return Err("several shifts of a flattened tensor".into());
        };
        let total = product(&shape).ok_or("a size that overflows")?;
        let flat = importer.builder.reshape(value, vec![total])?;
        let flat = rolled(importer, flat, 0, by)?;
        value = importer.builder.reshape(flat, shape)?;
        return Ok(importer.fresh(value));
    }
    if dims.len() != shifts.len() {
        return Err("shifts and axes of different number".into());
    }
    for (dim, by) in dims.iter().zip(shifts) {
        let axis = dim.axis(shape.len(), 0)?;
        if !shape.is_empty() {
            value = rolled(importer, value, axis, by)?;
        }
    }
    Ok(importer.fresh(value))
}

fn rot90(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, times, dims] = call.bind(["self", "k", "dims"])?;
    let value = importer.value(&x)?;
    let rank = importer.builder.shape(value).len();
    let (first, second) = match dims.list()? {
        [] => (0, normalise_axis(1, rank)?),
        [first, second] => (first.axis(rank, 0)?, second.axis(rank, 0)?),
        _ => return Err("a rotation in other than two axes".into()),
    };
    let mut swap: Vec<usize> = (0..rank).collect();
    swap.swap(first, second);
    let value = match times.int_or(1)?.rem_euclid(4) {
        0 => value,
        1 => {
            let value = flipped(importer, value, second)?;
            importer.builder.transpose(value, swap)?
        }
        2 => {
            let value = flipped(importer, value, first)?;
            flipped(importer, value, second)?
        }
        _ => {
            let value = flipped(importer, value, first)?;
            importer.builder.transpose(value, swap)?
        }
    };
    Ok(importer.fresh(value))
}

/// The value through sizes that split some axes, permuted, then joined to other sizes.
fn regroup(
    importer: &mut Importer,
    value: Value,
    split: Vec<Dim>,
    permutation: Vec<usize>,
    joined: Vec<Dim>,
) -> Lowered {
    let value = importer.builder.reshape(value, split)?;
    let value = importer.builder.transpose(value, permutation)?;
    let value = importer.builder.reshape(value, joined)?;
    Ok(importer.fresh(value))
}

fn channel_shuffle(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, groups] = call.bind(["self", "groups"])?;
    let groups = groups.int()?;
    let value = importer.value(&x)?;
    let shape = importer.builder.shape(value).to_vec();
    let [batch, channels, places @ ..] = shape.as_slice() else {
        return Err("channels of rank 1".into());
    };
    let each = channels
        .checked_div(groups)
        .ok_or("groups of no whole size")?;
    let split = [&[*batch, Dim::Fixed(groups), each], places].concat();
    let permutation = [0, 2, 1].into_iter().chain(3..split.len()).collect();
    regroup(importer, value, split, permutation, shape.clone())
}

/// Channels to places of a finer grid (Shi et al. 2016), or back.
fn pixels(importer: &mut Importer, call: &Call, shuffle: bool) -> Lowered {
    let factor = if shuffle {
        "upscale_factor"
    } else {
        "downscale_factor"
    };
    let [x, factor] = call.bind(["self", factor])?;
    let factor = factor.dim()?;
    let value = importer.value(&x)?;
    let shape = importer.builder.shape(value).to_vec();
    let [lead @ .., channels, height, width] = shape.as_slice() else {
        return Err("pixels of less than three axes".into());
    };
    let r = factor
        .fixed()
        .filter(|r| *r > 0)
        .ok_or("a factor below 1")?;
    let n = lead.len();
    let whole = |size: Dim, by: i64| size.checked_div(by).ok_or("no whole number of pixels");
    let times = |size: Dim, by: i64| size.checked_mul(Dim::Fixed(by)).ok_or("too many pixels");
    let (tail, order, joined) = if shuffle {
        let channels = whole(*channels, r * r)?;
        (
            vec![channels, factor, factor, *height, *width],
            [0, 3, 1, 4, 2],
            [channels, times(*height, r)?, times(*width, r)?],
        )
    } else {
        let (height, width) = (whole(*height, r)?, whole(*width, r)?);
        (
            vec![*channels, height, factor, width, factor],
            [0, 2, 4, 1, 3],
            [times(*channels, r * r)?, height, width],
        )
    };
    let permutation = (0..n).chain(order.map(|axis| n + axis)).collect();
    regroup(
        importer,
        value,
        [lead, &tail].concat(),
        permutation,
        [lead, &joined].concat(),
    )
}
