// SPDX-License-Identifier: Apache-2.0
//! Attention by the kernels that read the paged cache in place: their launches. Nothing is gathered.

use super::paged_step::Paged;
use crate::runtime::error::{Error, Result};
use crate::runtime::kernels::Launcher;
use crate::runtime::mlx::{Array, Mlx, float_array, scalar};
use lowering::ir::DType;
use lowering::plan::{AttentionLayer, KernelChoice, PAGED_REDUCE};

/// A layer's kernels, with what they read besides the step and the cache.
pub struct PagedKernel {
    /// For steps in which every request decodes a token.
    decode: Option<Decode>,
    /// For prompts, alone or with requests that decode.
    prefill: Option<KernelChoice>,
    value_size: i32,
    window: usize,
    kv_heads: usize,
    scale: Array,
    soft_cap: Array,
    sinks: Array,
    alibi_slopes: Array,
}

/// What decodes.
struct Decode {
    /// One launch, where the keys of a request are one threadgroup's.
    whole: KernelChoice,
    /// Where they are split, and what joins the splits.
    split: KernelChoice,
    reduce: KernelChoice,
}

/// Keys that are worth a threadgroup of their own.
const KEYS_OF_SPLIT: usize = 1024;

/// Most splits of a request.
const MOST_SPLITS: usize = 16;

/// Threadgroups that fill the largest chips; splitting further only adds sums.
const ENOUGH_THREADGROUPS: usize = 512;

impl Decode {
    fn new(whole: &KernelChoice) -> Decode {
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
            dtypes: (whole.dtypes.get("T").into_iter())
                .map(|dtype| ("T".to_owned(), *dtype))
                .collect(),
        };
        Decode {
            whole: whole.clone(),
            split,
            reduce,
        }
    }
}

/// Whether a kernel reads a cache of such elements and blocks.
fn takes(kernel: &KernelChoice, cache: Option<DType>, block_size: usize) -> bool {
    let step = [
        ("num_tokens", 1),
        ("num_requests", 1),
        ("num_slots", block_size as i64),
        ("max_blocks", 1),
        ("block_size", block_size as i64),
        ("splits", 1),
        ("num_tiles", 1),
    ];
    cache.is_some() && cache == kernel.dtypes.get("T").copied() && kernel.launch(&step).is_ok()
}

impl PagedKernel {
    /// The kernels of a layer for which the plan chose any.
    pub fn new(mlx: &Mlx, plan: &AttentionLayer, sinks: Option<&Array>) -> Result<Option<Self>> {
        if plan.kernel.is_none() && plan.prefill.is_none() {
            return Ok(None);
        }
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
            decode: plan.kernel.as_ref().map(Decode::new),
            prefill: plan.prefill.clone(),
            value_size: plan.head_size_v as i32,
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

    /// Whether it decodes from a cache of such elements and blocks.
    pub fn decodes(&self, cache: Option<DType>, block_size: usize) -> bool {
        let decode = self.decode.as_ref();
        decode.is_some_and(|decode| takes(&decode.whole, cache, block_size))
    }

    /// Whether it computes prompts from such a cache.
    pub fn takes_prompts(&self, cache: Option<DType>, block_size: usize) -> bool {
        let prefill = self.prefill.as_ref();
        prefill.is_some_and(|prefill| takes(prefill, cache, block_size))
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
        let result = match &step.tiles {
            Some(tiles) => self.attend_prompts(step, tiles, q, cache, launch)?,
            None => self.decode(step, q, cache, launch)?,
        };
        let shape = [q.shape()[0], q.shape()[1], self.value_size];
        Ok(mlx.reshape(&result, &shape)?)
    }

    /// What both kernels read, around what the second one reads besides.
    fn inputs<'a>(
        &'a self,
        step: &'a Paged,
        [q, cache]: [&'a Array; 2],
        tiles: Option<&'a Array>,
    ) -> Vec<&'a Array> {
        let of_step = [&step.block_table, &step.query_start, &step.seq_lens];
        let of_layer = [&self.scale, &self.soft_cap, &self.sinks, &self.alibi_slopes];
        let all = [q, cache].into_iter().chain(of_step).chain(tiles);
        all.chain(of_layer).collect()
    }

    fn decode(
        &self,
        step: &Paged,
        q: &Array,
        cache: &Array,
        launch: &mut Launcher,
    ) -> Result<Array> {
        let decode = self.decode.as_ref().ok_or_else(no_kernel)?;
        let splits = self.splits(step);
        let tokens = i64::from(q.shape()[0]);
        let sizes = [
            sizes(step, q, cache).as_slice(),
            &[("splits", splits as i64)],
        ]
        .concat();
        let inputs = self.inputs(step, [q, cache], None);
        let kernel = if splits > 1 {
            &decode.split
        } else {
            &decode.whole
        };
        let found = launch(kernel, &sizes, &inputs)?;
        match found.as_slice() {
            [partial, sums, ..] if splits > 1 => {
                let sizes = [("num_tokens", tokens), ("splits", splits as i64)];
                only(launch(
                    &decode.reduce,
                    &sizes,
                    &[partial, sums, &self.sinks],
                )?)
            }
            _ => only(found),
        }
    }

    fn attend_prompts(
        &self,
        step: &Paged,
        tiles: &Array,
        q: &Array,
        cache: &Array,
        launch: &mut Launcher,
    ) -> Result<Array> {
        let prefill = self.prefill.as_ref().ok_or_else(no_kernel)?;
        let num_tiles = [("num_tiles", i64::from(step.num_tiles()))];
        let sizes = [sizes(step, q, cache).as_slice(), &num_tiles].concat();
        let inputs = self.inputs(step, [q, cache], Some(tiles));
        only(launch(prefill, &sizes, &inputs)?)
    }
}

/// Sizes that both kernels have.
fn sizes(step: &Paged, q: &Array, cache: &Array) -> [(&'static str, i64); 5] {
    [
        ("num_tokens", i64::from(q.shape()[0])),
        ("num_requests", step.requests as i64),
        ("num_slots", i64::from(cache.shape()[0])),
        ("max_blocks", step.max_blocks as i64),
        ("block_size", step.block_size as i64),
    ]
}

fn no_kernel() -> Error {
    Error::Internal("a step for a kernel that the plan did not choose".to_owned())
}

/// The first result.
fn only(results: Vec<Array>) -> Result<Array> {
    let mut results = results.into_iter();
    let first = results.next();
    first.ok_or_else(|| Error::Internal("a kernel without a result".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::attention::Metadata;
    use crate::runtime::kernels::Specialisation;
    use crate::runtime::testing::cpu;
    use lowering::ir::Float;
    use lowering::plan::{
        PAGED_DECODE, PAGED_PREFILL, PromptSizes, Reference, choose_paged, choose_prefill,
    };

    fn layer(window: Option<i64>) -> AttentionLayer {
        let mut layer = AttentionLayer {
            head_size_v: 32,
            scale: Float::new(0.125),
            sliding_window: window,
            ..AttentionLayer::decoder("attn", [4, 2], 64)
        };
        layer.kernel = choose_paged(&layer, DType::Float32);
        layer.prefill = choose_prefill(&layer, DType::Float32);
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
        let step = Paged::new(&metadata(lengths, 16), 16).unwrap().unwrap();
        launched(&layer(window), &step, lengths.len() as i32)
    }

    fn launched(
        layer: &AttentionLayer,
        step: &Paged,
        tokens: i32,
    ) -> Vec<(String, Vec<(&'static str, i64)>)> {
        let mlx = cpu();
        let kernel = PagedKernel::new(&mlx, layer, None).unwrap().unwrap();
        let zeros = |shape: &[i32]| mlx.zeros(shape, DType::Float32).unwrap();
        let (q, cache) = (zeros(&[tokens, 4, 64]), zeros(&[1600, 2, 96]));
        let mut found = Vec::new();
        let result = kernel.attend(&mlx, step, &q, &cache, &mut |choice, step, inputs| {
            let sizes = choice.sizes(step);
            let specialisation = Specialisation::new(&choice.name, &sizes, &choice.dtypes)?;
            specialisation.check(inputs)?;
            found.push((choice.name.clone(), step.to_vec()));
            let outputs = specialisation.launch.outputs.iter();
            outputs
                .map(|(shape, dtype)| Ok(mlx.zeros(shape, *dtype)?))
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
    fn prompts_are_one_launch_of_their_kernel() {
        let layer = layer(None);
        let mut metadata = metadata(&[40, 3, 70], 16);
        metadata.query_start_loc = vec![0, 20, 21, 51];
        metadata.num_actual_tokens = 51;
        let sizes = PromptSizes::new(&layer, 4, Reference::Products);
        let step = Paged::prompts(&metadata, 16, 52, &sizes).unwrap().unwrap();
        let found = launched(&layer, &step, 52);
        assert_eq!(found.len(), 1);
        let (name, sizes) = &found[0];
        assert_eq!(name, PAGED_PREFILL);
        // Two tiles, one, two, and one of padding.
        assert!(sizes.contains(&("num_tiles", 6)) && sizes.contains(&("num_tokens", 52)));
        // A kernel that did not pass its check is not there.
        let unusable = AttentionLayer {
            prefill: None,
            ..layer.clone()
        };
        let mlx = cpu();
        let kernel = PagedKernel::new(&mlx, &unusable, None).unwrap().unwrap();
        assert!(!kernel.takes_prompts(Some(DType::Float32), 16));
        let (q, cache) = (cpu_zeros(&[52, 4, 64]), cpu_zeros(&[1600, 2, 96]));
        let result = kernel.attend(&mlx, &step, &q, &cache, &mut |_, _, _| Ok(Vec::new()));
        assert!(result.err().unwrap().to_string().contains("did not choose"));
    }

    fn cpu_zeros(shape: &[i32]) -> Array {
        cpu().zeros(shape, DType::Float32).unwrap()
    }

    #[test]
    fn foreign_caches_are_not_taken() {
        let mlx = cpu();
        let kernel = PagedKernel::new(&mlx, &layer(None), None).unwrap().unwrap();
        let takes = |cache: Option<DType>, block_size: usize| {
            let both = [PagedKernel::decodes, PagedKernel::takes_prompts];
            both.map(|takes| takes(&kernel, cache, block_size))
        };
        assert_eq!(takes(Some(DType::Float32), 16), [true; 2]);
        assert_eq!(takes(Some(DType::Bfloat16), 16), [false; 2]);
        assert_eq!(takes(None, 16), [false; 2]);
        assert_eq!(takes(Some(DType::Float32), 0), [false; 2]);
        // Matrices of eight keys lie in one block.
        assert!(kernel.decodes(Some(DType::Float32), 4));
        assert!(!kernel.takes_prompts(Some(DType::Float32), 4));
        let none = AttentionLayer::decoder("attn", [4, 2], 64);
        assert!(PagedKernel::new(&mlx, &none, None).unwrap().is_none());
    }
}
