// SPDX-License-Identifier: Apache-2.0
//! Decoding by the kernel that reads the paged cache in place: what it takes of the metadata, and its
//! launches. Nothing is gathered.

use super::Metadata;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, float_array, int_array, scalar};
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
            None => float_array(&[0.0], &[1])?,
        };
        let slopes: Vec<f32> = match &plan.alibi_slopes {
            Some(slopes) => slopes.iter().map(|slope| slope.get() as f32).collect(),
            None => vec![0.0],
        };
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
            alibi_slopes: float_array(&slopes, &[slopes.len() as i32])?,
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
        let result = result
            .first()
            .ok_or_else(|| Error::Internal("a kernel without a result".to_owned()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::kernels::Specialisation;
    use crate::runtime::testing::{cpu, values};
    use lowering::ir::Float;
    use lowering::plan::{PAGED_DECODE, choose_paged};

    fn layer(window: Option<i64>) -> AttentionLayer {
        let mut layer = AttentionLayer {
            head_size_v: 32,
            scale: Float::new(0.125),
            sliding_window: window,
            ..AttentionLayer::decoder("attn", [4, 2], 64)
        };
        layer.kernel = choose_paged(&layer, DType::Float32);
        layer
    }

    /// Requests of such lengths that decode a token each; their blocks count up.
    fn metadata(lengths: &[i32], block_size: i32) -> Metadata {
        let blocks = lengths
            .iter()
            .map(|length| (length + block_size - 1) / block_size);
        let max_blocks = blocks.max().unwrap_or(0) as usize;
        Metadata {
            block_table: (0..(lengths.len() * max_blocks) as i32).collect(),
            max_blocks,
            query_start_loc: (0..=lengths.len() as i32).collect(),
            seq_lens: lengths.to_vec(),
            num_actual_tokens: lengths.len(),
            causal: vec![true; lengths.len()],
            ..Metadata::default()
        }
    }

    /// The launches of a step: names and sizes.
    fn launches(window: Option<i64>, lengths: &[i32]) -> Vec<(String, Vec<(&'static str, i64)>)> {
        let mlx = cpu();
        let kernel = PagedKernel::new(&mlx, &layer(window), None)
            .unwrap()
            .unwrap();
        let step = Paged::new(&metadata(lengths, 16), 16).unwrap().unwrap();
        let tokens = lengths.len() as i32;
        let zeros = |shape: &[i32]| mlx.zeros(shape, DType::Float32).unwrap();
        let (q, cache) = (zeros(&[tokens, 4, 64]), zeros(&[1600, 2, 96]));
        let mut found = Vec::new();
        let result = kernel.attend(&mlx, &step, &q, &cache, &mut |choice, step, inputs| {
            let sizes = choice.sizes(step);
            let specialisation = Specialisation::new(&choice.name, &sizes, &choice.dtypes)?;
            specialisation.check(inputs)?;
            found.push((choice.name.clone(), step.to_vec()));
            let outputs = specialisation.outputs().into_iter();
            outputs
                .map(|of| {
                    let shape: Vec<i32> = of
                        .shape
                        .iter()
                        .filter_map(|dim| dim.fixed())
                        .map(|size| size as i32)
                        .collect();
                    Ok(mlx.zeros(&shape, of.dtype)?)
                })
                .collect()
        });
        assert_eq!(result.unwrap().shape(), [tokens, 4, 32]);
        found
    }

    #[test]
    fn long_contexts_are_split_and_windows_are_not() {
        let names = |window, lengths: &[i32]| -> Vec<String> {
            launches(window, lengths)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names(None, &[900, 3]), [PAGED_DECODE]);
        assert_eq!(names(None, &[1025, 3]), [PAGED_DECODE, PAGED_REDUCE]);
        assert_eq!(names(Some(512), &[1025, 3]), [PAGED_DECODE]);
        let (_, sizes) = &launches(None, &[4100])[0];
        assert!(sizes.contains(&("splits", 8)) && sizes.contains(&("max_blocks", 512)));
        // Many requests fill the machine by themselves.
        assert_eq!(names(None, &[1025; 300]), [PAGED_DECODE]);
    }

    #[test]
    fn block_tables_are_padded_to_shapes_that_stay() {
        let shape = |length: i32| {
            Paged::new(&metadata(&[length, 5], 16), 16)
                .unwrap()
                .unwrap()
                .shape()
        };
        assert_eq!(shape(65), [2, 8, 16]);
        assert_eq!(shape(65), shape(128));
        assert_ne!(shape(128), shape(129));
        let step = Paged::new(&metadata(&[33, 5], 16), 16).unwrap().unwrap();
        // Three blocks and one of padding; a block, and padding.
        let table = values(&cpu(), &step.block_table);
        assert_eq!(table, [0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn prompts_and_foreign_caches_are_not_taken() {
        let mut prompt = metadata(&[9], 16);
        prompt.query_start_loc = vec![0, 2];
        assert!(Paged::new(&prompt, 16).unwrap().is_none());
        let mut seeing = metadata(&[9], 16);
        seeing.causal = vec![false];
        assert!(Paged::new(&seeing, 16).unwrap().is_none());
        let kernel = PagedKernel::new(&cpu(), &layer(None), None)
            .unwrap()
            .unwrap();
        assert!(kernel.takes(Some(DType::Float32), 16));
        assert!(!kernel.takes(Some(DType::Bfloat16), 16));
        assert!(!kernel.takes(None, 16) && !kernel.takes(Some(DType::Float32), 0));
    }
}
