// SPDX-License-Identifier: Apache-2.0
//! Gathers and scatters.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{DType, Op, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.embedding.default", embedding),
    ("aten.index_select.default", index_select),
    ("aten.index.Tensor", index),
    ("aten.gather.default", gather),
];

/// Those that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.scatter.src", scatter),
    ("aten.scatter.value", scatter),
];

/// Indices in a dtype that the runtime gathers by.
fn indices(importer: &mut Importer, item: &Item) -> Result<Value, String> {
    let value = importer.value(item)?;
    match importer.builder.dtype(value) {
        DType::Int32 | DType::Int64 | DType::Uint32 => Ok(value),
        DType::Bool => Err("a boolean mask, whose result's size is not known before a step".into()),
        _ => importer.builder.cast(value, DType::Int32),
    }
}

fn take(importer: &mut Importer, x: Value, place: Value, axis: usize) -> Result<Item, String> {
    let value = importer.builder.add(Op::Take { axis }, &[x, place])?;
    Ok(importer.fresh(value))
}

fn embedding(importer: &mut Importer, call: &Call) -> Result<Item, String> {
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

fn index_select(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, place] = call.bind(["self", "dim", "index"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let axis = dim.axis(importer.builder.shape(x).len(), 0)?;
    take(importer, x, place, axis)
}

fn index(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, places] = call.bind(["self", "indices"])?;
    let x = importer.value(&x)?;
    let given: Vec<(usize, &Item)> = places
        .list()?
        .iter()
        .enumerate()
        .filter(|(_, item)| !item.is_none())
        .collect();
    match given.as_slice() {
        [(axis, place)] => {
            let place = indices(importer, place)?;
            take(importer, x, place, *axis)
        }
        _ => Err(format!("indexing by {} tensors at once", given.len())),
    }
}

fn gather(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, place, _] = call.bind(["self", "dim", "index", "sparse_grad"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let axis = dim.axis(importer.builder.shape(x).len(), 0)?;
    let value = importer
        .builder
        .add(Op::TakeAlongAxis { axis }, &[x, place])?;
    Ok(importer.fresh(value))
}

fn scatter(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, dim, place, updates] = call.bind(["self", "dim", "index", "src"])?;
    let (x, place) = (importer.value(&x)?, indices(importer, &place)?);
    let dtype = importer.builder.dtype(x);
    let axis = dim.axis(importer.builder.shape(x).len(), 0)?;
    let updates = match &updates {
        Item::Tensor(_) => importer.value(&updates)?,
        // `scatter.value` names its last argument `value`.
        Item::None => {
            let value = call.kwargs.iter().find(|(name, _)| *name == "value");
            let (_, value) = value.ok_or("a scatter without a source")?;
            importer.builder.scalar(value.scalar()?, dtype)
        }
        number => importer.builder.scalar(number.scalar()?, dtype),
    };
    let shape = importer.builder.shape(place).to_vec();
    let updates = importer.builder.broadcast(updates, shape)?;
    let value = importer
        .builder
        .add(Op::PutAlongAxis { axis }, &[x, place, updates])?;
    Ok(importer.fresh(value))
}
