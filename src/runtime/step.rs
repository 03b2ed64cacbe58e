// SPDX-License-Identifier: Apache-2.0
//! The effects of one run: attention with its cache, and islands.

use super::attention::{Kind, Layer, Layout, Metadata, Pages, Source, attend, encode_rows, write};
use super::error::{Error, Result};
use super::executor::Effects;
use super::island::IslandRunner;
use super::kv_cache::KvCache;
use super::mlx::{self, Array, Device, Mlx};
use super::owner::Owner;
use super::tensor;
use super::weights;
use lowering::ir::TensorType;
use std::rc::Rc;
use std::sync::Arc;

/// Scores of one product outside `mx.fast`, per head: bounds what a long prefill allocates.
const MAX_SCORES: usize = 1 << 22;

/// A run's attention metadata: groups, and which group each of the plan's layers is in.
#[derive(Default)]
pub struct StepMetadata {
    pub groups: Vec<Arc<Metadata>>,
    pub group_of_layer: Vec<Option<usize>>,
}

/// Carries out effects, and keeps what layers of a step share.
pub struct StepEffects<'a> {
    pub mlx: &'a Mlx,
    pub owner: &'a Arc<Owner>,
    pub layers: &'a [Layer],
    pub cache: Option<&'a mut KvCache>,
    pub metadata: &'a StepMetadata,
    pub islands: Option<&'a dyn IslandRunner>,
    /// Layouts by group and kind.
    layouts: Vec<(usize, Kind, Rc<Layout>)>,
    /// Where tokens are written, by group and cache size.
    slots: Vec<(usize, Pages, Rc<Array>)>,
    /// New cache arrays; the caches take them over when the whole step could be built.
    pending: Vec<Option<Array>>,
}

impl<'a> StepEffects<'a> {
    /// Effects of a run. Its metadata passed [`StepMetadata::check`].
    pub fn new(
        mlx: &'a Mlx,
        owner: &'a Arc<Owner>,
        layers: &'a [Layer],
        cache: Option<&'a mut KvCache>,
        metadata: &'a StepMetadata,
        islands: Option<&'a dyn IslandRunner>,
    ) -> StepEffects<'a> {
        let caches = cache.as_ref().map_or(0, |cache| cache.caches.len());
        StepEffects {
            mlx,
            owner,
            layers,
            cache,
            metadata,
            islands,
            layouts: Vec::new(),
            slots: Vec::new(),
            pending: (0..caches).map(|_| None).collect(),
        }
    }

    /// Makes the caches hold the step's keys and values, still lazily.
    pub fn commit(&mut self) {
        let Some(cache) = self.cache.as_mut() else {
            return;
        };
        for (cache_array, new) in cache.caches.iter_mut().zip(&mut self.pending) {
            if let Some(new) = new.take() {
                cache_array.array = new;
                cache.dirty = true;
            }
        }
    }

    fn layout(&mut self, group: usize, kind: Kind, num_tokens: usize) -> Result<Rc<Layout>> {
        let known = self
            .layouts
            .iter()
            .find(|(other, of, _)| *other == group && *of == kind);
        if let Some((_, _, layout)) = known {
            return Ok(layout.clone());
        }
        let layout = Rc::new(Layout::new(
            &self.metadata.groups[group],
            &kind,
            num_tokens,
        )?);
        self.layouts.push((group, kind, layout.clone()));
        Ok(layout)
    }

    fn slots(&mut self, group: usize, pages: Pages, num_tokens: usize) -> Result<Rc<Array>> {
        let known = self
            .slots
            .iter()
            .find(|(other, of, _)| *other == group && *of == pages);
        if let Some((_, _, slots)) = known {
            return Ok(slots.clone());
        }
        let slots = self.metadata.groups[group].write_slots(num_tokens, pages);
        let bytes: Vec<u8> = slots.iter().flat_map(|slot| slot.to_ne_bytes()).collect();
        let array = mlx::host_array(&bytes, &[num_tokens as i32], lowering::ir::DType::Int32)?;
        let slots = Rc::new(array);
        self.slots.push((group, pages, slots.clone()));
        Ok(slots)
    }

    fn attend_layer(
        &mut self,
        index: usize,
        q: &Array,
        new: Option<(&Array, &Array)>,
    ) -> Result<Array> {
        let layers = self.layers;
        let layer = layers.get(index).ok_or_else(|| {
            Error::Unsupported(format!("the plan has no attention layer {index}"))
        })?;
        let group = self.metadata.group(layers, index)?;
        let num_tokens = q.shape().first().map_or(0, |size| *size as usize);
        let fused = self.mlx.device() == Device::Gpu && layer.can_fuse();
        let mut kind = Kind {
            source: Source::Step,
            causal: !is_encoder(layer),
            sliding_window: layer
                .plan
                .sliding_window
                .and_then(|size| usize::try_from(size).ok()),
            alibi_slopes: layer.plan.alibi_slopes.clone(),
            max_scores: (!fused).then_some(MAX_SCORES),
            fused,
        };
        if is_encoder(layer) {
            let layout = self.layout(group, kind, num_tokens)?;
            let (k, v) = new.ok_or_else(|| {
                let name = &layer.plan.name;
                Error::Unsupported(format!("encoder layer {name:?} without keys and values"))
            })?;
            let rows = encode_rows(self.mlx, k, v)?;
            return attend(self.mlx, layer, &layout, fused, q, &rows);
        }
        let (mlx, shares) = (self.mlx, layer.plan.kv_sharing_target.is_some());
        let cache = self.cache.as_deref().ok_or_else(|| {
            Error::KvCache(format!(
                "layer {:?} has none; allocate it first",
                layer.plan.name
            ))
        })?;
        let cache_index = cache.index(layers, index)?;
        let pages = cache.caches[cache_index].pages;
        kind.source = Source::Cache {
            block_size: pages.block_size,
        };
        let layout = self.layout(group, kind, num_tokens)?;
        let slots = if shares {
            None
        } else {
            Some(self.slots(group, pages, num_tokens)?)
        };
        let current = self.pending[cache_index]
            .as_ref()
            .or_else(|| Some(&self.cache.as_deref()?.caches[cache_index].array))
            .ok_or(Error::Closed)?;
        match (slots, new) {
            (None, _) | (_, None) => attend(mlx, layer, &layout, fused, q, current),
            (Some(slots), Some((k, v))) => {
                let written = write(mlx, current, &slots, k, v)?;
                let result = attend(mlx, layer, &layout, fused, q, &written)?;
                self.pending[cache_index] = Some(written);
                Ok(result)
            }
        }
    }
}

/// Bidirectional attention over the step's own tokens, without a cache.
fn is_encoder(layer: &Layer) -> bool {
    matches!(layer.plan.attn_type.as_str(), "encoder" | "encoder_only")
}

impl StepMetadata {
    /// The group of a layer, or of the layer whose keys and values it shares.
    fn group(&self, layers: &[Layer], index: usize) -> Result<usize> {
        let own = self.group_of_layer.get(index).copied().flatten();
        let shared = || {
            let target = layers.get(index)?.plan.kv_sharing_target.as_ref()?;
            let target = layers.iter().position(|layer| layer.plan.name == *target)?;
            self.group_of_layer.get(target).copied().flatten()
        };
        own.or_else(shared).ok_or_else(|| Error::Metadata {
            field: "layers",
            reason: format!(
                "none is given for layer {:?}",
                layers
                    .get(index)
                    .map_or("?", |layer| layer.plan.name.as_str())
            ),
        })
    }

    /// Checks the metadata of these layers before anything is built.
    pub fn check(
        &self,
        layers: &[Layer],
        used: &[usize],
        cache: Option<&KvCache>,
        num_tokens: usize,
    ) -> Result<()> {
        let mut checked: Vec<(usize, Option<Pages>)> = Vec::new();
        for index in used {
            let group = self.group(layers, *index)?;
            let pages = if layers.get(*index).is_some_and(is_encoder) {
                None
            } else {
                let cache = cache.ok_or_else(|| Error::KvCache("allocate it first".to_owned()))?;
                Some(cache.caches[cache.index(layers, *index)?].pages)
            };
            if checked.contains(&(group, pages)) {
                continue;
            }
            let metadata = &self.groups[group];
            metadata.check_queries(num_tokens)?;
            if let Some(pages) = pages {
                metadata.check_pages(pages)?;
            }
            checked.push((group, pages));
        }
        Ok(())
    }
}

impl Effects for StepEffects<'_> {
    fn attention(&mut self, layer: u32, q: &Array, new: Option<(&Array, &Array)>) -> Result<Array> {
        self.attend_layer(layer as usize, q, new)
    }

    fn island(
        &mut self,
        target: &str,
        arguments: &str,
        operands: &[&Array],
        types: &[TensorType],
    ) -> Result<Vec<Array>> {
        let runner = self.islands.ok_or_else(|| Error::Island {
            target: target.to_owned(),
            reason: "no runner was given at load".to_owned(),
        })?;
        // Evaluating while the caches still hold their old arrays would copy them.
        self.commit();
        let mut arrays: Vec<&Array> = operands.to_vec();
        if let Some(cache) = self.cache.as_mut().filter(|cache| cache.dirty) {
            arrays.extend(cache.caches.iter().map(|cache| &cache.array));
            self.mlx.eval(arrays)?;
            cache.dirty = false;
        } else {
            self.mlx.eval(arrays)?;
        }
        let exported = operands
            .iter()
            .map(|array| tensor::export_evaluated(self.mlx, self.owner, (*array).clone()))
            .collect::<Result<_>>()?;
        let results = runner.run(target, arguments, exported)?;
        if results.len() != types.len() {
            return Err(Error::Island {
                target: target.to_owned(),
                reason: format!("{} results instead of {}", results.len(), types.len()),
            });
        }
        results
            .into_iter()
            .map(|result| weights::borrow(self.mlx, result))
            .collect()
    }
}
