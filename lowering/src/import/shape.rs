// SPDX-License-Identifier: Apache-2.0
//! Views, sizes and movements.

use super::call::{Call, Item, normalise_axis};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use crate::ir::{Dim, Op, product};

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
    ("aten.clone.default", fresh_copy),
    ("aten.contiguous.default", fresh_copy),
    ("aten.lift_fresh_copy.default", fresh_copy),
];

/// Views, also claimed as copies where PyTorch has them.
pub const VIEWS: Claims = &[
    ("aten.alias.default", same),
    ("aten.detach.default", same),
    ("aten.expand.default", expand),
    ("aten.permute.default", permute),
    ("aten.squeeze.default", squeeze),
    ("aten.squeeze.dim", squeeze),
    ("aten.squeeze.dims", squeeze),
    ("aten.t.default", transpose),
    ("aten.transpose.int", transpose),
    ("aten.unsqueeze.default", unsqueeze),
    ("aten.view.default", view),
];

/// Views that have no copying form. Those that change a tensor in place are views of it: what comes
/// after them in the graph means their result.
pub const ONLY_VIEWS: Claims = &[
    ("aten.broadcast_to.default", expand),
    ("aten.expand_as.default", expand),
    ("aten.flatten.using_ints", flatten),
    ("aten.lift_fresh.default", same),
    ("aten.movedim.int", movedim),
    ("aten.reshape.default", view),
    ("aten.squeeze_.default", squeeze),
    ("aten.squeeze_.dim", squeeze),
    ("aten.squeeze_.dims", squeeze),
    ("aten.t_.default", transpose),
    ("aten.transpose_.default", transpose),
    ("aten.unflatten.int", unflatten),
    ("aten.unsqueeze_.default", unsqueeze),
];

impl Importer<'_> {
    /// The sizes of a tensor argument.
    pub fn shape_of(&mut self, x: &Item) -> Result<Vec<Dim>, String> {
        let value = self.value(x)?;
        Ok(self.builder.shape(value).to_vec())
    }
}

fn same(_: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    Ok(x)
}

fn fresh_copy(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    let x = importer.value(&x)?;
    Ok(importer.fresh(x))
}

fn getitem(call: &Call) -> Lowered {
    let [tuple, index] = call.bind(["self", "index"])?;
    let index = usize::try_from(index.int()?).map_err(|_| "a negative index")?;
    tuple
        .list()?
        .get(index)
        .cloned()
        .ok_or_else(|| format!("no element {index}"))
}

fn sym_size(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x);
    let axis = dim.axis(shape.len(), 0)?;
    shape
        .get(axis)
        .map(|size| Item::Size(*size))
        .ok_or("a size of a rank 0 tensor".into())
}

fn sym_arithmetic(call: &Call) -> Lowered {
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

pub fn reshape(importer: &mut Importer, x: &Item, shape: Vec<Dim>) -> Lowered {
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

fn view(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, size] = call.bind(["self", "size"])?;
    reshape(importer, &x, size.dims()?)
}

fn flatten(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, start, end] = call.bind(["self", "start_dim", "end_dim"])?;
    let shape = importer.shape_of(&x)?;
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

fn unflatten(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, sizes] = call.bind(["self", "dim", "sizes"])?;
    let shape = importer.shape_of(&x)?;
    let axis = dim.axis(shape.len(), 0)?;
    let length = *shape.get(axis).ok_or("an axis of a rank 0 tensor")?;
    let sizes = infer_size(sizes.dims()?, length)?;
    let full = [&shape[..axis], &sizes, &shape[axis + 1..]].concat();
    reshape(importer, &x, full)
}

fn unsqueeze(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let mut shape = importer.shape_of(&x)?;
    let axis = normalise_axis(dim.int()?, shape.len() + 1)?;
    shape.insert(axis, Dim::Fixed(1));
    reshape(importer, &x, shape)
}

fn squeeze(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let shape = importer.shape_of(&x)?;
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

fn transpose(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, first, second] = call.bind(["self", "dim0", "dim1"])?;
    let rank = importer.shape_of(&x)?.len();
    if rank < 2 {
        return Ok(x);
    }
    let mut permutation: Vec<usize> = (0..rank).collect();
    permutation.swap(first.axis(rank, 0)?, second.axis(rank, 1)?);
    importer.view(&x, Op::Transpose { permutation })
}

fn permute(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dims] = call.bind(["self", "dims"])?;
    let rank = importer.shape_of(&x)?.len();
    let permutation: Result<Vec<usize>, String> =
        dims.list()?.iter().map(|dim| dim.axis(rank, 0)).collect();
    importer.view(
        &x,
        Op::Transpose {
            permutation: permutation?,
        },
    )
}

fn movedim(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, source, destination] = call.bind(["self", "source", "destination"])?;
    let rank = importer.shape_of(&x)?.len();
    let (from, to) = (source.axis(rank, 0)?, destination.axis(rank, 0)?);
    let mut permutation: Vec<usize> = (0..rank).filter(|axis| *axis != from).collect();
    permutation.insert(to, from);
    importer.view(&x, Op::Transpose { permutation })
}

fn expand(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, size] = call.bind(["self", "size"])?;
    let size = match &size {
        Item::Tensor(_) => importer.shape_of(&size)?,
        _ => size.dims()?,
    };
    let shape = importer.shape_of(&x)?;
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
