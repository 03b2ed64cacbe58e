// SPDX-License-Identifier: Apache-2.0
//! Gathers.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::reduce::Line;
use crate::ir::{Binary, DType, Dim, Op, Scalar, Value, broadcast, product};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten._unsafe_index.Tensor", index),
    ("aten.embedding.default", embedding),
    ("aten.gather.default", gather),
    ("aten.index.Tensor", index),
    ("aten.index_select.default", index_select),
    ("aten.take.default", take_flat),
];

/// Indices in a dtype that the runtime gathers by.
pub fn indices(importer: &mut Importer, item: &Item) -> Result<Value, String> {
    let value = importer.value(item)?;
    match importer.builder.dtype(value) {
        DType::Int32 | DType::Int64 | DType::Uint32 => Ok(value),
        DType::Bool => Err("a boolean mask, whose result's size is not known before a step".into()),
        _ => importer.builder.cast(value, DType::Int32),
    }
}

/// Indices as the runtime may use them unchecked: negative ones count from the end, and what is out
/// of range is taken to the nearest end. PyTorch raises an error there, which no device does.
pub fn in_range(importer: &mut Importer, place: Value, length: Dim) -> Result<Value, String> {
    let dtype = importer.builder.dtype(place);
    let last = length
        .checked_sub(Dim::Fixed(1))
        .ok_or("a size that overflows")?;
    let length = importer.builder.scalar(Scalar::Size(length), dtype);
    let last = importer.builder.scalar(Scalar::Size(last), dtype);
    let place = Formula::Value(place);
    let wrapped = place
        .clone()
        .less(0.0)
        .choose(place.clone() + length, place);
    importer.formula(&wrapped.maximum(0.0).minimum(last), dtype)
}

/// Whether the elements are those of an input of the graph, which the host checks before a step.
fn is_checked(importer: &Importer, place: Value) -> bool {
    let mut value = place;
    loop {
        match &importer.builder.graph.node(value.node).op {
            Op::Input(_) => return true,
            Op::Cast { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. } => match importer.builder.graph.operands(value.node).first() {
                Some(operand) => value = *operand,
                None => return false,
            },
            _ => return false,
        }
    }
}

/// Rows of `x` along the axis. Indices that the host checks are used as they are.
fn take(importer: &mut Importer, x: Value, place: Value, axis: usize) -> Lowered {
    let length = *importer
        .builder
        .shape(x)
        .get(axis)
        .ok_or("a gather of rank 0")?;
    let checked = is_checked(importer, place) && length.fixed().is_some();
    let place = match checked {
        true => place,
        false => in_range(importer, place, length)?,
    };
    let value = importer.builder.add(Op::Take { axis }, &[x, place])?;
    Ok(importer.fresh(value))
}

fn embedding(importer: &mut Importer, call: &Call) -> Lowered {
    let [weight, place, _, _, _] = call.bind([
        "weight",
        "indices",
        "padding_idx",
        "scale_grad_by_freq",
        "sparse",
    ])?;
    let (weight, place) = (importer.value(&weight)?, indices(importer, &place)?);
    take(importer, weight, place, 0)
}

fn index_select(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place] = call.bind(["self", "dim", "index"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let line = Line::new(importer, x, &dim, 0)?;
    let total = importer
        .builder
        .num_elements(place)
        .ok_or("a size that overflows")?;
    let place = importer.builder.reshape(place, vec![total])?;
    let result = take(importer, line.value, place, line.axis)?;
    let result = importer.value(&result)?;
    let result = line.close(importer, result)?;
    Ok(importer.fresh(result))
}

/// Elements by their place in row-major order.
fn take_flat(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, place] = call.bind(["self", "index"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let total = importer
        .builder
        .num_elements(x)
        .ok_or("a size that overflows")?;
    let flat = importer.builder.reshape(x, vec![total])?;
    let place = in_range(importer, place, total)?;
    let value = importer.builder.add(Op::Take { axis: 0 }, &[flat, place])?;
    Ok(importer.fresh(value))
}

fn gather(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim, place, _] = call.bind(["self", "dim", "index", "sparse_grad"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let line = Line::new(importer, x, &dim, 0)?;
    let shape = importer.builder.shape(place).to_vec();
    let place = match shape.is_empty() {
        true => importer.builder.reshape(place, vec![Dim::Fixed(1)])?,
        false => place,
    };
    if importer.builder.num_elements(place) == Some(Dim::Fixed(0)) {
        let dtype = importer.builder.dtype(x);
        let zero = importer.builder.scalar(Scalar::Int(0), dtype);
        let nothing = importer.builder.broadcast(zero, shape)?;
        return Ok(importer.fresh(nothing));
    }
    let place = in_range(importer, place, line.length(importer))?;
    let op = Op::TakeAlongAxis { axis: line.axis };
    let value = importer.builder.add(op, &[line.value, place])?;
    let value = importer.builder.reshape(value, shape)?;
    Ok(importer.fresh(value))
}

/// Several index tensors as one into the axes that they index, joined.
pub struct Joined {
    /// `x` with the indexed axes together, in their order.
    permutation: Vec<usize>,
    /// Where they stand.
    pub axis: usize,
    /// Sizes after the indexed axes became one.
    pub shape: Vec<Dim>,
    /// Indices into that axis, in range.
    pub place: Value,
}

impl Joined {
    /// The indices of `x[places]`, a missing one meaning a whole axis.
    pub fn new(importer: &mut Importer, x: Value, places: &Item) -> Result<Joined, String> {
        let shape = importer.builder.shape(x).to_vec();
        let mut given: Vec<(usize, Value)> = Vec::new();
        for (axis, item) in places.list()?.iter().enumerate() {
            if !item.is_none() {
                given.push((axis, indices(importer, item)?));
            }
        }
        let axes: Vec<usize> = given.iter().map(|(axis, _)| *axis).collect();
        let (Some(first), Some(last)) = (axes.first(), axes.last()) else {
            return Err("an index of nothing".into());
        };
        if *last >= shape.len() {
            return Err("more indices than axes".into());
        }
        let together = last - first + 1 == axes.len();
        let axis = if together { *first } else { 0 };
        let rest = (0..shape.len()).filter(|axis| !axes.contains(axis));
        let mut permutation: Vec<usize> = rest.collect();
        permutation.splice(axis..axis, axes.iter().copied());
        // ((i0 * n1 + i1) * n2 + i2) ..
        let mut place: Option<Value> = None;
        for (axis, index) in given {
            let index = importer.builder.cast(index, DType::Int64)?;
            let index = in_range(importer, index, shape[axis])?;
            place = Some(match place {
                None => index,
                Some(before) => {
                    let size = Scalar::Size(shape[axis]);
                    let size = importer.builder.scalar(size, DType::Int64);
                    let before = importer.builder.binary(Binary::Mul, before, size)?;
                    importer.builder.binary(Binary::Add, before, index)?
                }
            });
        }
        let sizes: Vec<Dim> = axes.iter().map(|axis| shape[*axis]).collect();
        let size = product(&sizes).ok_or("a size that overflows")?;
        let mut joined: Vec<Dim> = permutation.iter().map(|axis| shape[*axis]).collect();
        joined.splice(axis..axis + axes.len(), [size]);
        Ok(Joined {
            permutation,
            axis,
            shape: joined,
            place: place.ok_or("an index of nothing")?,
        })
    }

    /// `x` with the indexed axes as one.
    pub fn open(&self, importer: &mut Importer, x: Value) -> Result<Value, String> {
        let x = importer.builder.transpose(x, self.permutation.clone())?;
        importer.builder.reshape(x, self.shape.clone())
    }

    /// What [`Joined::open`] made, back in the shape of `x`.
    pub fn close(
        &self,
        importer: &mut Importer,
        value: Value,
        shape: &[Dim],
    ) -> Result<Value, String> {
        let moved = self.permutation.iter().map(|axis| shape[*axis]).collect();
        let value = importer.builder.reshape(value, moved)?;
        let mut inverse = vec![0; self.permutation.len()];
        for (to, from) in self.permutation.iter().enumerate() {
            inverse[*from] = to;
        }
        importer.builder.transpose(value, inverse)
    }
}

fn index(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, places] = call.bind(["self", "indices"])?;
    let x = importer.value(&x)?;
    let given: Vec<(usize, &Item)> = places
        .list()?
        .iter()
        .enumerate()
        .filter(|(_, item)| !item.is_none())
        .collect();
    if let [(axis, place)] = given.as_slice() {
        let place = indices(importer, place)?;
        return take(importer, x, place, *axis);
    }
    let joined = Joined::new(importer, x, &places)?;
    let flat = joined.open(importer, x)?;
    let op = Op::Take { axis: joined.axis };
    let value = importer.builder.add(op, &[flat, joined.place])?;
    Ok(importer.fresh(value))
}

impl Importer<'_> {
    /// The value broadcast from its trailing axes, as PyTorch assigns it: leading axes of size 1
    /// beyond the rank are dropped.
    pub fn broadcast_value(&mut self, value: Value, shape: &[Dim]) -> Result<Value, String> {
        let mut from = self.builder.shape(value).to_vec();
        while from.len() > shape.len() && from.first() == Some(&Dim::Fixed(1)) {
            from.remove(0);
        }
        let value = self.builder.reshape(value, from.clone())?;
        if broadcast(&from, shape)? != shape {
            return Err(format!("values {from:?} for {shape:?}"));
        }
        self.builder.broadcast(value, shape.to_vec())
    }
}
