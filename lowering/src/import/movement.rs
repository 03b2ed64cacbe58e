// SPDX-License-Identifier: Apache-2.0
//! Movements beyond reshaping: diagonals, windows, flips, rolls and padding.

use super::call::{Call, Item, normalise_axis};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Dim, Op, Scalar, Value, product};

type Lowered = Result<Item, String>;

/// Views, which [`super::dispatch`] also claims as copies.
pub const VIEWS: Claims = &[
    ("aten.diagonal.default", diagonal),
    ("aten.unfold.default", unfold),
];

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.block_diag.default", block_diag),
    ("aten.channel_shuffle.default", channel_shuffle),
    ("aten.constant_pad_nd.default", constant_pad),
    ("aten.diag_embed.default", diag_embed),
    ("aten.diagonal_scatter.default", diagonal_scatter),
    ("aten.flip.default", flip),
    ("aten.pixel_shuffle.default", |i, call| {
        pixels(i, call, true)
    }),
    ("aten.pixel_unshuffle.default", |i, call| {
        pixels(i, call, false)
    }),
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
    ("aten.roll.default", roll),
    ("aten.rot90.default", rot90),
    ("aten.select_scatter.default", select_scatter),
    ("aten.slice_scatter.default", slice_scatter),
];

/// Those that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.tril.default", |i, call| {
        triangle(i, call, |diagonal| Op::Tril { diagonal })
    }),
    ("aten.triu.default", |i, call| {
        triangle(i, call, |diagonal| Op::Triu { diagonal })
    }),
];

fn shape_of(importer: &mut Importer, x: &Item) -> Result<Vec<Dim>, String> {
    let value = importer.value(x)?;
    Ok(importer.builder.shape(value).to_vec())
}

fn fixed(dim: Dim) -> Result<i64, String> {
    dim.fixed()
        .ok_or_else(|| format!("the symbolic size {dim} where a fixed one is expected"))
}

fn triangle(importer: &mut Importer, call: &Call, op: fn(i64) -> Op) -> Lowered {
    let [x, diagonal] = call.bind(["self", "diagonal"])?;
    let x = importer.value(&x)?;
    let result = importer.builder.add(op(diagonal.int_or(0)?), &[x])?;
    Ok(importer.fresh(result))
}

/// The diagonal of two axes, as a view whose last axis it is: rows and columns laid out in one axis,
/// of which every `columns + 1`st element is on a diagonal.
pub fn diagonal_view(
    importer: &mut Importer,
    x: &Item,
    offset: i64,
    first: usize,
    second: usize,
) -> Lowered {
    let shape = shape_of(importer, x)?;
    let rank = shape.len();
    if first == second || first >= rank || second >= rank {
        return Err(format!(
            "a diagonal of axes {first} and {second} of rank {rank}"
        ));
    }
    let (rows, columns) = (fixed(shape[first])?, fixed(shape[second])?);
    let mut permutation: Vec<usize> = (0..rank)
        .filter(|axis| *axis != first && *axis != second)
        .collect();
    let mut flat: Vec<Dim> = permutation.iter().map(|axis| shape[*axis]).collect();
    permutation.extend([first, second]);
    let area = rows.checked_mul(columns).ok_or("an area that overflows")?;
    flat.push(Dim::Fixed(area));
    let length = match offset {
        0.. => rows.min(columns.saturating_sub(offset)),
        _ => columns.min(rows.saturating_add(offset)),
    };
    let length = length.max(0);
    let start = match offset {
        _ if length == 0 => 0,
        0.. => offset,
        _ => offset.saturating_neg().saturating_mul(columns),
    };
    let stop = match length {
        0 => 0,
        length => start + (length - 1) * (columns + 1) + 1,
    };
    let axis = flat.len() - 1;
    let x = importer.view(x, Op::Transpose { permutation })?;
    let x = importer.view(&x, Op::Reshape { shape: flat })?;
    importer.view(
        &x,
        Op::Slice {
            axis,
            start: Dim::Fixed(start),
            stop: Dim::Fixed(stop),
            step: columns + 1,
            length: Dim::Fixed(area),
        },
    )
}

fn diagonal(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, offset, first, second] = call.bind(["self", "offset", "dim1", "dim2"])?;
    let rank = shape_of(importer, &x)?.len();
    let (first, second) = (first.axis(rank, 0)?, second.axis(rank, 1)?);
    diagonal_view(importer, &x, offset.int_or(0)?, first, second)
}

/// A copy of the first argument with part of it replaced.
fn replaced(
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

fn diagonal_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, offset, first, second] =
        call.bind(["self", "src", "offset", "dim1", "dim2"])?;
    let rank = shape_of(importer, &x)?.len();
    let (first, second) = (first.axis(rank, 0)?, second.axis(rank, 1)?);
    let offset = offset.int_or(0)?;
    replaced(importer, &x, &source, |importer, copy| {
        diagonal_view(importer, copy, offset, first, second)
    })
}

fn select_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, dim, index] = call.bind(["self", "src", "dim", "index"])?;
    let rank = shape_of(importer, &x)?.len();
    let (axis, index) = (dim.axis(rank, 0)?, index.dim()?);
    replaced(importer, &x, &source, |importer, copy| {
        super::shape::select_view(importer, copy, axis, index)
    })
}

fn slice_scatter(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, dim, start, end, step] =
        call.bind(["self", "src", "dim", "start", "end", "step"])?;
    replaced(importer, &x, &source, |importer, copy| {
        super::shape::slice_of(importer, copy, [&dim, &start, &end, &step], |_, _| None)
    })
}

/// The last axis as the diagonal of two axes, zeros elsewhere.
fn diag_embed(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, offset, first, second] = call.bind(["self", "offset", "dim1", "dim2"])?;
    let shape = shape_of(importer, &x)?;
    let offset = offset.int_or(0)?;
    let (size, lead) = shape.split_last().ok_or("a diagonal of rank 0")?;
    let side = fixed(*size)?
        .checked_add(offset.checked_abs().ok_or("an offset that overflows")?)
        .ok_or("a size that overflows")?;
    let rank = shape.len() + 1;
    let (first, second) = (first.axis(rank, -2)?, second.axis(rank, -1)?);
    let square = [lead, &[Dim::Fixed(side), Dim::Fixed(side)]].concat();
    let source = importer.value(&x)?;
    let dtype = importer.builder.dtype(source);
    let zero = importer.builder.scalar(Scalar::Int(0), dtype);
    let zeros = importer.builder.broadcast(zero, square)?;
    let zeros = importer.fresh(zeros);
    let result = replaced(importer, &zeros, &x, |importer, copy| {
        diagonal_view(importer, copy, offset, rank - 2, rank - 1)
    })?;
    let mut permutation: Vec<usize> = (0..rank - 2).collect();
    let mut places = [(first, rank - 2), (second, rank - 1)];
    places.sort_unstable();
    for (to, from) in places {
        permutation.insert(to.min(permutation.len()), from);
    }
    let result = importer.value(&result)?;
    let result = importer.builder.transpose(result, permutation)?;
    Ok(importer.fresh(result))
}

/// Windows of a size along an axis, each as the last axis (`torch.Tensor.unfold`).
fn unfold(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, size, step] = call.bind(["self", "dimension", "size", "step"])?;
    let shape = shape_of(importer, &x)?;
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
            _ => super::shape::slice_of(
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
fn flipped(importer: &mut Importer, value: Value, axis: usize) -> Result<Value, String> {
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

/// Matrices along the diagonal of one, zeros elsewhere.
fn block_diag(importer: &mut Importer, call: &Call) -> Lowered {
    let [tensors] = call.bind(["tensors"])?;
    let dtype = call.result_dtype()?;
    let mut blocks = Vec::new();
    let mut columns = 0;
    for item in tensors.list()? {
        let value = importer.value(item)?;
        let value = importer.builder.cast(value, dtype)?;
        let shape = match *importer.builder.shape(value) {
            [] => vec![Dim::Fixed(1), Dim::Fixed(1)],
            [size] => vec![Dim::Fixed(1), size],
            [rows, columns] => vec![rows, columns],
            _ => return Err("a block of more than two axes".into()),
        };
        let width = fixed(shape[1])?;
        blocks.push((importer.builder.reshape(value, shape)?, columns, width));
        columns += width;
    }
    let mut rows = Vec::new();
    for (block, before, width) in blocks {
        let pad = Op::Pad {
            low: vec![0, before],
            high: vec![0, columns - before - width],
            value: Scalar::Int(0),
        };
        rows.push(importer.builder.add(pad, &[block])?);
    }
    let result = importer.builder.concat(&rows, 0)?;
    Ok(importer.fresh(result))
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
