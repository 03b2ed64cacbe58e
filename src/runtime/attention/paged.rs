// SPDX-License-Identifier: Apache-2.0
//! Decoding by the kernel that reads the paged cache in place: what it takes of the metadata, and its
//! launches. Nothing is gathered.

use super::Metadata;
use super::layout::int_array;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx, host_array, scalar};
use lowering::ir::DType;
use lowering::plan::{AttentionLayer, KernelChoice, PAGED_REDUCE};

/// A layer's kernels, with what they read besides the step and the cache.
pub struct PagedKernel {
    /// One launch, where the keys of a request are one threadgroup's.
    whole: KernelChoice,
    /// Where they are split, and what joins the splits.
    split: KernelChoice,
    reduce: KernelChoice,
    dtype: DType,
    window: usize,
    kv_heads: usize,
    scale: Array,
    soft_cap: Array,
    sinks: Array,
    alibi_slopes: Array,
}

/// Launches kernels: a choice, the sizes of the step, inputs.
pub type Launcher<'a> =
    dyn FnMut(&KernelChoice, &[(&'static str, i64)], &[&Array]) -> Result<Vec<Array>> + 'a;

/// A step in which every request decodes one token, as the kernel reads it.
pub struct Paged {
    /// Block ids `[requests, max_blocks]`, their columns padded to a power of two so that
    /// consecutive steps have one shape.
    pub block_table: Array,
    /// `[requests + 1]`
    pub query_start: Array,
    /// `[requests]`
    pub seq_lens: Array,
    pub requests: usize,
    pub max_blocks: usize,
    pub block_size: usize,
}

/// Keys that are worth a threadgroup of their own.
const KEYS_OF_SPLIT: usize = 1024;

/// Most splits of a request.
const MOST_SPLITS: usize = 16;

/// Threadgroups that fill the largest chips; splitting further only adds sums.
const ENOUGH_THREADGROUPS: usize = 512;

impl PagedKernel {
    /// The kernels of a layer for which the plan chose one.
    pub fn new(mlx: &Mlx, plan: &AttentionLayer, sinks: Option<&Array>) -> Result<Option<Self>> {
        let Some(whole) = plan.kernel.clone() else {
            return Ok(None);
        };
        let Some(dtype) = whole.dtypes.get("T").copied() else {
            return Ok(None);
        };
        let mut split = whole.clone();
        split.dtypes.insert("O".to_owned(), DType::Float32);
        let of_reduce = ["num_heads", "head_size_v", "has_sinks"];
        let sizes = whole.sizes.iter();
        let reduce = KernelChoice {
            name: PAGED_REDUCE.to_owned(),
            sizes: sizes
                .filter(|(name, _)| of_reduce.contains(&name.as_str()))
                .map(|(name, size)| (name.clone(), *size))
                .collect(),
            dtypes: [("T".to_owned(), dtype)].into(),
        };
        let float = |value: f64| scalar(mlx, value, DType::Float32);
        let sinks = match sinks {
            Some(sinks) => mlx.cast(sinks, DType::Float32)?,
            None => floats(&[0.0])?,
        };
        let slopes = plan.alibi_slopes.as_deref().unwrap_or_default();
        let slopes: Vec<f32> = slopes.iter().map(|slope| slope.get() as f32).collect();
        let found = PagedKernel {
            whole,
            split,
            reduce,
            dtype,
            window: plan.sliding_window.unwrap_or(0).max(0) as usize,
            kv_heads: plan.num_kv_heads.max(1) as usize,
            scale: float(plan.scale.get())?,
            soft_cap: float(plan.logits_soft_cap.map_or(0.0, |cap| cap.get()))?,
            sinks,
            alibi_slopes: floats(if slopes.is_empty() { &[0.0] } else { &slopes })?,
        };
        // Once, not with every step that reads them.
        mlx.eval([&found.sinks])?;
        Ok(Some(found))
    }

    /// Whether it reads a cache of such elements and blocks.
    pub fn takes(&self, cache: Option<DType>, block_size: usize) -> bool {
        let step = [
            ("num_tokens", 1),
            ("num_requests", 1),
            ("num_slots", block_size as i64),
            ("max_blocks", 1),
            ("block_size", block_size as i64),
            ("splits", 1),
        ];
        cache == Some(self.dtype) && self.whole.launch(&step).is_ok()
    }

    /// In how many parts the keys of each request are read.
    fn splits(&self, step: &Paged) -> usize {
        let mut keys = step.max_blocks * step.block_size;
        if self.window > 0 {
            keys = keys.min(self.window + step.block_size);
        }
        let mut splits = (keys / KEYS_OF_SPLIT).clamp(1, MOST_SPLITS);
        while splits > 1 && splits * step.requests * self.kv_heads > ENOUGH_THREADGROUPS {
            splits /= 2;
        }
        splits
    }

    /// Attention of `q [t, heads, d]` over the cache `[slots, kv_heads, d + d_v]`, which holds the
    /// step's own rows: `[t, heads, d_v]`.
    pub fn attend(
        &self,
        mlx: &Mlx,
        step: &Paged,
        q: &Array,
        cache: &Array,
        launch: &mut Launcher,
    ) -> Result<Array> {
        let splits = self.splits(step);
        let tokens = q.shape()[0];
        let sizes = [
            ("num_tokens", i64::from(tokens)),
            ("num_requests", step.requests as i64),
            ("num_slots", i64::from(cache.shape()[0])),
            ("max_blocks", step.max_blocks as i64),
            ("block_size", step.block_size as i64),
            ("splits", splits as i64),
        ];
        let inputs = [
            q,
            cache,
            &step.block_table,
            &step.query_start,
            &step.seq_lens,
            &self.scale,
            &self.soft_cap,
            &self.sinks,
            &self.alibi_slopes,
        ];
        let kernel = if splits > 1 { &self.split } else { &self.whole };
        let found = launch(kernel, &sizes, &inputs)?;
        let result = match found.as_slice() {
            [partial, sums, ..] if splits > 1 => {
                let sizes = [("num_tokens", i64::from(tokens)), ("splits", splits as i64)];
                launch(&self.reduce, &sizes, &[partial, sums, &self.sinks])?
            }
            _ => found,
        };
        let result = result.first().ok_or_else(|| {
            crate::runtime::error::Error::Internal("a kernel without a result".to_owned())
        })?;
        let shape = [tokens, q.shape()[1], self.value_size()];
        Ok(mlx.reshape(result, &shape)?)
    }

    fn value_size(&self) -> i32 {
        self.whole
            .sizes
            .get("head_size_v")
            .map_or(0, |size| *size as i32)
    }
}

impl Paged {
    /// The step, if the kernel takes it: requests that decode a token each, which sees those before.
    pub fn new(metadata: &Metadata, block_size: usize) -> Result<Option<Paged>> {
        let requests = metadata.num_reqs();
        let decodes = (0..requests).all(|request| metadata.rows(request).len() <= 1);
        let causal = metadata.causal.iter().all(|causal| *causal) && metadata.spans.is_empty();
        if requests == 0 || !decodes || !causal {
            return Ok(None);
        }
        let used: Vec<usize> = (0..requests)
            .map(|request| match metadata.rows(request).len() {
                0 => 0,
                _ => (metadata.seq_lens[request] as usize).div_ceil(block_size),
            })
            .collect();
        let max_blocks = used.iter().copied().max().unwrap_or(0).next_power_of_two();
        let mut table = vec![0; requests * max_blocks];
        let rows = table.chunks_mut(max_blocks).zip(&used).enumerate();
        for (request, (row, used)) in rows {
            let blocks = &metadata.block_table[request * metadata.max_blocks..];
            row[..*used].copy_from_slice(&blocks[..*used]);
        }
        Ok(Some(Paged {
            block_table: int_array(&table, &[requests as i32, max_blocks as i32])?,
            query_start: int_array(&metadata.query_start_loc, &[requests as i32 + 1])?,
            seq_lens: int_array(&metadata.seq_lens, &[requests as i32])?,
            requests,
            max_blocks,
            block_size,
        }))
    }

    /// The arrays, which differ between steps of one shape.
    pub fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        [
            &mut self.block_table,
            &mut self.query_start,
            &mut self.seq_lens,
        ]
        .into_iter()
    }

    /// What decides the launches besides the layer.
    pub fn shape(&self) -> [i32; 3] {
        [self.requests, self.max_blocks, self.block_size].map(|size| size as i32)
    }
}

fn floats(values: &[f32]) -> Result<Array> {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    Ok(host_array(&bytes, &[values.len() as i32], DType::Float32)?)
}
