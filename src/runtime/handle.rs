// SPDX-License-Identifier: Apache-2.0
//! What other threads hold: the runtime and its models.

use super::attention::Metadata;
use super::dlpack::Imported;
use super::error::{Error, Result};
use super::host::HostTensor;
use super::inputs::Input;
use super::island::IslandRunner;
use super::kv_cache::CacheSpec;
use super::memory::{self, Limits, Usage};
use super::mlx::{Array, Device, Meter};
use super::model::Model;
use super::owner::{Owner, State};
use super::state::{StateMetadata, StateSpec};
use super::step::StepMetadata;
use super::tensor::{self, Tensor};
use super::weights::{self, LoadReport, Parameters, Source};
use lowering::plan::Plan;
use std::sync::Arc;

/// MLX on a device, with a thread of its own.
pub struct Runtime {
    owner: Arc<Owner>,
}

/// A model in a [`Runtime`]. Dropping it frees the model.
pub struct LoadedModel {
    id: u64,
    owner: Arc<Owner>,
    /// What loading did.
    pub report: LoadReport,
}

/// One input of a run, from any thread.
pub enum Argument<'a> {
    /// Copied to MLX.
    Host(HostTensor),
    /// Used where it lies, if MLX can; it must not change before the results are evaluated.
    Foreign(Imported),
    /// Built before, perhaps not evaluated.
    Tensor(&'a Tensor),
    /// The value of the symbol of that name.
    Size(i64),
}

/// A step's requests as the layers of one kind see them.
#[derive(Clone)]
pub enum Requests {
    /// Of attention layers.
    Attention(Arc<Metadata>),
    /// Of state layers.
    State(Arc<StateMetadata>),
}

/// A step's requests and the layers that they are for, by vLLM's names.
pub type LayerMetadata = (Vec<String>, Requests);

impl Runtime {
    /// Starts MLX.
    ///
    /// # Errors
    /// The device does not exist, or MLX refuses a limit.
    pub fn new(device: Device, limits: Limits) -> Result<Runtime> {
        let owner = Owner::start(device)?;
        owner.call(move |_| memory::set_limits(limits))?;
        Ok(Runtime { owner })
    }

    /// MLX's memory counters.
    pub fn memory(&self) -> Result<Usage> {
        memory::usage()
    }

    /// Starts the peak counter anew.
    pub fn reset_peak(&self) -> Result<()> {
        memory::reset_peak()
    }

    /// Starts a count of the calls into MLX, or ends it; gives what was counted until now.
    pub fn meter(&self, on: bool) -> Result<Meter> {
        self.owner.call(move |state| Ok(state.mlx.meter(on)))
    }

    /// Copies a host tensor to MLX.
    pub fn upload(&self, tensor: HostTensor) -> Result<Tensor> {
        let owner = self.owner.clone();
        self.owner
            .call(move |state| Tensor::new(state, &owner, tensor.to_array()?))
    }

    /// Uses another library's tensor where it lies, if MLX can, or copies it.
    pub fn borrow(&self, tensor: Imported) -> Result<Tensor> {
        let owner = self.owner.clone();
        self.owner.call(move |state| {
            let array = weights::borrow(&state.mlx, tensor)?;
            Tensor::new(state, &owner, array)
        })
    }

    /// Computes tensors, all together.
    pub fn evaluate(&self, tensors: &[&Tensor]) -> Result<()> {
        let ids: Vec<u64> = tensors.iter().map(|tensor| tensor.id()).collect();
        self.owner.call(move |state| {
            let arrays: Vec<Array> = ids
                .iter()
                .map(|id| tensor::find(state, *id).cloned())
                .collect::<Result<_>>()?;
            state.evaluate(&arrays)
        })
    }

    /// Tensors that handles refer to.
    pub fn num_tensors(&self) -> Result<usize> {
        self.owner.call(|state| Ok(state.tensors.len()))
    }

    /// Frees all models, tensors and MLX's cache, and ends the thread.
    pub fn close(&self) {
        self.owner.close();
    }

    /// Begins to load a model.
    pub fn begin_loading(&self) -> Result<Loading> {
        let id = self.owner.call(|state| {
            let id = state.new_id();
            state.loading.insert(id, Parameters::default());
            Ok(id)
        })?;
        Ok(Loading {
            id,
            owner: self.owner.clone(),
        })
    }
}

/// A model whose parameters are being collected (see [`super::weights::required`]). Dropping it frees
/// them.
pub struct Loading {
    id: u64,
    owner: Arc<Owner>,
}

impl Loading {
    /// Adds a parameter. Where MLX has to copy it, its source is free when this returns.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn add(&self, path: String, source: Source) -> Result<()> {
        let id = self.id;
        self.owner.call(move |state| {
            let parameters = state.loading.get_mut(&id).ok_or(Error::Closed)?;
            parameters.add(&state.mlx, path, source)
        })
    }

    /// Adds a parameter that is in MLX already.
    pub fn share(&self, path: String, tensor: &Tensor) -> Result<()> {
        let (id, shared) = (self.id, tensor.id());
        self.owner.call(move |state| {
            let array = tensor::find(state, shared)?.clone();
            let parameters = state.loading.get_mut(&id).ok_or(Error::Closed)?;
            parameters.share(path, array);
            Ok(())
        })
    }

    /// Binds the parameters to a plan and runs its folds.
    ///
    /// # Errors
    /// A parameter that is missing or not as the plan says, or a fold that fails.
    pub fn finish(self, plan: Plan, islands: Option<Box<dyn IslandRunner>>) -> Result<LoadedModel> {
        let id = self.id;
        let report = self.owner.call(move |state| {
            let parameters = state.loading.remove(&id).ok_or(Error::Closed)?;
            let (model, report) = Model::load(&state.mlx, plan, parameters, islands)?;
            state.models.insert(id, model);
            Ok(report)
        })?;
        Ok(LoadedModel {
            id,
            owner: self.owner.clone(),
            report,
        })
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let id = self.id;
        self.owner
            .post(move |state| drop(state.loading.remove(&id)));
    }
}

impl LoadedModel {
    /// Allocates the KV caches, replacing earlier ones; returns their bytes.
    pub fn allocate_kv_cache(
        &self,
        specs: Vec<CacheSpec>,
        states: Vec<StateSpec>,
    ) -> Result<usize> {
        self.with(move |model, state| model.allocate_kv_cache(&state.mlx, &specs, &states))
    }

    /// Runs a graph, lazily. A step that is not evaluated yet is evaluated first, so that its caches
    /// can be updated in place.
    pub fn run(
        &self,
        graph: &str,
        inputs: Vec<(String, Argument)>,
        attention: Vec<LayerMetadata>,
    ) -> Result<Vec<Tensor>> {
        let graph = graph.to_owned();
        let inputs: Vec<(String, Sent)> = inputs
            .into_iter()
            .map(|(name, argument)| (name, Sent::new(argument)))
            .collect();
        let owner = self.owner.clone();
        self.with(move |model, state| {
            if model.is_dirty() {
                settle(model, state)?;
            }
            let inputs = inputs
                .into_iter()
                .map(|(name, sent)| Ok((name, sent.receive(state)?)))
                .collect::<Result<_>>()?;
            let metadata = by_layer(model, attention);
            let outputs = model.run(&state.mlx, &owner, &graph, inputs, &metadata)?;
            outputs
                .into_iter()
                .map(|array| Tensor::new(state, &owner, array))
                .collect()
        })
    }

    /// Runs the graph `logits` on rows of `hidden`, continuing its lazy graph.
    ///
    /// # Errors
    /// A row out of range, or a plan whose logits graph has several inputs.
    pub fn logits(&self, hidden: &Tensor, rows: Option<Vec<i64>>) -> Result<Vec<Tensor>> {
        const GRAPH: &str = "logits";
        let rows = rows.map(|rows| hidden.check_rows(&rows)).transpose()?;
        let (hidden, owner) = (hidden.id(), self.owner.clone());
        self.with(move |model, state| {
            let array = tensor::find(state, hidden)?;
            let array = match rows {
                Some(rows) => tensor::take_rows(&state.mlx, array, &rows)?,
                None => array.clone(),
            };
            let names = model.input_names(GRAPH)?;
            let inputs = names
                .into_iter()
                .next()
                .map(|name| (name, Input::Array(array)));
            let inputs = inputs.into_iter().collect();
            let metadata = StepMetadata::default();
            let outputs = model.run(&state.mlx, &owner, GRAPH, inputs, &metadata)?;
            outputs
                .into_iter()
                .map(|array| Tensor::new(state, &owner, array))
                .collect()
        })
    }

    /// A copy of a layer's cache rows `[(num_blocks + 1) * block_size, kv_heads, head_size +
    /// head_size_v]`, for tests and debugging.
    pub fn cache_rows(&self, layer: &str) -> Result<HostTensor> {
        let layer = layer.to_owned();
        self.with(move |model, state| {
            settle(model, state)?;
            tensor::copy_out(&model.cache_rows(model.layer(&layer).unwrap_or(usize::MAX))?)
        })
    }

    /// Address of a layer's cache, which a step must not change.
    pub fn cache_address(&self, layer: &str) -> Result<usize> {
        let layer = layer.to_owned();
        self.with(move |model, state| {
            settle(model, state)?;
            let array = model.cache_rows(model.layer(&layer).unwrap_or(usize::MAX))?;
            Ok(super::mlx::data_pointer(&array)? as usize)
        })
    }

    /// Runs a closure with the model taken out of the state, so that both can be used.
    fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Model, &mut State) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let id = self.id;
        self.owner.call(move |state| {
            let mut model = state.models.remove(&id).ok_or(Error::Closed)?;
            let result = work(&mut model, state);
            state.models.insert(id, model);
            result
        })
    }
}

impl Drop for LoadedModel {
    fn drop(&mut self) {
        let id = self.id;
        self.owner.post(move |state| drop(state.models.remove(&id)));
    }
}

/// Evaluates a model's caches with everything lazy, which may read them.
fn settle(model: &mut Model, state: &mut State) -> Result<()> {
    let arrays: Vec<Array> = state.tensors.values().cloned().collect();
    state.mlx.eval(arrays.iter().chain(model.dirty_arrays()))?;
    model.mark_evaluated();
    Ok(())
}

fn by_layer(model: &Model, attention: Vec<LayerMetadata>) -> StepMetadata {
    let mut metadata = StepMetadata {
        groups: Vec::with_capacity(attention.len()),
        group_of_layer: vec![None; model.num_layers()],
        state_groups: Vec::new(),
        group_of_state_layer: vec![None; model.num_state_layers()],
    };
    // A layer that the plan does not run needs none.
    for (names, of_group) in attention {
        match of_group {
            Requests::Attention(of_group) => {
                for index in names.iter().filter_map(|name| model.layer(name)) {
                    metadata.group_of_layer[index] = Some(metadata.groups.len());
                }
                metadata.groups.push(of_group);
            }
            Requests::State(of_group) => {
                for index in names.iter().filter_map(|name| model.state_layer(name)) {
                    metadata.group_of_state_layer[index] = Some(metadata.state_groups.len());
                }
                metadata.state_groups.push(of_group);
            }
        }
    }
    metadata
}

/// An argument on its way to the owner's thread.
enum Sent {
    Host(HostTensor),
    Foreign(Imported),
    Tensor(u64),
    Size(i64),
}

impl Sent {
    fn new(argument: Argument) -> Sent {
        match argument {
            Argument::Host(tensor) => Sent::Host(tensor),
            Argument::Foreign(tensor) => Sent::Foreign(tensor),
            Argument::Tensor(tensor) => Sent::Tensor(tensor.id()),
            Argument::Size(size) => Sent::Size(size),
        }
    }

    fn receive(self, state: &State) -> Result<Input> {
        match self {
            Sent::Host(tensor) => Ok(Input::Host(tensor)),
            Sent::Foreign(tensor) => Ok(Input::Foreign(tensor)),
            Sent::Size(size) => Ok(Input::Size(size)),
            Sent::Tensor(id) => Ok(Input::Array(tensor::find(state, id)?.clone())),
        }
    }
}
