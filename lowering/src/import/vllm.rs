// SPDX-License-Identifier: Apache-2.0
//! vLLM's own operators: the vLLM IR (`vllm_ir.*`), the opaque attention, and the plugin's own.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Binary, DType, Dim, Float, Op, Reduction, Scalar, TensorType, Unary, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("vllm_ir.rms_norm.default", rms_norm),
    ("vllm_ir.fused_add_rms_norm.default", fused_add_rms_norm),
    (
        "vllm_ir.fused_add_rms_norm.maybe_inplace",
        fused_add_rms_norm,
    ),
    ("vllm_ir.gelu_and_mul_sparse.default", gelu_and_mul_sparse),
    ("vllm.unified_attention_with_output.default", attention),
    ("vllm_metal.expert_matmul.default", expert_matmul),
];

/// The product of a mixture of experts (`python/vllm_metal/layers/moe.py`).
fn expert_matmul(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, weight, experts] = call.bind(["x", "weight", "expert_ids"])?;
    let operands = [
        importer.value(&x)?,
        importer.value(&weight)?,
        importer.value(&experts)?,
    ];
    let value = importer.builder.add(Op::ExpertMatmul, &operands)?;
    Ok(importer.fresh(value))
}

/// vLLM `ir.ops.rms_norm`, operator by operator: the rules fuse it, so that whole and decomposed
/// captures meet in one form.
fn rms_norm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, weight, eps, size] = call.bind(["x", "weight", "epsilon", "variance_size"])?;
    let x = importer.value(&x)?;
    let dtype = importer.builder.dtype(x);
    let wide = importer.builder.cast(x, DType::Float32)?;
    let value = normalise(importer, wide, &weight, eps.float()?, &size, dtype)?;
    Ok(importer.fresh(value))
}

fn fused_add_rms_norm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, residual, weight, eps, size] =
        call.bind(["x", "x_residual", "weight", "epsilon", "variance_size"])?;
    let (x, residual) = (importer.value(&x)?, importer.value(&residual)?);
    let builder = &mut importer.builder;
    let dtype = builder.dtype(x);
    let x = builder.cast(x, DType::Float32)?;
    let residual = builder.cast(residual, DType::Float32)?;
    let sum = builder.binary(Binary::Add, x, residual)?;
    let residual = builder.cast(sum, dtype)?;
    let value = normalise(importer, sum, &weight, eps.float()?, &size, dtype)?;
    Ok(Item::Tuple(vec![
        importer.fresh(value),
        importer.fresh(residual),
    ]))
}

/// vLLM `ir.ops.gelu_and_mul_sparse`: of the gates only those above
/// `mean + std_multiplier * std` of their row count, less that threshold.
fn gelu_and_mul_sparse(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, multiplier, approximate] = call.bind(["x", "std_multiplier", "approximate"])?;
    let activation = match &approximate {
        Item::None => Unary::Gelu,
        Item::Str(kind) if kind == "none" => Unary::Gelu,
        Item::Str(kind) if kind == "tanh" => Unary::GeluTanh,
        other => return Err(format!("approximate={other:?}")),
    };
    let x = importer.value(&x)?;
    let builder = &mut importer.builder;
    let dtype = builder.dtype(x);
    let axis = (builder.shape(x).len())
        .checked_sub(1)
        .ok_or("gates of rank 0")?;
    let width = builder.shape(x)[axis].fixed().ok_or("gates of any width")?;
    let half = Dim::Fixed(width / 2);
    let gate = builder.slice(x, axis, 0.into(), half, 1)?;
    let up = builder.slice(x, axis, half, Dim::Fixed(width), 1)?;

    let wide = builder.cast(gate, DType::Float32)?;
    let mean = builder.reduce(Reduction::Mean, wide, vec![axis], true)?;
    let apart = builder.binary(Binary::Sub, wide, mean)?;
    let square = builder.unary(Unary::Square, apart)?;
    let variance = builder.reduce(Reduction::Mean, square, vec![axis], true)?;
    let deviation = builder.unary(Unary::Sqrt, variance)?;
    let deviation = builder.cast(deviation, dtype)?;
    let mean = builder.cast(mean, dtype)?;

    let multiplier = Scalar::Float(Float::new(multiplier.float()?));
    let multiplier = builder.scalar(multiplier, dtype);
    let above = builder.binary(Binary::Mul, deviation, multiplier)?;
    let threshold = builder.binary(Binary::Add, mean, above)?;
    let rest = builder.binary(Binary::Sub, gate, threshold)?;
    let sparse = builder.unary(Unary::Relu, rest)?;
    let active = builder.unary(activation, sparse)?;
    let value = builder.binary(Binary::Mul, active, up)?;
    Ok(importer.fresh(value))
}

/// `x / sqrt(mean(x^2) + eps)` in float32, rounded to the weight's dtype, times the weight, rounded to `dtype`.
fn normalise(
    importer: &mut Importer,
    x: Value,
    weight: &Item,
    eps: f64,
    variance_size: &Item,
    dtype: DType,
) -> Result<Value, String> {
    let weight = if weight.is_none() {
        None
    } else {
        Some(importer.value(weight)?)
    };
    let builder = &mut importer.builder;
    let axis = builder
        .shape(x)
        .len()
        .checked_sub(1)
        .ok_or("a norm of rank 0")?;
    let part = if variance_size.is_none() {
        x
    } else {
        builder.slice(x, axis, 0.into(), variance_size.dim()?, 1)?
    };
    let square = builder.unary(Unary::Square, part)?;
    let variance = builder.reduce(Reduction::Mean, square, vec![axis], true)?;
    let eps = builder.scalar(Scalar::Float(Float::new(eps)), DType::Float32);
    let shifted = builder.binary(Binary::Add, variance, eps)?;
    let scale = builder.unary(Unary::Rsqrt, shifted)?;
    let mut value = builder.binary(Binary::Mul, x, scale)?;
    if let Some(weight) = weight {
        let weight_dtype = builder.dtype(weight);
        value = builder.cast(value, weight_dtype)?;
        value = builder.binary(Binary::Mul, value, weight)?;
    }
    builder.cast(value, dtype)
}

/// vLLM `unified_attention_with_output`: an effect on the layer's KV cache that fills `output`.
fn attention(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [query, key, value, output, layer_name, scale, block_scale, _] = call.bind([
        "query",
        "key",
        "value",
        "output",
        "layer_name",
        "output_scale",
        "output_block_scale",
        "kv_cache_dummy_dep",
    ])?;
    if !scale.is_none() || !block_scale.is_none() {
        return Err("a quantised attention output".into());
    }
    let Item::Layer(name) = &layer_name else {
        return Err("attention without a layer".into());
    };
    let layer = importer.layers.iter().position(|layer| layer.name == *name);
    let layer =
        layer.ok_or_else(|| format!("the lowering does not know the attention of layer {name}"))?;
    let mut operands = vec![importer.value(&query)?];
    let value_in_key = importer.layers[layer].value_in_key;
    // A layer that shares another's cache may be given no keys and values.
    for (item, is_part) in [(&key, false), (&value, value_in_key)] {
        if !item.is_none() && !is_part {
            operands.push(importer.value(item)?);
        }
    }
    // Side by side, as the cache holds them: one write takes both.
    if let [_, key, value] = operands[..]
        && joinable(
            importer.builder.type_of(key),
            importer.builder.type_of(value),
        )
    {
        let rows = importer.builder.concat(&[key, value], 2)?;
        operands.truncate(1);
        operands.push(rows);
    }
    let old = importer.value(&output)?;
    let types: Vec<TensorType> = vec![importer.builder.type_of(old).clone()];
    let op = Op::Attention {
        layer: layer as u32,
    };
    let node = importer.builder.node(op, &operands, types);
    importer.write(&output, Value { node, output: 0 })?;
    Ok(Item::None)
}

/// Whether keys and values are `[t, kv_heads, size]` of one dtype, and neither is empty.
fn joinable(key: &TensorType, value: &TensorType) -> bool {
    let sizes = [key, value].map(|of| of.last().and_then(|size| size.fixed()));
    let full = sizes.iter().all(|size| size.is_some_and(|size| size > 0));
    full && key.rank() == 3 && key.dtype == value.dtype && key.shape[..2] == value.shape[..2]
}
