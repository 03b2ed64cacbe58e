// SPDX-License-Identifier: Apache-2.0
//! What a step's layers share: index arrays and masks, made on the host before anything is built.

use super::attention::{Kind, Layer, Layout, Pages, Source};
use super::error::{Error, Result};
use super::mlx::{Array, Device, Mlx, int_array};
use super::state::Batches;
use super::step::{Caches, Layers, StepMetadata};
use lowering::ir::DType;
use lowering::plan::{PromptSizes, Reference};

/// Scores of one product outside `mx.fast`, per head: bounds what a long prefill allocates.
const MAX_SCORES: usize = 1 << 22;

/// The operands of a step, and which of them each layer has.
#[derive(Default)]
pub struct Operands {
    layouts: Vec<Layout>,
    slots: Vec<Array>,
    batches: Vec<Batches>,
    /// By the plan's attention layer.
    of_layer: Vec<Option<OfLayer>>,
    /// Index into `batches` by the plan's state layer.
    of_state_layer: Vec<Option<usize>>,
}

/// Indices of what a layer has.
#[derive(Clone, Copy)]
struct OfLayer {
    layout: usize,
    slots: Option<usize>,
    cache: Option<usize>,
}

/// What an attention layer has.
pub struct LayerOperands<'a> {
    pub layout: &'a Layout,
    /// Where its tokens are written `[t]`; none where it writes nothing.
    pub slots: Option<&'a Array>,
    /// Index of its cache; none for an encoder.
    pub cache: Option<usize>,
}

/// Whether MLX's own attention runs the layer.
pub fn is_fused(mlx: &Mlx, layer: &Layer) -> bool {
    mlx.device() == Device::Gpu && layer.can_fuse()
}

impl Operands {
    /// Operands of the used layers. The metadata passed its checks.
    pub fn new(
        mlx: &Mlx,
        layers: Layers,
        [used, used_states]: [&[usize]; 2],
        caches: &Caches,
        metadata: &StepMetadata,
        num_tokens: usize,
    ) -> Result<Operands> {
        let mut operands = Operands {
            of_layer: vec![None; layers.attention.len()],
            of_state_layer: vec![None; layers.state.len()],
            ..Operands::default()
        };
        let mut kinds: Vec<(usize, Kind)> = Vec::new();
        let mut writes: Vec<(usize, Pages)> = Vec::new();
        for index in used {
            let layer = &layers.attention[*index];
            let group = metadata.group(layers.attention, *index)?;
            let of_group = &metadata.groups[group];
            let cache = match layer.is_encoder() {
                true => None,
                false => Some(caches.of_layer(layers.attention, *index)?),
            };
            let kind = kind(
                mlx,
                layer,
                cache.map(|(index, pages)| (caches.dtype(index), pages)),
            );
            let layout = match kinds
                .iter()
                .position(|known| *known == (group, kind.clone()))
            {
                Some(layout) => layout,
                None => {
                    let layout = Layout::new(of_group, &kind, num_tokens)?;
                    kinds.push((group, kind));
                    operands.layouts.push(layout);
                    operands.layouts.len() - 1
                }
            };
            let written = cache.filter(|_| layer.plan.kv_sharing_target.is_none());
            let slots = match written.map(|(_, pages)| (group, pages)) {
                None => None,
                Some(write) => match writes.iter().position(|known| *known == write) {
                    Some(slots) => Some(slots),
                    None => {
                        let slots = of_group.write_slots(num_tokens, write.1);
                        let shape = [slots.len() as i32];
                        operands.slots.push(int_array(&slots, &shape)?);
                        writes.push(write);
                        Some(operands.slots.len() - 1)
                    }
                },
            };
            operands.of_layer[*index] = Some(OfLayer {
                layout,
                slots,
                cache: cache.map(|(index, _)| index),
            });
        }
        let mut groups: Vec<usize> = Vec::new();
        for index in used_states {
            let group = metadata.state_group(layers, *index)?;
            let known = groups.iter().position(|other| *other == group);
            operands.of_state_layer[*index] = Some(known.unwrap_or(groups.len()));
            if known.is_none() {
                let batches = Batches::new(&metadata.state_groups[group], num_tokens)?;
                operands.batches.push(batches);
                groups.push(group);
            }
        }
        Ok(operands)
    }

    /// What an attention layer has.
    pub fn of_layer(&self, index: usize) -> Result<LayerOperands<'_>> {
        let found = self.of_layer.get(index).copied().flatten();
        let found = found.ok_or_else(|| {
            Error::Unsupported(format!("the plan has no attention layer {index}"))
        })?;
        Ok(LayerOperands {
            layout: &self.layouts[found.layout],
            slots: found.slots.map(|slots| &self.slots[slots]),
            cache: found.cache,
        })
    }

    /// The batches of a state layer.
    pub fn of_state_layer(&self, index: usize) -> Result<&Batches> {
        let found = self.of_state_layer.get(index).copied().flatten();
        let found = found
            .ok_or_else(|| Error::Unsupported(format!("the plan has no state layer {index}")))?;
        Ok(&self.batches[found])
    }

    /// The arrays, which differ between steps of one shape.
    pub fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        let layouts = self.layouts.iter_mut().flat_map(Layout::arrays_mut);
        let batches = self.batches.iter_mut().flat_map(Batches::arrays_mut);
        layouts.chain(&mut self.slots).chain(batches)
    }

    /// All that decides the graph of the layers but the shapes and dtypes of the arrays, where every
    /// request decodes; prompts have too many shapes to keep.
    pub fn shape(&self) -> Option<Vec<i64>> {
        let decodes = self.layouts.iter().all(Layout::is_decode)
            && self.batches.iter().all(Batches::is_decode);
        if !decodes || self.layouts.is_empty() && self.batches.is_empty() {
            return None;
        }
        let place = |index: Option<usize>| index.map_or(-1, |index| index as i32);
        let layers = self.of_layer.iter().flat_map(|found| match found {
            Some(found) => [found.layout as i32, place(found.slots)],
            None => [-1, -1],
        });
        let states = self.of_state_layer.iter().map(|index| place(*index));
        let layouts = self.layouts.iter().flat_map(Layout::shape);
        let batches = self.batches.iter().flat_map(Batches::shape);
        let all = layers.chain(states).chain(layouts).chain(batches);
        Some(all.map(i64::from).collect())
    }
}

fn kind(mlx: &Mlx, layer: &Layer, cache: Option<(Option<DType>, Pages)>) -> Kind {
    let fused = is_fused(mlx, layer);
    let pages = cache.map(|(_, pages)| pages);
    let kernel = layer.kernel.as_ref().zip(cache);
    let window = layer.plan.sliding_window;
    let reference = match fused {
        true => Reference::Fused,
        false => Reference::Products,
    };
    Kind {
        source: pages.map_or(Source::Step, |pages| Source::Cache {
            block_size: pages.block_size,
        }),
        causal: !layer.is_encoder(),
        sliding_window: window.and_then(|size| usize::try_from(size).ok()),
        alibi_slopes: layer.plan.alibi_slopes.clone(),
        alibi_sqrt: layer.plan.alibi_sqrt,
        max_scores: (!fused).then_some(MAX_SCORES),
        fused,
        kernel: kernel
            .is_some_and(|(kernel, (dtype, pages))| kernel.decodes(dtype, pages.block_size)),
        prefill: kernel
            .filter(|(kernel, (dtype, pages))| kernel.takes_prompts(*dtype, pages.block_size))
            .and_then(|(_, (dtype, _))| dtype)
            .map(|dtype| PromptSizes::new(&layer.plan, dtype.size(), reference)),
    }
}
