// SPDX-License-Identifier: Apache-2.0
//! A loaded model on the owner's thread: its graphs, parameters, layers and caches.

use super::attention::Layer;
use super::bounds::input_bounds;
use super::error::{Error, Result};
use super::executor::Graph;
use super::host::HostTensor;
use super::inputs::{Input, bind};
use super::island::IslandRunner;
use super::kernels::{Kernels, launch};
use super::kv_cache::{CacheSpec, KvCache};
use super::mlx::{Array, Device, Mlx, int_array};
use super::operands::Operands;
use super::owner::Owner;
use super::replay::{Builds, Replays};
use super::sample::{Row, Sampling, sample};
use super::state::{StateCaches, StateSpec};
use super::step::{Caches, Layers, StepMetadata};
use super::step_graph::{Changing, Parts, step_of};
use super::weights::{LoadReport, Parameters};
use lowering::ir::Op;
use lowering::plan::{GraphPlan, KernelChoice, Plan, StateLayer, Step};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// A model that can run.
pub struct Model {
    graphs: Vec<Prepared>,
    layers: Vec<Layer>,
    state_layers: Vec<StateLayer>,
    caches: Caches,
    islands: Option<Box<dyn IslandRunner>>,
    replays: Replays,
    kernels: RefCell<Kernels>,
    /// The kernel that draws tokens from logits, where there is one.
    draw: Option<KernelChoice>,
}

/// The graph from a step's result to its logits.
pub const LOGITS: &str = "logits";

/// Whether logits are computed with a step.
pub enum Head {
    /// Of no row.
    None,
    /// Of all rows.
    All,
    /// Of these.
    Rows(Vec<i64>),
}

/// A graph with what is known of it.
pub struct Prepared {
    pub graph: Graph,
    /// Whether PyTorch, or a stand-in for Metal, runs a part of it.
    pub has_islands: bool,
    /// See [`input_bounds`].
    pub bounds: Vec<Option<i64>>,
    /// Layers whose attention the graph runs.
    layers: Vec<usize>,
    /// State layers that it runs.
    state_layers: Vec<usize>,
}

impl Model {
    /// Binds the plan's parameters, runs its folds and prepares its layers. Graphs of `kept_shapes`
    /// shapes of decode steps are kept.
    pub fn load(
        mlx: &Mlx,
        plan: Plan,
        mut parameters: Parameters,
        islands: Option<Box<dyn IslandRunner>>,
        kept_shapes: usize,
    ) -> Result<(Model, LoadReport)> {
        let mut layers = Vec::with_capacity(plan.layers.len());
        for layer in plan.layers {
            let sinks = layer
                .sinks
                .as_deref()
                .map(|path| parameters.get(path))
                .transpose()?
                .cloned();
            layers.push(Layer::new(mlx, layer, sinks)?);
        }
        let bound = parameters.bind(mlx, &plan.graphs)?;
        let mut graphs = Vec::with_capacity(plan.graphs.len());
        for (graph, arrays) in plan.graphs.into_iter().zip(bound) {
            graphs.push(Prepared {
                has_islands: has_islands(&graph)
                    || (mlx.device() != Device::Gpu && has_kernels(&graph, &layers)),
                bounds: input_bounds(&graph),
                layers: attention_layers(&graph),
                state_layers: state_layers(&graph),
                graph: Graph::new(mlx, graph, arrays)?,
            });
        }
        let report = parameters.report;
        Ok((
            Model {
                graphs,
                layers,
                state_layers: plan.state_layers,
                caches: Caches::default(),
                islands,
                replays: Replays::new(kept_shapes),
                kernels: RefCell::default(),
                draw: plan.sample,
            },
            report,
        ))
    }

    /// Replaces the caches; returns their bytes.
    pub fn allocate_kv_cache(
        &mut self,
        mlx: &Mlx,
        specs: &[CacheSpec],
        states: &[StateSpec],
    ) -> Result<usize> {
        self.caches = Caches::default();
        self.replays.clear();
        let attention = KvCache::allocate(mlx, &self.layers, specs)?;
        let state = StateCaches::allocate(mlx, &self.state_layers, states)?;
        let nbytes = attention.nbytes() + state.nbytes();
        self.caches.attention = Some(attention);
        self.caches.state = Some(state);
        Ok(nbytes)
    }

    /// Index of the plan's state layer of that name.
    pub fn state_layer(&self, name: &str) -> Option<usize> {
        self.state_layers
            .iter()
            .position(|layer| layer.name == name)
    }

    /// Number of state layers.
    pub fn num_state_layers(&self) -> usize {
        self.state_layers.len()
    }

    /// Index of the plan's layer of that name.
    pub fn layer(&self, name: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.plan.name == name)
    }

    /// Number of attention layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Names of a graph's inputs.
    pub fn input_names(&self, graph: &str) -> Result<Vec<String>> {
        let plan = &find(&self.graphs, graph)?.graph.plan;
        Ok(plan.inputs.iter().map(|input| input.name.clone()).collect())
    }

    /// Builds one run of a graph, lazily, and with `head` that of the graph [`LOGITS`] on its result.
    /// Everything that indexes memory is checked first; where a check or the building fails, the
    /// caches stay as they were. Where a step is in flight, an input is a result of it.
    ///
    /// Results are those of the graph, then those of the head.
    pub fn run(
        &mut self,
        mlx: &Mlx,
        owner: &Arc<Owner>,
        name: &str,
        inputs: HashMap<String, Input>,
        metadata: &StepMetadata,
        head: Head,
    ) -> Result<Vec<Array>> {
        let Model {
            graphs,
            layers,
            state_layers,
            caches,
            islands,
            replays,
            kernels,
            draw: _,
        } = self;
        let prepared = find(graphs, name)?;
        let head_graph = match head {
            Head::None => None,
            Head::All | Head::Rows(_) => Some(find(graphs, LOGITS)?),
        };
        let all = Layers {
            attention: layers,
            state: state_layers,
        };
        let bound = bind(mlx, &prepared.graph.plan, &prepared.bounds, inputs)?;
        if !prepared.layers.is_empty() {
            let cache = caches.attention.as_ref();
            metadata.check(layers, &prepared.layers, cache, bound.num_tokens)?;
        }
        if !prepared.state_layers.is_empty() {
            let (used, states) = (&prepared.state_layers, caches.state.as_ref());
            metadata.check_states(all, used, states, bound.num_tokens)?;
        }
        let used = [&prepared.layers[..], &prepared.state_layers[..]];
        if caches.in_flight {
            caches.share(mlx)?;
        }
        let operands = Operands::new(mlx, all, used, caches, metadata, bound.num_tokens)?;
        let parts = Parts {
            mlx,
            owner,
            graph: prepared,
            head: head_graph,
            layers: all,
            islands: islands.as_deref(),
            kernels,
            symbols: &bound.symbols,
            num_tokens: bound.num_tokens,
        };
        let changing = Changing {
            inputs: bound.arrays,
            rows: match head {
                Head::Rows(rows) => Some(checked_rows(&rows, bound.num_tokens)?),
                Head::None | Head::All => None,
            },
            operands,
        };
        step_of(&parts, changing, caches, replays)
    }

    /// A token for each row of logits, lazily: the most likely one without `sampling`.
    pub fn sample(
        &self,
        mlx: &Mlx,
        owner: &Arc<Owner>,
        logits: &Array,
        sampling: Option<Sampling>,
    ) -> Result<Array> {
        let rows = logits.shape().first().copied().unwrap_or(0) as usize;
        let greedy = || Sampling::new(&vec![Row::GREEDY; rows]);
        let sampling = sampling.map_or_else(greedy, Ok)?;
        let mut launch = |choice: &KernelChoice, step: &[_], inputs: &[&Array]| {
            let (mut kernels, islands) = (self.kernels.borrow_mut(), self.islands.as_deref());
            launch(mlx, owner, &mut kernels, islands, choice, step, inputs)
        };
        sample(mlx, logits, &sampling, self.draw.as_ref(), &mut launch)
    }

    /// How steps came about since loading.
    pub fn builds(&self) -> Builds {
        self.replays.builds
    }

    /// Whether a cache holds a step that is not evaluated.
    pub fn is_dirty(&self) -> bool {
        self.caches.dirty
    }

    /// Whether a step that was submitted may still use the caches.
    pub fn is_in_flight(&self) -> bool {
        self.caches.in_flight
    }

    /// The step that the caches hold was submitted.
    pub fn mark_submitted(&mut self) {
        self.caches.dirty = false;
        self.caches.in_flight = true;
    }

    /// Nothing uses the caches.
    pub fn mark_landed(&mut self) {
        self.caches.in_flight = false;
    }

    /// All cache arrays.
    pub fn cache_arrays(&self) -> impl Iterator<Item = &Array> {
        self.caches.arrays()
    }

    /// Cache arrays that hold a step that is not evaluated.
    pub fn dirty_arrays(&self) -> impl Iterator<Item = &Array> {
        let dirty = self.caches.dirty;
        self.caches.arrays().filter(move |_| dirty)
    }

    /// The caches were evaluated.
    pub fn mark_evaluated(&mut self) {
        self.caches.dirty = false;
    }

    /// A layer's cache.
    pub fn cache_rows(&self, layer: usize) -> Result<Array> {
        let cache = self.caches.attention.as_ref();
        let cache = cache.ok_or_else(|| Error::KvCache("none is allocated".into()))?;
        Ok(cache.caches[cache.index(&self.layers, layer)?]
            .array
            .clone())
    }
}

fn find<'a>(graphs: &'a [Prepared], name: &str) -> Result<&'a Prepared> {
    let named = |prepared: &&Prepared| prepared.graph.plan.name == name;
    graphs
        .iter()
        .find(named)
        .ok_or_else(|| Error::UnknownGraph {
            name: name.to_owned(),
            known: graphs
                .iter()
                .map(|prepared| prepared.graph.plan.name.clone())
                .collect(),
        })
}

/// Whether any instruction or layer runs as a kernel.
fn has_kernels(graph: &GraphPlan, layers: &[Layer]) -> bool {
    let mut instructions = graph.regions.iter().flat_map(|region| &region.instructions);
    let mut regions = graph.regions.iter();
    let mut used = attention_layers(graph).into_iter();
    instructions.any(|instruction| instruction.kernel.is_some())
        || regions.any(|region| !region.fusions.is_empty())
        || used.any(|index| {
            layers
                .get(index)
                .is_some_and(|layer| layer.kernel.is_some())
        })
}

fn has_islands(graph: &GraphPlan) -> bool {
    let is_island = |op: &Op| matches!(op, Op::Island { .. });
    let in_regions = graph.regions.iter().flat_map(|region| &region.instructions);
    in_regions.map(|instruction| &instruction.op).any(is_island)
        || graph.steps.iter().any(|step| match step {
            Step::Effect { op, .. } => is_island(op),
            Step::Call { .. } => false,
        })
}

fn checked_rows(rows: &[i64], num_tokens: usize) -> Result<Array> {
    let outside = rows
        .iter()
        .find(|row| !(0..num_tokens as i64).contains(row));
    if let Some(row) = outside {
        return Err(Error::Tensor(format!(
            "row {row} of a step of {num_tokens} tokens"
        )));
    }
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    Ok(int_array(&rows, &[rows.len() as i32])?)
}

fn attention_layers(graph: &GraphPlan) -> Vec<usize> {
    let effects = graph.steps.iter().filter_map(|step| match step {
        Step::Effect {
            op:
                Op::Attention { layer }
                | Op::SparseAttention { layer, .. }
                | Op::SelectKeys { layer, .. },
            ..
        } => Some(*layer as usize),
        _ => None,
    });
    effects.collect()
}

fn state_layers(graph: &GraphPlan) -> Vec<usize> {
    let effects = graph.steps.iter().filter_map(|step| match step {
        Step::Effect {
            op: Op::Recurrence { layer, .. },
            ..
        } => Some(*layer as usize),
        _ => None,
    });
    effects.collect()
}

/// A host tensor as an input.
impl From<HostTensor> for Input {
    fn from(tensor: HostTensor) -> Input {
        Input::Host(tensor)
    }
}
