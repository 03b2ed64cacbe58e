// SPDX-License-Identifier: Apache-2.0
//! One attention layer on a layout.

use super::layout::{Batch, Layout};
use super::mask::Mask;
use super::paged::PagedKernel;
use super::select::only_selected;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, dtype, scalar};
use lowering::ir::DType;
use lowering::plan::{AttentionLayer, Reference};

/// A layer's constants, ready to compute with.
pub struct Layer {
    pub plan: AttentionLayer,
    /// `scale`, or `scale / soft_cap`: float32, rank 0.
    scale: Array,
    soft_cap: Option<Array>,
    /// `[num_heads]` in its own dtype.
    sinks: Option<Array>,
    /// The same as a score `[1, kv_heads, heads / kv_heads, 1, 1]`, float32.
    sink_scores: Option<Array>,
    /// What reads its cache in place, where the plan chose kernels.
    pub kernel: Option<PagedKernel>,
}

impl Layer {
    /// Prepares a layer; `sinks` is the parameter that the plan names.
    ///
    /// # Errors
    /// The layer's head counts do not divide, or its sinks are not `[num_heads]`.
    pub fn new(mlx: &Mlx, plan: AttentionLayer, sinks: Option<Array>) -> Result<Layer> {
        let (heads, kv_heads) = (plan.num_heads, plan.num_kv_heads);
        if kv_heads < 1
            || heads < 1
            || heads % kv_heads != 0
            || plan.head_size < 1
            || plan.head_size_v < 1
            || (plan.value_in_key && plan.head_size_v > plan.head_size)
        {
            return Err(Error::Unsupported(format!(
                "layer {:?} has {heads} heads and {kv_heads} KV heads of size {}",
                plan.name, plan.head_size
            )));
        }
        if plan
            .alibi_slopes
            .as_ref()
            .is_some_and(|slopes| slopes.len() as i64 != heads)
        {
            let reason = format!(
                "layer {:?}: as many ALiBi slopes as heads expected",
                plan.name
            );
            return Err(Error::Unsupported(reason));
        }
        const KINDS: [&str; 3] = ["decoder", "encoder", "encoder_only"];
        if !KINDS.contains(&plan.attn_type.as_str()) {
            let reason = format!(
                "layer {:?}: attention of type {:?}",
                plan.name, plan.attn_type
            );
            return Err(Error::Unsupported(reason));
        }
        let cap = plan
            .logits_soft_cap
            .map(|cap| cap.get())
            .filter(|cap| *cap != 0.0);
        let scale = plan.scale.get() / cap.unwrap_or(1.0);
        let sink_scores = match &sinks {
            Some(sinks) if sinks.shape() != [heads as i32] => {
                let reason = format!("layer {:?}: sinks of shape {:?}", plan.name, sinks.shape());
                return Err(Error::Unsupported(reason));
            }
            Some(sinks) => {
                let shape = [1, kv_heads as i32, (heads / kv_heads) as i32, 1, 1];
                Some(mlx.reshape(&mlx.cast(sinks, DType::Float32)?, &shape)?)
            }
            None => None,
        };
        Ok(Layer {
            kernel: PagedKernel::new(mlx, &plan, sinks.as_ref())?,
            scale: scalar(mlx, scale, DType::Float32)?,
            soft_cap: cap
                .map(|cap| scalar(mlx, cap, DType::Float32))
                .transpose()?,
            sinks,
            sink_scores,
            plan,
        })
    }

    /// Whether `mx.fast` computes this layer: it caps no scores, adds no float32 bias to 16-bit
    /// ones and rotates no sizes apart.
    pub fn can_fuse(&self) -> bool {
        self.plan.reference() == Reference::Fused
    }

    /// Whether it attends over the step's own tokens, without a cache.
    pub fn is_encoder(&self) -> bool {
        matches!(self.plan.attn_type.as_str(), "encoder" | "encoder_only")
    }

    /// Elements of a cache row `[kv_heads, head_size + head_size_v]`, or `[kv_heads, head_size]` where
    /// values are part of the keys.
    pub fn row_shape(&self) -> [i32; 2] {
        let (first, size) = self.value_range();
        [
            self.plan.num_kv_heads as i32,
            (first + size).max(self.plan.head_size as i32),
        ]
    }

    /// Where a row's value begins, and its size.
    fn value_range(&self) -> (i32, i32) {
        let first = if self.plan.value_in_key {
            0
        } else {
            self.plan.head_size
        };
        (first as i32, self.plan.head_size_v as i32)
    }
}

/// Keys and values of the step side by side: `[t, kv_heads, head_size + head_size_v]`.
pub fn encode_rows(mlx: &Mlx, keys_values: &[&Array]) -> Result<Array> {
    match keys_values {
        [keys] => Ok((*keys).clone()),
        both => Ok(mlx.concatenate(both, 2)?),
    }
}

/// The cache `[rows, kv_heads, d]` with the step's keys and values at `slots [t]`, by one scatter.
/// In place if the caller keeps no other handle of `cache` when the result is evaluated.
pub fn write(mlx: &Mlx, cache: &Array, slots: &Array, keys_values: &[&Array]) -> Result<Array> {
    let rows = encode_rows(mlx, keys_values)?;
    let shape = rows.shape();
    let rows = mlx.reshape(&rows, &[shape[0], 1, shape[1], shape[2]])?;
    let rows = match dtype(cache) {
        Some(dtype) => mlx.ensure(rows, dtype)?,
        None => rows,
    };
    Ok(mlx.scatter_rows(cache, slots, &rows)?)
}

/// Attention of `q [t, heads, d]` over `rows [n, kv_heads, d + d_v]`: `[t, heads, d_v]` in the dtype
/// of `q`. With `selected`, to the keys at those positions alone; see `Op::SparseAttention`.
pub fn attend(
    mlx: &Mlx,
    layer: &Layer,
    layout: &Layout,
    fused: bool,
    q: &Array,
    rows: &Array,
    selected: Option<&Array>,
) -> Result<Array> {
    let heads = layer.plan.num_heads as i32;
    let value_size = layer.plan.head_size_v as i32;
    let q_dtype = dtype(q).unwrap_or(DType::Float32);
    let mut results = Vec::with_capacity(layout.batches.len());
    for batch in &layout.batches {
        let queries = match &batch.query_rows {
            Some(rows) => mlx.take(q, rows, 0)?,
            None => q.clone(),
        };
        let attend = if fused { attend_fused } else { attend_explicit };
        let sparse = match selected {
            Some(selected) => only_selected(mlx, batch, selected, fused)?,
            None => None,
        };
        let batch = sparse.as_ref().unwrap_or(batch);
        results.push(attend(mlx, layer, batch, &queries, rows, q_dtype)?);
    }
    let result = match results.len() {
        0 => return Ok(mlx.zeros(&[q.shape()[0], heads, value_size], q_dtype)?),
        1 => results.remove(0),
        _ => mlx.concatenate(&results.iter().collect::<Vec<_>>(), 0)?,
    };
    match &layout.result_rows {
        Some(rows) => Ok(mlx.take(&result, rows, 0)?),
        None => Ok(result),
    }
}

/// By `mx.fast.scaled_dot_product_attention`.
fn attend_fused(
    mlx: &Mlx,
    layer: &Layer,
    batch: &Batch,
    queries: &Array,
    rows: &Array,
    q_dtype: DType,
) -> Result<Array> {
    let (heads, size) = (layer.plan.num_heads as i32, layer.plan.head_size as i32);
    let keys_values = mlx.take(rows, &batch.key_rows, 0)?;
    let keys_values = mlx.transpose(&mlx.ensure(keys_values, q_dtype)?, &[0, 2, 1, 3])?;
    let keys = mlx.slice(&keys_values, 3, 0, size, 1)?;
    let values = mlx.slice(&keys_values, 3, size, 2 * size, 1)?;
    let queries = if batch.rows == 1 {
        mlx.reshape(queries, &[batch.size, heads, 1, size])?
    } else {
        let queries = mlx.reshape(queries, &[batch.size, batch.rows, heads, size])?;
        mlx.transpose(&queries, &[0, 2, 1, 3])?
    };
    let mask = match &batch.mask {
        Mask::Array(mask) => Some(mask),
        Mask::None | Mask::Causal => None,
    };
    let sinks = layer
        .sinks
        .as_ref()
        .map(|sinks| mlx.ensure(sinks.clone(), q_dtype))
        .transpose()?;
    let scale = layer.plan.scale.get() as f32;
    let causal = matches!(batch.mask, Mask::Causal);
    let result = mlx.attention(
        [&queries, &keys, &values],
        scale,
        causal,
        mask,
        sinks.as_ref(),
    )?;
    let result = if batch.rows == 1 {
        result
    } else {
        mlx.transpose(&result, &[0, 2, 1, 3])?
    };
    Ok(mlx.reshape(&result, &[batch.size * batch.rows, heads, size])?)
}

/// By matrix products and a softmax, all in float32. Everything has the axes `[b, 1, kv_heads, ..]`,
/// the second one being what a gather of rows leaves.
fn attend_explicit(
    mlx: &Mlx,
    layer: &Layer,
    batch: &Batch,
    queries: &Array,
    rows: &Array,
    q_dtype: DType,
) -> Result<Array> {
    let [heads, kv_heads] = [layer.plan.num_heads as i32, layer.plan.num_kv_heads as i32];
    let (size, (value, value_size)) = (layer.plan.head_size as i32, layer.value_range());
    let (pieces, num_rows, num_keys) = (batch.size, batch.rows, batch.keys);
    let share = heads / kv_heads;

    let keys_values = mlx.gather_rows(rows, &batch.key_rows)?;
    let keys = mlx.slice(&keys_values, 4, 0, size, 1)?;
    let keys = mlx.transpose(&mlx.ensure(keys, DType::Float32)?, &[0, 2, 3, 4, 1])?;
    let values = mlx.slice(&keys_values, 4, value, value + value_size, 1)?;
    let values = mlx.transpose(&mlx.ensure(values, DType::Float32)?, &[0, 2, 3, 1, 4])?;

    let mask = match &batch.mask {
        Mask::Array(mask) => Some(mask),
        Mask::None | Mask::Causal => None,
    };
    let per_head = mask.is_some_and(|mask| mask.shape()[2] != 1);
    let is_split = layer.sink_scores.is_some() || per_head || (mask.is_some() && num_rows > 1);
    // One product scales and adds the mask where nothing comes between.
    let scaled_mask = mask.filter(|_| layer.soft_cap.is_none() && !is_split);

    // Query heads that share a KV head are rows of one product.
    let queries = match scaled_mask {
        Some(_) => mlx.ensure(queries.clone(), DType::Float32)?,
        None => mlx.multiply(queries, &layer.scale)?,
    };
    let queries = if num_rows == 1 {
        queries
    } else {
        let queries = mlx.reshape(&queries, &[pieces, num_rows, kv_heads, share, size])?;
        mlx.transpose(&queries, &[0, 2, 3, 1, 4])?
    };
    let flat = |columns| [pieces, 1, kv_heads, share * num_rows, columns];
    let split = [pieces, kv_heads, share, num_rows, num_keys];
    let queries = mlx.reshape(&queries, &flat(size))?;
    let mut scores = match scaled_mask {
        Some(mask) => mlx.addmm(mask, &queries, &keys, layer.plan.scale.get() as f32)?,
        None => mlx.matmul(&queries, &keys)?,
    };
    if let Some(cap) = &layer.soft_cap {
        scores = mlx.multiply(&mlx.tanh(&scores)?, cap)?;
    }
    if is_split {
        scores = mlx.reshape(&scores, &split)?;
    }
    scores = match mask.filter(|_| scaled_mask.is_none()) {
        Some(mask) if per_head => mlx.add(&scores, &mlx.reshape(mask, &split)?)?,
        Some(mask) => mlx.add(&scores, mask)?,
        None => scores,
    };
    let mut weights = match &layer.sink_scores {
        Some(sinks) => {
            let sinks = mlx.broadcast_to(sinks, &[pieces, kv_heads, share, num_rows, 1])?;
            let scores = mlx.concatenate(&[&scores, &sinks], 4)?;
            mlx.slice(&mlx.softmax(&scores, 4)?, 4, 0, num_keys, 1)?
        }
        None => mlx.softmax(&scores, -1)?,
    };
    if is_split {
        weights = mlx.reshape(&weights, &flat(num_keys))?;
    }
    let mut result = mlx.matmul(&weights, &values)?;
    if num_rows > 1 {
        result = mlx.reshape(&result, &[pieces, kv_heads, share, num_rows, value_size])?;
        result = mlx.transpose(&result, &[0, 3, 1, 2, 4])?;
    }
    let result = mlx.reshape(&result, &[pieces * num_rows, heads, value_size])?;
    Ok(mlx.ensure(result, q_dtype)?)
}
