// SPDX-License-Identifier: Apache-2.0
//! What other threads hold of a model: its steps.

use super::attention::Metadata;
use super::dlpack::Imported;
use super::error::{Error, Result};
use super::host::HostTensor;
use super::inputs::{Input, Sampled};
use super::kv_cache::CacheSpec;
use super::mlx::Array;
use super::model::{Head, LOGITS, Model};
use super::owner::{Owner, State};
use super::sample::{Row, Sampling};
use super::state::{StateMetadata, StateSpec};
use super::step::StepMetadata;
use super::tensor::{self, Exported, Tensor};
use super::weights::LoadReport;
use std::sync::Arc;

/// A model in a [`super::Runtime`]. Dropping it frees the model.
pub struct LoadedModel {
    pub(super) id: u64,
    pub(super) owner: Arc<Owner>,
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
    /// Token ids of which some are the last step's; see [`Sampled`].
    Sampled {
        /// All ids, where those of `places` are anything.
        known: HostTensor,
        /// The last step's, int32.
        tokens: &'a Tensor,
        /// What these are below.
        vocab_size: i64,
        /// Pairs of a place in `known` and the index of the token that belongs there.
        places: Vec<(usize, usize)>,
    },
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
        self.run_with(graph, inputs, attention, Head::None)
    }

    /// As `run`; the logits that `head` asks for follow the graph's results.
    pub fn run_with(
        &self,
        graph: &str,
        inputs: Vec<(String, Argument)>,
        attention: Vec<LayerMetadata>,
        head: Head,
    ) -> Result<Vec<Tensor>> {
        let graph = graph.to_owned();
        let inputs = sent(inputs);
        let owner = self.owner.clone();
        self.with(move |model, state| {
            let outputs = run(model, state, &owner, &graph, inputs, attention, head)?;
            handles(state, &owner, outputs)
        })
    }

    /// Runs the graph `backbone` and the graph `logits` on rows of its result, on all without
    /// `rows`, and computes them: one message to the thread and one evaluation.
    ///
    /// # Errors
    /// As [`LoadedModel::run`] and [`LoadedModel::logits`], before anything runs.
    pub fn step(
        &self,
        inputs: Vec<(String, Argument)>,
        attention: Vec<LayerMetadata>,
        rows: Option<Vec<i64>>,
    ) -> Result<(Vec<Tensor>, Exported)> {
        const GRAPH: &str = "backbone";
        let inputs = sent(inputs);
        let owner = self.owner.clone();
        let head = rows.map_or(Head::All, Head::Rows);
        self.with(move |model, state| {
            let mut outputs = run(model, state, &owner, GRAPH, inputs, attention, head)?;
            let logits = outputs.pop().ok_or(Error::Closed)?;
            // This model is not among the state's while it runs.
            state
                .mlx
                .eval([&logits].into_iter().chain(model.dirty_arrays()))?;
            model.mark_evaluated();
            let logits = tensor::export_evaluated(&state.mlx, &owner, logits)?;
            Ok((handles(state, &owner, outputs)?, logits))
        })
    }

    /// Runs the graph `backbone` and takes a token after rows of its result, after all without `rows`,
    /// as `draws` say, the most likely one without: int32[num_rows], and the number of tokens that it
    /// is one of. With `ahead` they are
    /// being computed when this returns, and so is a step before this one where it takes its tokens
    /// ([`Argument::Sampled`]).
    ///
    /// # Errors
    /// As [`LoadedModel::step`]; `draws` of another number or out of range.
    pub fn sample(
        &self,
        inputs: Vec<(String, Argument)>,
        attention: Vec<LayerMetadata>,
        rows: Option<Vec<i64>>,
        draws: Option<Vec<Row>>,
        ahead: bool,
    ) -> Result<(Vec<Tensor>, Tensor, i64)> {
        const GRAPH: &str = "backbone";
        let inputs = sent(inputs);
        let owner = self.owner.clone();
        let head = rows.map_or(Head::All, Head::Rows);
        let sampled = self.with(move |model, state| {
            let sampling = draws.as_deref().map(Sampling::new).transpose()?;
            let mut outputs = run(model, state, &owner, GRAPH, inputs, attention, head)?;
            let logits = outputs.pop().ok_or(Error::Closed)?;
            let vocab_size = logits.shape().last().copied().map_or(0, i64::from);
            let tokens = model.sample(&state.mlx, &owner, &logits, sampling)?;
            if !ahead {
                let computed = [&tokens].into_iter().chain(model.dirty_arrays());
                state.mlx.eval(computed)?;
                model.mark_evaluated();
            }
            let tokens = Tensor::new(state, &owner, tokens)?;
            Ok((handles(state, &owner, outputs)?, tokens, vocab_size))
        })?;
        if ahead {
            self.submit(&sampled.1);
        }
        Ok(sampled)
    }

    /// Has the thread submit a step, some time. Where that fails, who waits for the tokens meets the
    /// same error.
    fn submit(&self, tokens: &Tensor) {
        let (id, tokens) = (self.id, tokens.id());
        self.owner.post(move |state| {
            let (Some(model), Some(tokens)) =
                (state.models.get_mut(&id), state.tensors.get(&tokens))
            else {
                return;
            };
            let arrays = [tokens].into_iter().chain(model.dirty_arrays());
            if state.mlx.submit(arrays).is_ok() {
                model.mark_submitted();
            }
        });
    }

    /// Runs the graph `logits` on rows of `hidden`, continuing its lazy graph.
    ///
    /// # Errors
    /// A row out of range, or a plan whose logits graph has several inputs.
    pub fn logits(&self, hidden: &Tensor, rows: Option<Vec<i64>>) -> Result<Vec<Tensor>> {
        let rows = rows.map(|rows| hidden.check_rows(&rows)).transpose()?;
        let (hidden, owner) = (hidden.id(), self.owner.clone());
        self.with(move |model, state| {
            let array = tensor::find(state, hidden)?;
            let array = match rows {
                Some(rows) => tensor::take_rows(&state.mlx, array, &rows)?,
                None => array.clone(),
            };
            let names = model.input_names(LOGITS)?;
            let inputs = names
                .into_iter()
                .next()
                .map(|name| (name, Input::Array(array)));
            let inputs = inputs.into_iter().collect();
            let metadata = StepMetadata::default();
            let mlx = &state.mlx;
            let outputs = model.run(mlx, &owner, LOGITS, inputs, &metadata, Head::None)?;
            handles(state, &owner, outputs)
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

fn handles(state: &mut State, owner: &Arc<Owner>, arrays: Vec<Array>) -> Result<Vec<Tensor>> {
    let mut handle = |array| Tensor::new(state, owner, array);
    arrays.into_iter().map(&mut handle).collect()
}

fn run(
    model: &mut Model,
    state: &mut State,
    owner: &Arc<Owner>,
    graph: &str,
    inputs: Vec<(String, Sent)>,
    attention: Vec<LayerMetadata>,
    head: Head,
) -> Result<Vec<Array>> {
    let takes =
        |(_, sent): &(_, Sent)| matches!(sent, Sent::Sampled { places, .. } if !places.is_empty());
    let is_continued = inputs.iter().any(takes);
    if model.is_dirty() || (model.is_in_flight() && !is_continued) {
        settle(model, state)?;
    }
    let inputs = inputs
        .into_iter()
        .map(|(name, sent)| Ok((name, sent.receive(state)?)))
        .collect::<Result<_>>()?;
    let metadata = by_layer(model, attention);
    model.run(&state.mlx, owner, graph, inputs, &metadata, head)
}

/// Evaluates a model's caches with everything lazy, which may read them.
fn settle(model: &mut Model, state: &mut State) -> Result<()> {
    let arrays: Vec<Array> = state.tensors.values().cloned().collect();
    state.mlx.eval(arrays.iter().chain(model.cache_arrays()))?;
    model.mark_evaluated();
    model.mark_landed();
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

fn sent(inputs: Vec<(String, Argument)>) -> Vec<(String, Sent)> {
    let inputs = inputs.into_iter();
    inputs
        .map(|(name, argument)| (name, Sent::new(argument)))
        .collect()
}

/// An argument on its way to the owner's thread.
enum Sent {
    Host(HostTensor),
    Foreign(Imported),
    Tensor(u64),
    Sampled {
        known: HostTensor,
        tokens: u64,
        vocab_size: i64,
        places: Vec<(usize, usize)>,
    },
    Size(i64),
}

impl Sent {
    fn new(argument: Argument) -> Sent {
        match argument {
            Argument::Host(tensor) => Sent::Host(tensor),
            Argument::Foreign(tensor) => Sent::Foreign(tensor),
            Argument::Tensor(tensor) => Sent::Tensor(tensor.id()),
            Argument::Sampled {
                known,
                tokens,
                vocab_size,
                places,
            } => Sent::Sampled {
                known,
                tokens: tokens.id(),
                vocab_size,
                places,
            },
            Argument::Size(size) => Sent::Size(size),
        }
    }

    fn receive(self, state: &State) -> Result<Input> {
        match self {
            Sent::Host(tensor) => Ok(Input::Host(tensor)),
            Sent::Foreign(tensor) => Ok(Input::Foreign(tensor)),
            Sent::Size(size) => Ok(Input::Size(size)),
            Sent::Sampled {
                known,
                tokens,
                vocab_size,
                places,
            } => Ok(Input::Sampled(Sampled {
                known,
                tokens: tensor::find(state, tokens)?.clone(),
                vocab_size,
                places,
            })),
            Sent::Tensor(id) => Ok(Input::Array(tensor::find(state, id)?.clone())),
        }
    }
}
