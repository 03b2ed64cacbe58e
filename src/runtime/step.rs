// SPDX-License-Identifier: Apache-2.0
//! The effects of one run: attention and recurrences with their caches, and islands.

use super::attention::{Layer, Metadata, Pages, attend, encode_rows, select, write};
use super::error::{Error, Result};
use super::executor::Effects;
use super::island::{IslandRunner, call_out};
use super::kernels::{Kernels, launch};
use super::kv_cache::KvCache;
use super::mlx::{self, Array, Device, Mlx};
use super::operands::{Operands, is_fused};
use super::owner::Owner;
use super::state::{self, StateCaches, StateMetadata};
use lowering::ir::{DType, Recurrence, TensorType};
use lowering::plan::{KernelChoice, StateLayer};
use std::cell::RefCell;
use std::sync::Arc;

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
    /// Whether a step that was submitted may still use the arrays.
    pub in_flight: bool,
}

impl Caches {
    /// All arrays.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        let attention = self.attention.iter().flat_map(|cache| &cache.caches);
        let state = self.state.iter().flat_map(StateCaches::arrays);
        attention.map(|cache| &cache.array).chain(state)
    }

    /// Takes over arrays in the order of [`Caches::arrays`], where there are any.
    pub fn replace(&mut self, new: impl IntoIterator<Item = Option<Array>>) {
        let attention = self
            .attention
            .iter_mut()
            .flat_map(|cache| &mut cache.caches);
        let attention = attention.map(|cache| &mut cache.array);
        let states = self.state.iter_mut().flat_map(|states| &mut states.caches);
        let states = states.flat_map(|cache| &mut cache.arrays);
        for (array, new) in attention.chain(states).zip(new) {
            if let Some(new) = new {
                *array = new;
                self.dirty = true;
            }
        }
    }

    /// Lets the next step write into arrays that the one in flight holds. It must take a result of that
    /// one, so that all its writes come after all reads.
    pub fn share(&mut self, mlx: &Mlx) -> Result<()> {
        let shared: Vec<Array> = self
            .arrays()
            .map(|array| mlx.shared(array))
            .collect::<mlx::MlxResult<_>>()?;
        self.replace(shared.into_iter().map(Some));
        self.in_flight = false;
        Ok(())
    }

    /// Dtype of an attention layer's cache.
    pub fn dtype(&self, cache: usize) -> Option<DType> {
        let caches = &self.attention.as_ref()?.caches;
        mlx::dtype(&caches.get(cache)?.array)
    }

    /// Index and size of the cache of an attention layer.
    pub fn of_layer(&self, layers: &[Layer], layer: usize) -> Result<(usize, Pages)> {
        let cache = self.attention.as_ref();
        let cache = cache.ok_or_else(|| {
            Error::KvCache(format!(
                "layer {:?} has none; allocate it first",
                layers[layer].plan.name
            ))
        })?;
        let index = cache.index(layers, layer)?;
        Ok((index, cache.caches[index].pages))
    }
}

/// Carries out effects.
pub struct StepEffects<'a> {
    mlx: &'a Mlx,
    owner: &'a Arc<Owner>,
    layers: Layers<'a>,
    caches: &'a mut Caches,
    operands: &'a Operands,
    islands: Option<&'a dyn IslandRunner>,
    kernels: &'a RefCell<Kernels>,
    /// New cache arrays; the caches take them over when the whole step could be built.
    pending: Vec<Option<Array>>,
    /// As `pending`, by cache and state.
    pending_states: Vec<Vec<Option<Array>>>,
}

impl<'a> StepEffects<'a> {
    /// Effects of a run on these operands.
    pub fn new(
        mlx: &'a Mlx,
        owner: &'a Arc<Owner>,
        layers: Layers<'a>,
        caches: &'a mut Caches,
        operands: &'a Operands,
        islands: Option<&'a dyn IslandRunner>,
        kernels: &'a RefCell<Kernels>,
    ) -> StepEffects<'a> {
        let attention = caches.attention.iter().flat_map(|cache| &cache.caches);
        let state = caches.state.iter().flat_map(|states| &states.caches);
        StepEffects {
            pending: attention.map(|_| None).collect(),
            pending_states: state
                .map(|cache| cache.arrays.iter().map(|_| None).collect())
                .collect(),
            mlx,
            owner,
            layers,
            caches,
            operands,
            islands,
            kernels,
        }
    }

    fn pending_mut(&mut self) -> impl Iterator<Item = &mut Option<Array>> {
        let states = self.pending_states.iter_mut().flatten();
        self.pending.iter_mut().chain(states)
    }

    /// Makes the step read and write these arrays, in the order of [`Caches::arrays`].
    pub fn substitute(&mut self, arrays: impl Iterator<Item = Array>) {
        for (pending, array) in self.pending_mut().zip(arrays) {
            *pending = Some(array);
        }
    }

    /// What the substituted arrays have become.
    pub fn substituted(&mut self) -> Vec<Array> {
        self.pending_mut().filter_map(Option::take).collect()
    }

    /// Makes the caches hold the step's keys, values and states, still lazily.
    pub fn commit(&mut self) {
        let states = self.pending_states.iter_mut().flatten();
        let new: Vec<Option<Array>> = (self.pending.iter_mut().chain(states))
            .map(Option::take)
            .collect();
        self.caches.replace(new);
    }

    fn run_recurrence(
        &mut self,
        function: Recurrence,
        layer: usize,
        state: usize,
        operands: &[&Array],
    ) -> Result<Array> {
        let batches = self.operands.of_state_layer(layer)?;
        let states = self.caches.state.as_ref().ok_or_else(no_states)?;
        let cache = states.index(self.layers.state, layer)?;
        let pending = &mut self.pending_states[cache][state];
        let current = pending
            .as_ref()
            .unwrap_or(&states.caches[cache].arrays[state]);
        let (result, written) = state::run(self.mlx, function, batches, operands, current)?;
        *pending = Some(written);
        Ok(result)
    }

    fn attend_layer(
        &mut self,
        index: usize,
        q: &Array,
        keys_values: &[&Array],
        selected: Option<&Array>,
    ) -> Result<Array> {
        let own = self.operands.of_layer(index)?;
        let (mlx, layer) = (self.mlx, &self.layers.attention[index]);
        let fused = is_fused(mlx, layer);
        let Some(cache) = own.cache else {
            if keys_values.is_empty() {
                let name = &layer.plan.name;
                let reason = format!("encoder layer {name:?} without keys and values");
                return Err(Error::Unsupported(reason));
            }
            let rows = encode_rows(mlx, keys_values)?;
            return attend(mlx, layer, own.layout, fused, q, &rows, selected);
        };
        let current = self.pending[cache]
            .as_ref()
            .or_else(|| Some(&self.caches.attention.as_ref()?.caches[cache].array))
            .ok_or(Error::Closed)?;
        if let (Some(paged), Some(kernel)) = (&own.layout.paged, &layer.kernel) {
            if selected.is_some() {
                let reason = format!("the kernel of layer {:?} selects no keys", layer.plan.name);
                return Err(Error::Unsupported(reason));
            }
            let slots = own.slots.filter(|_| !keys_values.is_empty());
            let rows = match slots {
                Some(slots) => write(mlx, current, slots, keys_values)?,
                None => current.clone(),
            };
            if slots.is_some() {
                self.pending[cache] = Some(rows.clone());
            }
            return kernel.attend(mlx, paged, q, &rows, &mut |choice, step, inputs| {
                self.kernel(choice, step, inputs)
            });
        }
        match own.slots.filter(|_| !keys_values.is_empty()) {
            None => attend(mlx, layer, own.layout, fused, q, current, selected),
            Some(slots) => {
                let written = write(mlx, current, slots, keys_values)?;
                let result = attend(mlx, layer, own.layout, fused, q, &written, selected)?;
                self.pending[cache] = Some(written);
                Ok(result)
            }
        }
    }

    fn select_of_layer(
        &mut self,
        index: usize,
        count: i64,
        [q, k, weights]: [&Array; 3],
    ) -> Result<Array> {
        let own = self.operands.of_layer(index)?;
        let (Some(cache), Some(slots)) = (own.cache, own.slots) else {
            let name = &self.layers.attention[index].plan.name;
            let reason = format!("a selection of keys by layer {name:?}, which keeps none");
            return Err(Error::Unsupported(reason));
        };
        let current = self.pending[cache]
            .as_ref()
            .or_else(|| Some(&self.caches.attention.as_ref()?.caches[cache].array))
            .ok_or(Error::Closed)?;
        let written = write(self.mlx, current, slots, &[k])?;
        let selected = select(self.mlx, own.layout, q, weights, &written, count)?;
        self.pending[cache] = Some(written);
        Ok(selected)
    }
}

fn no_states() -> Error {
    Error::KvCache("the model has recurrent states; allocate them first".to_owned())
}

impl StepMetadata {
    /// The group of a state layer.
    pub fn state_group(&self, layers: Layers, index: usize) -> Result<usize> {
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
    pub fn group(&self, layers: &[Layer], index: usize) -> Result<usize> {
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
            let pages = if layers.get(*index).is_some_and(Layer::is_encoder) {
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
    fn attention(
        &mut self,
        layer: u32,
        q: &Array,
        keys_values: &[&Array],
        selected: Option<&Array>,
    ) -> Result<Array> {
        self.attend_layer(layer as usize, q, keys_values, selected)
    }

    fn select_keys(&mut self, layer: u32, count: i64, operands: [&Array; 3]) -> Result<Array> {
        self.select_of_layer(layer as usize, count, operands)
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

    fn kernel(
        &mut self,
        choice: &KernelChoice,
        step: &[(&'static str, i64)],
        inputs: &[&Array],
    ) -> Result<Vec<Array>> {
        if self.mlx.device() != Device::Gpu {
            self.commit(); // as for an island
        }
        let mut kernels = self.kernels.borrow_mut();
        launch(
            self.mlx,
            self.owner,
            &mut kernels,
            self.islands,
            choice,
            step,
            inputs,
        )
    }

    fn island(
        &mut self,
        target: &str,
        arguments: &str,
        operands: &[&Array],
        types: &[TensorType],
    ) -> Result<Vec<Array>> {
        // Evaluating while the caches still hold their old arrays would copy them.
        self.commit();
        let mut arrays: Vec<&Array> = operands.to_vec();
        if self.caches.dirty {
            arrays.extend(self.caches.arrays());
        }
        self.mlx.eval(arrays)?;
        self.caches.dirty = false;
        let call = [target, arguments];
        call_out(
            self.mlx,
            self.owner,
            self.islands,
            call,
            operands,
            types.len(),
        )
    }
}
