// SPDX-License-Identifier: Apache-2.0
//! A loaded model on the owner's thread: its graphs, parameters, layers and caches.

use super::attention::Layer;
use super::bounds::input_bounds;
use super::error::{Error, Result};
use super::executor::Graph;
use super::host::HostTensor;
use super::inputs::{Input, bind};
use super::island::IslandRunner;
use super::kv_cache::{CacheSpec, KvCache};
use super::mlx::{Array, Mlx};
use super::owner::Owner;
use super::state::{StateCaches, StateSpec};
use super::step::{Caches, Layers, StepEffects, StepMetadata};
use super::weights::{LoadReport, Parameters};
use lowering::ir::Op;
use lowering::plan::{GraphPlan, Plan, StateLayer, Step};
use std::collections::HashMap;
use std::sync::Arc;

/// A model that can run.
pub struct Model {
    graphs: Vec<Prepared>,
    layers: Vec<Layer>,
    state_layers: Vec<StateLayer>,
    caches: Caches,
    islands: Option<Box<dyn IslandRunner>>,
}

struct Prepared {
    graph: Graph,
    /// See [`input_bounds`].
    bounds: Vec<Option<i64>>,
    /// Layers whose attention the graph runs.
    layers: Vec<usize>,
    /// State layers that it runs.
    state_layers: Vec<usize>,
}

impl Model {
    /// Binds the plan's parameters, runs its folds and prepares its layers.
    pub fn load(
        mlx: &Mlx,
        plan: Plan,
        mut parameters: Parameters,
        islands: Option<Box<dyn IslandRunner>>,
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
        let mut graphs = Vec::with_capacity(plan.graphs.len());
        for graph in plan.graphs {
            let arrays = parameters.of_graph(mlx, &graph)?;
            graphs.push(Prepared {
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
        let plan = &self.graph(graph)?.graph.plan;
        Ok(plan.inputs.iter().map(|input| input.name.clone()).collect())
    }

    fn graph(&self, name: &str) -> Result<&Prepared> {
        self.graphs
            .iter()
            .find(|prepared| prepared.graph.plan.name == name)
            .ok_or_else(|| Error::UnknownGraph {
                name: name.to_owned(),
                known: self
                    .graphs
                    .iter()
                    .map(|prepared| prepared.graph.plan.name.clone())
                    .collect(),
            })
    }

    /// Builds one run of a graph, lazily. Everything that indexes memory is checked first; where a
    /// check or the building fails, the caches stay as they were.
    pub fn run(
        &mut self,
        mlx: &Mlx,
        owner: &Arc<Owner>,
        name: &str,
        inputs: HashMap<String, Input>,
        metadata: &StepMetadata,
    ) -> Result<Vec<Array>> {
        self.graph(name)?;
        let Model {
            graphs,
            layers,
            state_layers,
            caches,
            islands,
        } = self;
        let all = Layers {
            attention: layers,
            state: state_layers,
        };
        let Some(prepared) = graphs
            .iter()
            .find(|prepared| prepared.graph.plan.name == name)
        else {
            return Err(Error::Internal(format!("graph {name:?} vanished")));
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
        let mut effects = StepEffects::new(mlx, owner, all, caches, metadata, islands.as_deref());
        let outputs = prepared
            .graph
            .run(mlx, &bound.symbols, bound.arrays, &mut effects)?;
        effects.commit();
        Ok(outputs)
    }

    /// Whether a cache holds a step that is not evaluated.
    pub fn is_dirty(&self) -> bool {
        self.caches.dirty
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

fn attention_layers(graph: &GraphPlan) -> Vec<usize> {
    let effects = graph.steps.iter().filter_map(|step| match step {
        Step::Effect {
            op: Op::Attention { layer },
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
