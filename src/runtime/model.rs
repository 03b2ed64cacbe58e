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
use super::step::{StepEffects, StepMetadata};
use super::weights::{LoadReport, Parameters};
use lowering::ir::Op;
use lowering::plan::{GraphPlan, Plan, Step};
use std::collections::HashMap;
use std::sync::Arc;

/// A model that can run.
pub struct Model {
    graphs: Vec<Prepared>,
    layers: Vec<Layer>,
    cache: Option<KvCache>,
    islands: Option<Box<dyn IslandRunner>>,
}

struct Prepared {
    graph: Graph,
    /// See [`input_bounds`].
    bounds: Vec<Option<i64>>,
    /// Layers whose attention the graph runs.
    layers: Vec<usize>,
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
                graph: Graph::new(mlx, graph, arrays)?,
            });
        }
        let report = parameters.report;
        Ok((
            Model {
                graphs,
                layers,
                cache: None,
                islands,
            },
            report,
        ))
    }

    /// Replaces the caches; returns their bytes.
    pub fn allocate_kv_cache(&mut self, mlx: &Mlx, specs: &[CacheSpec]) -> Result<usize> {
        self.cache = None;
        let cache = KvCache::allocate(mlx, &self.layers, specs)?;
        let nbytes = cache.nbytes();
        self.cache = Some(cache);
        Ok(nbytes)
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
            cache,
            islands,
        } = self;
        let Some(prepared) = graphs
            .iter()
            .find(|prepared| prepared.graph.plan.name == name)
        else {
            return Err(Error::Internal(format!("graph {name:?} vanished")));
        };
        let bound = bind(mlx, &prepared.graph.plan, &prepared.bounds, inputs)?;
        if !prepared.layers.is_empty() {
            metadata.check(layers, &prepared.layers, cache.as_ref(), bound.num_tokens)?;
        }
        let mut effects = StepEffects::new(
            mlx,
            owner,
            layers,
            cache.as_mut(),
            metadata,
            islands.as_deref(),
        );
        let outputs = prepared
            .graph
            .run(mlx, &bound.symbols, bound.arrays, &mut effects)?;
        effects.commit();
        Ok(outputs)
    }

    /// Whether a cache holds a step that is not evaluated.
    pub fn is_dirty(&self) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.dirty)
    }

    /// Cache arrays that hold a step that is not evaluated.
    pub fn dirty_arrays(&self) -> impl Iterator<Item = &Array> {
        let dirty = self.cache.iter().filter(|cache| cache.dirty);
        dirty.flat_map(|cache| cache.caches.iter().map(|cache| &cache.array))
    }

    /// The caches were evaluated.
    pub fn mark_evaluated(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.dirty = false;
        }
    }

    /// A layer's cache.
    pub fn cache_rows(&self, layer: usize) -> Result<Array> {
        let cache = self
            .cache
            .as_ref()
            .ok_or_else(|| Error::KvCache("none is allocated".into()))?;
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

/// A host tensor as an input.
impl From<HostTensor> for Input {
    fn from(tensor: HostTensor) -> Input {
        Input::Host(tensor)
    }
}
