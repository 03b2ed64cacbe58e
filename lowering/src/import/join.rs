// SPDX-License-Identifier: Apache-2.0
//! Concatenation and repetition.

use super::call::{Call, Item, normalise_axis};
use super::dispatch::{Claims, Lowered};
use super::graph::Importer;
use crate::ir::{Dim, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.cat.default", cat),
    ("aten.concat.default", cat),
    ("aten.repeat.default", repeat),
    ("aten.repeat_interleave.self_int", repeat_interleave),
    ("aten.stack.default", stack),
];

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

fn cat(importer: &mut Importer, call: &Call) -> Lowered {
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

fn stack(importer: &mut Importer, call: &Call) -> Lowered {
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

fn repeat(importer: &mut Importer, call: &Call) -> Lowered {
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

fn repeat_interleave(importer: &mut Importer, call: &Call) -> Lowered {
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
