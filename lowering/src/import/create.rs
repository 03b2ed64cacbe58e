// SPDX-License-Identifier: Apache-2.0
//! Constants and ranges.

use super::call::{Call, Item};
use super::graph::Importer;
use crate::ir::{Dim, Op, Scalar, TensorType, Value};

/// Lowers the call if it is one of this family.
pub fn lower(importer: &mut Importer, call: &Call) -> Option<Result<Item, String>> {
    let name = call.target().strip_prefix("aten.")?;
    let (name, _) = name.split_once('.').unwrap_or((name, ""));
    Some(match name {
        // What is never written before it is read may hold anything: zeros are as good.
        "empty" | "zeros" => call
            .bind(["size", "dtype"])
            .and_then(|[size, _]| full(importer, call, &size, Scalar::Int(0))),
        "ones" => call
            .bind(["size", "dtype"])
            .and_then(|[size, _]| full(importer, call, &size, Scalar::Int(1))),
        "full" => call
            .bind(["size", "fill_value", "dtype"])
            .and_then(|[size, value, _]| full(importer, call, &size, value.scalar()?)),
        "empty_like" | "zeros_like" => like(importer, call, Scalar::Int(0)),
        "ones_like" => like(importer, call, Scalar::Int(1)),
        "full_like" => call
            .bind(["self", "fill_value", "dtype"])
            .and_then(|[x, value, _]| {
                let x = importer.value(&x)?;
                let shape = importer.builder.shape(x).to_vec();
                build(importer, call, shape, value.scalar()?)
            }),
        "new_empty" | "new_zeros" => call
            .bind(["self", "size", "dtype"])
            .and_then(|[_, size, _]| full(importer, call, &size, Scalar::Int(0))),
        "new_ones" => call
            .bind(["self", "size", "dtype"])
            .and_then(|[_, size, _]| full(importer, call, &size, Scalar::Int(1))),
        "new_full" => call
            .bind(["self", "size", "fill_value", "dtype"])
            .and_then(|[_, size, value, _]| full(importer, call, &size, value.scalar()?)),
        "scalar_tensor" => call
            .bind(["s", "dtype"])
            .and_then(|[value, _]| build(importer, call, vec![], value.scalar()?)),
        "arange" => arange(importer, call),
        _ => return None,
    })
}

fn full(importer: &mut Importer, call: &Call, size: &Item, value: Scalar) -> Result<Item, String> {
    build(importer, call, size.dims()?, value)
}

fn like(importer: &mut Importer, call: &Call, value: Scalar) -> Result<Item, String> {
    let [x, _] = call.bind(["self", "dtype"])?;
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x).to_vec();
    build(importer, call, shape, value)
}

fn build(
    importer: &mut Importer,
    call: &Call,
    shape: Vec<Dim>,
    value: Scalar,
) -> Result<Item, String> {
    let dtype = call.result_dtype()?;
    let types = vec![TensorType {
        dtype,
        shape: shape.clone(),
    }];
    types.iter().try_for_each(TensorType::check_sizes)?;
    let node = importer.builder.node(Op::Full { value, shape }, &[], types);
    Ok(importer.fresh(Value { node, output: 0 }))
}

fn arange(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let (start, end, step) = match call.target() {
        "aten.arange.default" => call
            .bind(["end", "dtype"])
            .map(|[end, _]| (Item::None, end, Item::None))?,
        _ => call
            .bind(["start", "end", "step", "dtype"])
            .map(|[start, end, step, _]| (start, end, step))?,
    };
    let start = if start.is_none() {
        Dim::Fixed(0)
    } else {
        start.dim()?
    };
    let step = step.int_or(1)?;
    let length = crate::ir::slice_length(start, end.dim()?, step.max(1));
    let length = length
        .filter(|_| step > 0)
        .ok_or("a range whose length is not affine")?;
    let dtype = call.result_dtype()?;
    let types = vec![TensorType {
        dtype,
        shape: vec![length],
    }];
    types.iter().try_for_each(TensorType::check_sizes)?;
    let node = importer.builder.node(
        Op::Arange {
            start,
            step,
            length,
        },
        &[],
        types,
    );
    Ok(importer.fresh(Value { node, output: 0 }))
}
