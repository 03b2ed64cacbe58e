// SPDX-License-Identifier: Apache-2.0
//! The paged KV cache: one array per cache, updated in place.
//!
//! A cache is `[(num_blocks + 1) * block_size, kv_heads, head_size + head_size_v]`: a token's keys
//! and values lie side by side, so one scatter writes both and one gather reads both. Where values are
//! the first part of keys, it is `[.., head_size]`. The last block
//! is the dump block: padding is written there and nothing is read from it. MLX updates the array in
//! place when nothing else refers to it, which is why a [`Cache`] gives up its handle for the new one
//! before anything is evaluated.

use super::attention::{Layer, Pages};
use super::error::{Error, Result};
use super::memory;
use super::mlx::{Array, Mlx};
use lowering::ir::DType;

/// What one cache is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Layers that share the cache, by name: their blocks are distinct.
    pub layers: Vec<String>,
    /// Its size.
    pub pages: Pages,
    /// Element type.
    pub dtype: DType,
}

/// One cache.
pub struct Cache {
    pub array: Array,
    pub pages: Pages,
}

/// The caches of a model.
pub struct KvCache {
    pub caches: Vec<Cache>,
    /// Index into `caches` by the plan's layer.
    cache_of_layer: Vec<Option<usize>>,
}

impl KvCache {
    /// Allocates and clears the caches.
    ///
    /// # Errors
    /// An unknown or doubly given layer, layers of different shape in one cache, a size of zero, or
    /// more memory than MLX's limit leaves.
    pub fn allocate(mlx: &Mlx, layers: &[Layer], specs: &[CacheSpec]) -> Result<KvCache> {
        let mut cache_of_layer = vec![None; layers.len()];
        let mut shapes = Vec::with_capacity(specs.len());
        let mut total = 0u64;
        for (index, spec) in specs.iter().enumerate() {
            let (shape, bytes) = claim(layers, spec, index, &mut cache_of_layer)?;
            total = total.saturating_add(bytes);
            shapes.push(shape);
        }
        // A layer that shares another's keys and values reads that layer's cache.
        for (index, layer) in layers.iter().enumerate() {
            if let Some(target) = &layer.plan.kv_sharing_target {
                let target = layers.iter().position(|other| other.plan.name == *target);
                cache_of_layer[index] = target.and_then(|target| cache_of_layer[target]);
            }
        }
        memory::require("the KV cache", total, "allocate fewer blocks")?;
        let mut caches = Vec::with_capacity(specs.len());
        for (spec, shape) in specs.iter().zip(shapes) {
            let array = mlx.zeros(&shape, spec.dtype)?;
            // One at a time: evaluating all at once would hold temporaries of all.
            mlx.eval([&array])?;
            caches.push(Cache {
                array,
                pages: spec.pages,
            });
        }
        Ok(KvCache {
            caches,
            cache_of_layer,
        })
    }

    /// Index of the cache of a plan's layer.
    ///
    /// # Errors
    /// The layer has none.
    pub fn index(&self, layers: &[Layer], layer: usize) -> Result<usize> {
        self.cache_of_layer
            .get(layer)
            .copied()
            .flatten()
            .ok_or_else(|| {
                let name = layers
                    .get(layer)
                    .map_or("?", |layer| layer.plan.name.as_str());
                Error::KvCache(format!("layer {name:?} has none; allocate it first"))
            })
    }

    /// Bytes of all caches.
    pub fn nbytes(&self) -> usize {
        self.caches.iter().map(|cache| cache.array.nbytes()).sum()
    }
}

/// Gives the spec's layers the cache of that index; returns its shape and size.
fn claim(
    layers: &[Layer],
    spec: &CacheSpec,
    index: usize,
    cache_of_layer: &mut [Option<usize>],
) -> Result<([i32; 3], u64)> {
    let Pages {
        num_blocks,
        block_size,
    } = spec.pages;
    if num_blocks == 0 || block_size == 0 || !spec.dtype.is_float() {
        let reason = format!(
            "{num_blocks} blocks of {block_size} tokens in {} for {:?}",
            spec.dtype, spec.layers
        );
        return Err(Error::KvCache(reason));
    }
    let mut row = None;
    for name in &spec.layers {
        let position = layers
            .iter()
            .position(|layer| layer.plan.name == *name)
            .ok_or_else(|| Error::KvCache(format!("the model has no layer {name:?}")))?;
        if cache_of_layer[position].replace(index).is_some() {
            return Err(Error::KvCache(format!("layer {name:?} is given twice")));
        }
        let shape = layers[position].row_shape();
        if row.is_some_and(|row| row != shape) {
            let reason = format!("layers of different shape share one: {:?}", spec.layers);
            return Err(Error::KvCache(reason));
        }
        row = Some(shape);
    }
    let [heads, size] = row.ok_or_else(|| Error::KvCache("a cache of no layer".to_owned()))?;
    let rows = num_blocks
        .checked_add(1)
        .and_then(|blocks| blocks.checked_mul(block_size))
        .and_then(|rows| i32::try_from(rows).ok())
        .ok_or_else(|| {
            Error::KvCache(format!(
                "{num_blocks} blocks of {block_size} tokens are too many"
            ))
        })?;
    let bytes = [heads as u64, size as u64, spec.dtype.size() as u64]
        .into_iter()
        .fold(rows as u64, u64::saturating_mul);
    Ok(([rows, heads, size], bytes))
}
