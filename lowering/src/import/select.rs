// SPDX-License-Identifier: Apache-2.0
//! `vllm_metal.*`: keys that are selected by an index, and attention to those alone
//! (`python/vllm_metal/key_selection.py`).

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{DType, Dim, Op, TensorType, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("vllm_metal.select_keys.default", select_keys),
    ("vllm_metal.sparse_attention.default", sparse_attention),
];

fn layer_of(importer: &Importer, item: &Item) -> Result<u32, String> {
    let Item::Layer(name) = item else {
        return Err("keys without a layer".into());
    };
    let layer = importer.layers.iter().position(|layer| layer.name == *name);
    let layer = layer.ok_or_else(|| format!("the lowering does not know the keys of {name}"))?;
    Ok(layer as u32)
}

/// The sizes of a value of rank 3.
fn sizes(importer: &Importer, value: Value) -> Result<[Dim; 3], String> {
    let shape = importer.builder.shape(value);
    shape
        .try_into()
        .map_err(|_| format!("heads of rank {}", shape.len()))
}

fn effect(importer: &mut Importer, op: Op, operands: &[Value], result: TensorType) -> Item {
    let node = importer.builder.node(op, operands, vec![result]);
    importer.fresh(Value { node, output: 0 })
}

fn select_keys(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [q, k, weights, count, layer] = call.bind(["q", "k", "weights", "count", "layer"])?;
    let layer = layer_of(importer, &layer)?;
    let count = count.int()?;
    let operands = [
        importer.value(&q)?,
        importer.value(&k)?,
        importer.value(&weights)?,
    ];
    let [tokens, heads, size] = sizes(importer, operands[0])?;
    let fits = sizes(importer, operands[1])? == [tokens, Dim::Fixed(1), size]
        && importer.builder.shape(operands[2]) == [tokens, heads]
        && size == Dim::Fixed(importer.layers[layer as usize].head_size);
    if !fits || count < 1 {
        return Err(format!(
            "{count} keys for queries of {heads} heads of {size}"
        ));
    }
    let result = TensorType {
        dtype: DType::Int32,
        shape: vec![tokens, Dim::Fixed(count)],
    };
    Ok(effect(
        importer,
        Op::SelectKeys { layer, count },
        &operands,
        result,
    ))
}

fn sparse_attention(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [q, selected, k, v, layer] = call.bind(["q", "selected", "k", "v", "layer"])?;
    let layer = layer_of(importer, &layer)?;
    let (head_size_v, value_in_key) = {
        let layer = &importer.layers[layer as usize];
        (layer.head_size_v, layer.value_in_key)
    };
    let mut operands = vec![
        importer.value(&q)?,
        importer.value(&selected)?,
        importer.value(&k)?,
    ];
    if !value_in_key {
        operands.push(importer.value(&v)?);
    }
    let [tokens, heads, _] = sizes(importer, operands[0])?;
    let selected = importer.builder.type_of(operands[1]);
    let &[rows, Dim::Fixed(count)] = selected.shape.as_slice() else {
        return Err(format!("keys selected by {selected}"));
    };
    if rows != tokens || selected.dtype != DType::Int32 {
        return Err(format!("keys selected by {selected}"));
    }
    let result = TensorType {
        dtype: importer.builder.dtype(operands[0]),
        shape: vec![tokens, heads, Dim::Fixed(head_size_v)],
    };
    let op = Op::SparseAttention { layer, count };
    Ok(effect(importer, op, &operands, result))
}
