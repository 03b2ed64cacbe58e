// SPDX-License-Identifier: Apache-2.0
//! The effects of one run: attention and recurrences with their caches, and islands.

use super::attention::{Kind, Layer, Layout, Metadata, Pages, Source, attend, encode_rows, write};
use super::error::{Error, Result};
use super::executor::Effects;
use super::island::IslandRunner;
use super::kv_cache::KvCache;
use super::mlx::{self, Array, Device, Mlx};
use super::owner::Owner;
use super::state::{self, Batches, StateCaches, StateMetadata};
use super::tensor;
use super::weights;
use lowering::ir::{Recurrence, TensorType};
use lowering::plan::StateLayer;
use std::rc::Rc;
use std::sync::Arc;

/// Scores of one product outside `mx.fast`, per head: bounds what a long prefill allocates.
const MAX_SCORES: usize = 1 << 22;

/// A run's metadata: groups, and which group each of the plan's layers is in.
#[derive(Default)]
pub struct StepMetadata {
    pub groups: Vec<Arc<Metadata>>,
    pub group_of_layer: Vec<Option<usize>>,
    pub state_groups: Vec<Arc<StateMetadata>>,
    pub group_of_state_layer: Vec<Option<usize>>,
}

/// A model's layers with state, as the plan has them.
#[derive(Clone, Copy)]
pub struct Layers<'a> {
    pub attention: &'a [Layer],
    pub state: &'a [StateLayer],
}

/// What a model keeps between steps.
#[derive(Default)]
pub struct Caches {
    pub attention: Option<KvCache>,
    pub state: Option<StateCaches>,
    /// Whether an array was replaced by one that is not evaluated.
    pub dirty: bool,
}

impl Caches {
    /// All arrays.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let attention = self.attention.iter().flat_map(|cache| &cache.caches);
        let state = self.state.iter().flat_map(StateCaches::arrays);
        attention.map(|cache| &cache.array).chain(state)
    }
}

/// Carries out effects, and keeps what layers of a step share.
pub struct StepEffects<'a> {
    pub mlx: &'a Mlx,
    pub owner: &'a Arc<Owner>,
    pub layers: Layers<'a>,
    pub caches: &'a mut Caches,
    pub metadata: &'a StepMetadata,
    pub islands: Option<&'a dyn IslandRunner>,
    /// Layouts by group and kind.
    layouts: Vec<(usize, Kind, Rc<Layout>)>,
    /// Where tokens are written, by group and cache size.
    slots: Vec<(usize, Pages, Rc<Array>)>,
    /// New cache arrays; the caches take them over when the whole step could be built.
    pending: Vec<Option<Array>>,
    /// Batches of recurrences by group.
    batches: Vec<(usize, Rc<Batches>)>,
    /// As `pending`, by cache and state.
    pending_states: Vec<Vec<Option<Array>>>,
}

impl<'a> StepEffects<'a> {
    /// Effects of a run. Its metadata passed [`StepMetadata::check`].
    pub fn new(
        mlx: &'a Mlx,
        owner: &'a Arc<Owner>,
        layers: Layers<'a>,
        caches: &'a mut Caches,
        metadata: &'a StepMetadata,
        islands: Option<&'a dyn IslandRunner>,
    ) -> StepEffects<'a> {
        let attention = caches.attention.iter().flat_map(|cache| &cache.caches);
        let state = caches.state.iter().flat_map(|states| &states.caches);
        StepEffects {
            pending: attention.map(|_| None).collect(),
            pending_states: state
                .map(|cache| cache.arrays.iter().map(|_| None).collect())
                .collect(),
            batches: Vec::new(),
            mlx,
            owner,
            layers,
            caches,
            metadata,
            islands,
            layouts: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Makes the caches hold the step's keys, values and states, still lazily.
    pub fn commit(&mut self) {
        let Caches {
            attention,
            state,
            dirty,
        } = &mut *self.caches;
        let attention = attention.iter_mut().flat_map(|cache| &mut cache.caches);
        let attention = attention.map(|cache| &mut cache.array);
        let states = state.iter_mut().flat_map(|states| &mut states.caches);
        let states = states.flat_map(|cache| &mut cache.arrays);
        let new = self.pending.iter_mut();
        let new = new.chain(self.pending_states.iter_mut().flatten());
        for (array, new) in attention.chain(states).zip(new) {
            if let Some(new) = new.take() {
                *array = new;
                *dirty = true;
            }
        }
    }

    fn batches(&mut self, group: usize, num_tokens: usize) -> Result<Rc<Batches>> {
        if let Some((_, batches)) = self.batches.iter().find(|(other, _)| *other == group) {
            return Ok(batches.clone());
        }
        let metadata = &self.metadata.state_groups[group];
        let batches = Rc::new(Batches::new(metadata, num_tokens)?);
        self.batches.push((group, batches.clone()));
        Ok(batches)
    }

    fn run_recurrence(
        &mut self,
        function: Recurrence,
        layer: usize,
        state: usize,
        operands: &[&Array],
    ) -> Result<Array> {
        let group = self.metadata.state_group(self.layers, layer)?;
        let num_tokens = operands.first().and_then(|x| x.shape().first().copied());
        let batches = self.batches(group, num_tokens.unwrap_or(0) as usize)?;
        let states = self.caches.state.as_ref().ok_or_else(no_states)?;
        let cache = states.index(self.layers.state, layer)?;
        let pending = &mut self.pending_states[cache][state];
        let current = pending
            .as_ref()
            .unwrap_or(&states.caches[cache].arrays[state]);
        let (result, written) = state::run(self.mlx, function, &batches, operands, current)?;
        *pending = Some(written);
        Ok(result)
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

    fn attend_layer(&mut self, index: usize, q: &Array, keys_values: &[&Array]) -> Result<Array> {
        let layers = self.layers.attention;
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
            if keys_values.is_empty() {
                let name = &layer.plan.name;
                let reason = format!("encoder layer {name:?} without keys and values");
                return Err(Error::Unsupported(reason));
            }
            let rows = encode_rows(self.mlx, keys_values)?;
            return attend(self.mlx, layer, &layout, fused, q, &rows);
        }
        let (mlx, shares) = (self.mlx, layer.plan.kv_sharing_target.is_some());
        let cache = self.caches.attention.as_ref().ok_or_else(|| {
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
            .or_else(|| Some(&self.caches.attention.as_ref()?.caches[cache_index].array))
            .ok_or(Error::Closed)?;
        match slots.filter(|_| !keys_values.is_empty()) {
            None => attend(mlx, layer, &layout, fused, q, current),
            Some(slots) => {
                let written = write(mlx, current, &slots, keys_values)?;
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

fn no_states() -> Error {
    Error::KvCache("the model has recurrent states; allocate them first".to_owned())
}

impl StepMetadata {
    /// The group of a state layer.
    fn state_group(&self, layers: Layers, index: usize) -> Result<usize> {
        let group = self.group_of_state_layer.get(index).copied().flatten();
        group.ok_or_else(|| Error::Metadata {
            field: "layers",
            reason: format!(
                "none is given for layer {:?}",
                layers
                    .state
                    .get(index)
                    .map_or("?", |layer| layer.name.as_str())
            ),
        })
    }

    /// Checks the metadata of these state layers before anything is built.
    pub fn check_states(
        &self,
        layers: Layers,
        used: &[usize],
        states: Option<&StateCaches>,
        num_tokens: usize,
    ) -> Result<()> {
        let mut checked: Vec<(usize, usize)> = Vec::new();
        for index in used {
            let group = self.state_group(layers, *index)?;
            let states = states.ok_or_else(no_states)?;
            let num_slots = states.caches[states.index(layers.state, *index)?].num_slots;
            if !checked.contains(&(group, num_slots)) {
                self.state_groups[group].check(num_tokens, num_slots)?;
                checked.push((group, num_slots));
            }
        }
        Ok(())
    }

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
    fn attention(&mut self, layer: u32, q: &Array, keys_values: &[&Array]) -> Result<Array> {
        self.attend_layer(layer as usize, q, keys_values)
    }

    fn recurrence(
        &mut self,
        function: Recurrence,
        layer: u32,
        state: u32,
        operands: &[&Array],
    ) -> Result<Array> {
        self.run_recurrence(function, layer as usize, state as usize, operands)
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
        if self.caches.dirty {
            arrays.extend(self.caches.arrays());
        }
        self.mlx.eval(arrays)?;
        self.caches.dirty = false;
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
