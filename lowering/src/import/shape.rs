// SPDX-License-Identifier: Apache-2.0
//! Views, sizes and movements.

use super::call::{Call, Item, normalise_axis};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Dim, Op, Value, product, slice_length};

/// Operators of this family that are no views.
pub const CLAIMS: Claims = &[
    ("getitem", |_, call| getitem(call)),
    ("aten.sym_size.int", sym_size),
    ("sym.add", |_, call| sym_arithmetic(call)),
    ("sym.sub", |_, call| sym_arithmetic(call)),
    ("sym.mul", |_, call| sym_arithmetic(call)),
    ("sym.floordiv", |_, call| sym_arithmetic(call)),
    ("sym.neg", |_, call| sym_arithmetic(call)),
    ("aten._unsafe_view.default", view),
    ("aten.cat.default", cat),
    ("aten.clone.default", fresh_copy),
    ("aten.concat.default", cat),
    ("aten.contiguous.default", fresh_copy),
    ("aten.lift_fresh_copy.default", fresh_copy),
    ("aten.repeat.default", repeat),
    ("aten.repeat_interleave.self_int", repeat_interleave),
    ("aten.stack.default", stack),
    ("aten.unsafe_chunk.default", split),
    ("aten.unsafe_split.Tensor", split),
    ("aten.unsafe_split_with_sizes.default", split),
];

/// Views, also claimed as copies where PyTorch has them.
pub const VIEWS: Claims = &[
    ("aten.alias.default", same),
    ("aten.detach.default", same),
    ("aten.expand.default", expand),
    ("aten.permute.default", permute),
    ("aten.select.int", select),
    ("aten.slice.Tensor", slice),
    ("aten.split.Tensor", split),
    ("aten.split_with_sizes.default", split),
    ("aten.squeeze.default", squeeze),
    ("aten.squeeze.dim", squeeze),
    ("aten.squeeze.dims", squeeze),
    ("aten.t.default", transpose),
    ("aten.transpose.int", transpose),
    ("aten.unbind.int", unbind),
    ("aten.unsqueeze.default", unsqueeze),
    ("aten.view.default", view),
];

/// Views that have no copying form. Those that change a tensor in place are views of it: what comes
/// after them in the graph means their result.
pub const ONLY_VIEWS: Claims = &[
    ("aten.broadcast_to.default", expand),
    ("aten.chunk.default", split),
    ("aten.expand_as.default", expand),
    ("aten.flatten.using_ints", flatten),
    ("aten.lift_fresh.default", same),
    ("aten.movedim.int", movedim),
    ("aten.narrow.default", narrow),
    ("aten.reshape.default", view),
    ("aten.split.sizes", split),
    ("aten.squeeze_.default", squeeze),
    ("aten.squeeze_.dim", squeeze),
    ("aten.squeeze_.dims", squeeze),
    ("aten.t_.default", transpose),
    ("aten.transpose_.default", transpose),
    ("aten.unflatten.int", unflatten),
    ("aten.unsqueeze_.default", unsqueeze),
];

/// Copies of views that are no operators of their own.
pub const COPIES: Claims = &[("aten.narrow_copy.default", narrow)];

fn same(_: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x] = call.bind(["self"])?;
    Ok(x)
}

fn fresh_copy(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x] = call.bind(["self"])?;
    let x = importer.value(&x)?;
    Ok(importer.fresh(x))
}

fn getitem(call: &Call) -> Result<Item, String> {
    let [tuple, index] = call.bind(["self", "index"])?;
    let index = usize::try_from(index.int()?).map_err(|_| "a negative index")?;
    tuple
        .list()?
        .get(index)
        .cloned()
        .ok_or_else(|| format!("no element {index}"))
}

fn sym_size(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim] = call.bind(["self", "dim"])?;
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x);
    let axis = dim.axis(shape.len(), 0)?;
    shape
        .get(axis)
        .map(|size| Item::Size(*size))
        .ok_or("a size of a rank 0 tensor".into())
}

fn sym_arithmetic(call: &Call) -> Result<Item, String> {
    let [a, b] = call.bind(["a", "b"])?;
    let a = a.dim()?;
    let result = match call.target() {
        "sym.neg" => a.checked_mul(Dim::Fixed(-1)),
        "sym.add" => a.checked_add(b.dim()?),
        "sym.sub" => a.checked_sub(b.dim()?),
        "sym.mul" => a.checked_mul(b.dim()?),
        _ => a.floor_div(b.dim()?),
    };
    result
        .map(Item::Size)
        .ok_or_else(|| format!("{a} and {b:?} do not make a size"))
}

/// Replaces a single -1 by what the other sizes leave.
fn infer_size(mut shape: Vec<Dim>, total: Dim) -> Result<Vec<Dim>, String> {
    let Some(open) = shape.iter().position(|size| *size == Dim::Fixed(-1)) else {
        return Ok(shape);
    };
    shape[open] = Dim::Fixed(1);
    let rest = product(&shape).ok_or("a size that overflows")?;
    shape[open] = total
        .checked_div(rest)
        .ok_or_else(|| format!("-1 stands for {total} / {rest}, which is no whole number"))?;
    Ok(shape)
}

fn reshape(importer: &mut Importer, x: &Item, shape: Vec<Dim>) -> Result<Item, String> {
    let value = importer.value(x)?;
    let total = importer
        .builder
        .num_elements(value)
        .ok_or("a tensor whose size overflows")?;
    importer.view(
        x,
        Op::Reshape {
            shape: infer_size(shape, total)?,
        },
    )
}

fn view(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, size] = call.bind(["self", "size"])?;
    reshape(importer, &x, size.dims()?)
}

fn shape_of(importer: &mut Importer, x: &Item) -> Result<Vec<Dim>, String> {
    let value = importer.value(x)?;
    Ok(importer.builder.shape(value).to_vec())
}

fn flatten(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, start, end] = call.bind(["self", "start_dim", "end_dim"])?;
    let shape = shape_of(importer, &x)?;
    let (start, end) = (start.axis(shape.len(), 0)?, end.axis(shape.len(), -1)?);
    if shape.is_empty() {
        return reshape(importer, &x, vec![Dim::Fixed(1)]);
    }
    let middle = shape
        .get(start..=end)
        .and_then(product)
        .ok_or("a size that overflows")?;
    let flat = [&shape[..start], &[middle], &shape[end + 1..]].concat();
    reshape(importer, &x, flat)
}

fn unflatten(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, sizes] = call.bind(["self", "dim", "sizes"])?;
    let shape = shape_of(importer, &x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let length = *shape.get(axis).ok_or("an axis of a rank 0 tensor")?;
    let sizes = infer_size(sizes.dims()?, length)?;
    let full = [&shape[..axis], &sizes, &shape[axis + 1..]].concat();
    reshape(importer, &x, full)
}

fn unsqueeze(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim] = call.bind(["self", "dim"])?;
    let mut shape = shape_of(importer, &x)?;
    let axis = normalise_axis(dim.int()?, shape.len() + 1)?;
    shape.insert(axis, Dim::Fixed(1));
    reshape(importer, &x, shape)
}

fn squeeze(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim] = call.bind(["self", "dim"])?;
    let shape = shape_of(importer, &x)?;
    let axes = match &dim {
        Item::Tuple(dims) if dims.is_empty() => Vec::new(),
        dim => dim.axes(shape.len())?,
    };
    let kept = shape
        .iter()
        .enumerate()
        .filter(|(i, size)| !(axes.contains(i) && **size == Dim::Fixed(1)));
    let kept = kept.map(|(_, size)| *size).collect();
    reshape(importer, &x, kept)
}

fn transpose(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, first, second] = call.bind(["self", "dim0", "dim1"])?;
    let rank = shape_of(importer, &x)?.len();
    if rank < 2 {
        return Ok(x);
    }
    let mut permutation: Vec<usize> = (0..rank).collect();
    permutation.swap(first.axis(rank, 0)?, second.axis(rank, 1)?);
    importer.view(&x, Op::Transpose { permutation })
}

fn permute(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dims] = call.bind(["self", "dims"])?;
    let rank = shape_of(importer, &x)?.len();
    let permutation: Result<Vec<usize>, String> =
        dims.list()?.iter().map(|dim| dim.axis(rank, 0)).collect();
    importer.view(
        &x,
        Op::Transpose {
            permutation: permutation?,
        },
    )
}

fn movedim(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, source, destination] = call.bind(["self", "source", "destination"])?;
    let rank = shape_of(importer, &x)?.len();
    let (from, to) = (source.axis(rank, 0)?, destination.axis(rank, 0)?);
    let mut permutation: Vec<usize> = (0..rank).filter(|axis| *axis != from).collect();
    permutation.insert(to, from);
    importer.view(&x, Op::Transpose { permutation })
}

fn expand(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, size] = call.bind(["self", "size"])?;
    let size = match &size {
        Item::Tensor(_) => shape_of(importer, &size)?,
        _ => size.dims()?,
    };
    let shape = shape_of(importer, &x)?;
    let lead = size
        .len()
        .checked_sub(shape.len())
        .ok_or("an expansion to a lower rank")?;
    let target: Vec<Dim> = size
        .iter()
        .enumerate()
        .map(|(i, size)| match (*size, i.checked_sub(lead)) {
            (Dim::Fixed(-1), Some(axis)) => shape[axis],
            (size, _) => size,
        })
        .collect();
    importer.view(&x, Op::Broadcast { shape: target })
}

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
) -> Result<Item, String> {
    let shape = shape_of(importer, x)?;
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

fn slice(importer: &mut Importer, call: &Call) -> Result<Item, String> {
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
) -> Result<Item, String> {
    let shape = shape_of(importer, x)?;
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

fn narrow(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, start, length] = call.bind(["self", "dim", "start", "length"])?;
    let shape = shape_of(importer, &x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let size = *shape.get(axis).ok_or("a slice of rank 0")?;
    let start = from_start(start.dim()?, size).ok_or("a slice start that overflows")?;
    let stop = start
        .checked_add(length.dim()?)
        .ok_or("a slice end that overflows")?;
    slice_view(importer, &x, axis, start, stop, 1)
}

fn select(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, index] = call.bind(["self", "dim", "index"])?;
    let shape = shape_of(importer, &x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let index = index.dim()?;
    select_view(importer, &x, axis, index)
}

pub fn select_view(
    importer: &mut Importer,
    x: &Item,
    axis: usize,
    index: Dim,
) -> Result<Item, String> {
    let mut shape = shape_of(importer, x)?;
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

fn split(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, size, dim] = call.bind(["self", "split_size", "dim"])?;
    let shape = shape_of(importer, &x)?;
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

fn unbind(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim] = call.bind(["self", "dim"])?;
    let shape = shape_of(importer, &x)?;
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

/// The values of a list of tensors, cast to the dtype that PyTorch recorded for the result.
fn values(importer: &mut Importer, call: &Call, tensors: &Item) -> Result<Vec<Value>, String> {
    let dtype = call.result_dtype()?;
    tensors
        .list()?
        .iter()
        .map(|item| {
            let value = importer.value(item)?;
            importer.builder.cast(value, dtype)
        })
        .collect()
}

fn cat(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [tensors, dim] = call.bind(["tensors", "dim"])?;
    let mut parts = values(importer, call, &tensors)?;
    // PyTorch skips empty vectors of rank 1 whatever the others' rank is.
    let rank = parts
        .iter()
        .map(|part| importer.builder.shape(*part).len())
        .max()
        .unwrap_or(0);
    parts.retain(|part| {
        let shape = importer.builder.shape(*part);
        shape.len() == rank || shape != [Dim::Fixed(0)]
    });
    let joined = importer.builder.concat(&parts, dim.axis(rank, 0)?)?;
    Ok(importer.fresh(joined))
}

fn stack(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [tensors, dim] = call.bind(["tensors", "dim"])?;
    let parts = values(importer, call, &tensors)?;
    let rank = parts
        .first()
        .map_or(0, |part| importer.builder.shape(*part).len());
    let axis = normalise_axis(dim.int_or(0)?, rank + 1)?;
    let parts: Result<Vec<Value>, String> = parts
        .into_iter()
        .map(|part| importer.builder.expand_dims(part, axis))
        .collect();
    let joined = importer.builder.concat(&parts?, axis)?;
    Ok(importer.fresh(joined))
}

fn repeat(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, repeats] = call.bind(["self", "repeats"])?;
    let repeats = repeats.dims()?;
    let value = importer.value(&x)?;
    let shape = importer.builder.shape(value).to_vec();
    let lead = repeats
        .len()
        .checked_sub(shape.len())
        .ok_or("fewer repeats than axes")?;
    let full: Vec<Dim> = (0..repeats.len())
        .map(|i| i.checked_sub(lead).map_or(Dim::Fixed(1), |i| shape[i]))
        .collect();
    // [1, n] per axis, broadcast to [r, n], flattened to r * n.
    let (mut split, mut wide, mut flat) = (Vec::new(), Vec::new(), Vec::new());
    for (repeat, size) in repeats.iter().zip(&full) {
        split.extend([Dim::Fixed(1), *size]);
        wide.extend([*repeat, *size]);
        flat.push(repeat.checked_mul(*size).ok_or("a size that overflows")?);
    }
    let builder = &mut importer.builder;
    let value = builder.reshape(value, split)?;
    let value = builder.broadcast(value, wide)?;
    let value = builder.reshape(value, flat)?;
    Ok(importer.fresh(value))
}

fn repeat_interleave(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, repeats, dim, _] = call.bind(["self", "repeats", "dim", "output_size"])?;
    let value = importer.value(&x)?;
    let builder = &mut importer.builder;
    let mut shape = builder.shape(value).to_vec();
    let axis = if dim.is_none() {
        shape = vec![
            builder
                .num_elements(value)
                .ok_or("a tensor whose size overflows")?,
        ];
        0
    } else {
        dim.axis(shape.len(), 0)?
    };
    let value = builder.reshape(value, shape.clone())?;
    let value = builder.expand_dims(value, axis + 1)?;
    let mut wide = shape.clone();
    wide.insert(axis + 1, repeats.dim()?);
    let value = builder.broadcast(value, wide)?;
    shape[axis] = shape[axis]
        .checked_mul(repeats.dim()?)
        .ok_or("a size that overflows")?;
    let value = builder.reshape(value, shape)?;
    Ok(importer.fresh(value))
}
