// SPDX-License-Identifier: Apache-2.0
//! A graph to its plan: pieces rewritten once for all identical layers, then flattened.

use super::flatten::{flatten, release_slots};
use super::merge_ropes::merge_ropes;
use super::partition::{Piece, Place, outputs, piece, places};
use super::{Binding, Fold, GraphPlan, Slot, Step};
use crate::error::{Error, Result};
use crate::import::ImportedGraph;
use crate::ir::{Graph, NodeId, Op, Value, verify};
use crate::rewrite::{Origin, Rewritten, rewrite};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// How a graph was planned.
#[derive(Clone, Default)]
pub struct PlanReport {
    /// Rules that applied while the unique regions were rewritten, with how often.
    pub rules: BTreeMap<&'static str, usize>,
    /// Rules whose left side was found, with how often; guards may have refused.
    pub matched: BTreeMap<&'static str, usize>,
    /// Calls of each region.
    pub calls: Vec<usize>,
    /// For each region's instructions, what they stand for in the region's first call.
    pub origins: Vec<Vec<Origin>>,
    /// Each region after rewriting, as a graph.
    pub regions: Vec<Graph>,
    /// Nodes of all regions before and after rewriting, over all calls.
    pub nodes_before: usize,
    pub nodes_after: usize,
}

/// State of one graph's planning.
struct Planner<'a> {
    graph: &'a Graph,
    places: Vec<Place>,
    plan: GraphPlan,
    report: PlanReport,
    slots: FxHashMap<Value, Slot>,
    constants: FxHashMap<Value, u32>,
    /// Compiled pieces with their region, by [`Graph::structure_hash`].
    known: FxHashMap<u64, Vec<(Graph, u32)>>,
}

/// Plans a graph.
pub fn build(imported: &ImportedGraph) -> Result<(GraphPlan, PlanReport)> {
    let graph = &imported.graph;
    let mut planner = Planner {
        graph,
        places: places(graph),
        plan: GraphPlan {
            name: imported.name.clone(),
            symbols: imported.symbols.clone(),
            inputs: imported.inputs.clone(),
            parameters: imported.parameters.clone(),
            folds: Vec::new(),
            regions: Vec::new(),
            steps: Vec::new(),
            num_slots: imported.inputs.len() as u32,
            outputs: Vec::new(),
        },
        report: PlanReport::default(),
        slots: FxHashMap::default(),
        constants: FxHashMap::default(),
        known: FxHashMap::default(),
    };
    for id in graph.topological() {
        if let Op::Input(index) = graph.node(id).op {
            planner.slots.insert(
                Value {
                    node: id,
                    output: 0,
                },
                index,
            );
        }
    }
    let mut outputs = outputs(graph, &planner.places);
    let mut effects: Vec<Vec<NodeId>> = Vec::new();
    for id in &graph.effects {
        if let Place::Effect(level) = planner.places[id.index()] {
            effects.resize_with(effects.len().max(level as usize + 1), Vec::new);
            effects[level as usize].push(*id);
        }
    }
    let levels = outputs.len().max(effects.len());
    outputs.resize_with(levels, Vec::new);
    effects.resize_with(levels, Vec::new);
    for (level, (outputs, effects)) in outputs.into_iter().zip(effects).enumerate() {
        if !outputs.is_empty() {
            planner.call(piece(graph, &planner.places, level as u32, outputs))?;
        }
        for effect in effects {
            planner.effect(effect)?;
        }
    }
    let outputs: Result<Vec<Slot>> = graph
        .outputs
        .iter()
        .map(|output| planner.slot(*output))
        .collect();
    planner.plan.outputs = outputs?;
    release_slots(&mut planner.plan);
    Ok((planner.plan, planner.report))
}

impl Planner<'_> {
    fn new_slots(&mut self, values: &[Value]) -> Vec<Slot> {
        values
            .iter()
            .map(|value| {
                let slot = self.plan.num_slots;
                self.plan.num_slots += 1;
                self.slots.insert(*value, slot);
                slot
            })
            .collect()
    }

    fn call(&mut self, piece: Piece) -> Result<()> {
        let parameters: Vec<u32> = piece
            .parameters
            .iter()
            .map(|value| self.constant(*value))
            .collect();
        let inputs: Result<Vec<Slot>> =
            piece.inputs.iter().map(|value| self.slot(*value)).collect();
        let nodes = piece.graph.len();
        let hash = piece.graph.structure_hash();
        let same = |(graph, _): &&(Graph, u32)| graph.same_structure(&piece.graph);
        let known = self.known.get(&hash).and_then(|all| all.iter().find(same));
        let region = match known {
            Some((_, region)) => *region,
            None => {
                let region = self.compile(&piece)?;
                self.known
                    .entry(hash)
                    .or_default()
                    .push((piece.graph, region));
                region
            }
        };
        self.report.calls[region as usize] += 1;
        self.report.nodes_before += nodes;
        self.report.nodes_after += self.plan.regions[region as usize].instructions.len();
        let step = Step::Call {
            region,
            inputs: inputs?,
            parameters,
            outputs: self.new_slots(&piece.outputs),
            release: Vec::new(),
        };
        self.plan.steps.push(step);
        Ok(())
    }

    fn compile(&mut self, piece: &Piece) -> Result<u32> {
        verify(&piece.graph).map_err(|reason| Error::Verifier {
            stage: "partitioning",
            reason,
        })?;
        let Rewritten {
            graph,
            origins,
            applied,
            matched,
            ..
        } = rewrite(&piece.graph)?;
        verify(&graph).map_err(|reason| Error::Verifier {
            stage: "rewriting",
            reason,
        })?;
        for (rule, count) in applied {
            *self.report.rules.entry(rule).or_insert(0) += count;
        }
        for (rule, count) in matched {
            *self.report.matched.entry(rule).or_insert(0) += count;
        }
        let (graph, origins) = merge_ropes(&graph, &origins);
        let (region, origins) = flatten(&graph, origins, piece);
        self.plan.regions.push(region);
        self.report.calls.push(0);
        self.report.origins.push(origins);
        self.report.regions.push(graph);
        Ok(self.plan.regions.len() as u32 - 1)
    }

    fn effect(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let inputs: Result<Vec<Slot>> = self
            .graph
            .operands(id)
            .iter()
            .map(|operand| self.slot(*operand))
            .collect();
        let outputs: Vec<Value> = (0..node.types.len() as u32)
            .map(|output| Value { node: id, output })
            .collect();
        let step = Step::Effect {
            op: node.op.clone(),
            inputs: inputs?,
            outputs: self.new_slots(&outputs),
            types: node.types.clone(),
            release: Vec::new(),
        };
        self.plan.steps.push(step);
        Ok(())
    }

    /// The slot of a value that crosses pieces; a constant gets one through a region that yields it.
    fn slot(&mut self, value: Value) -> Result<Slot> {
        if let Some(slot) = self.slots.get(&value) {
            return Ok(*slot);
        }
        let mut graph = Graph::default();
        let types = vec![self.graph.value_type(value).clone()];
        let (op, parameters) = match self.places[value.node.index()] {
            Place::Constant => (Op::Parameter(0), vec![value]),
            Place::Scalar => (self.graph.node(value.node).op.clone(), vec![]),
            _ => {
                let reason = format!(
                    "{} is used before it is computed",
                    self.graph.node(value.node).op.name()
                );
                return Err(Error::Verifier {
                    stage: "planning",
                    reason,
                });
            }
        };
        let leaf = graph.add(op, &[], types, self.graph.node(value.node).source.clone());
        graph.outputs = vec![Value {
            node: leaf,
            output: 0,
        }];
        self.call(Piece {
            graph,
            inputs: vec![],
            parameters,
            outputs: vec![value],
        })?;
        self.slot(value)
    }

    /// The parameter index of a constant, computed at load if it is not the checkpoint's.
    fn constant(&mut self, value: Value) -> u32 {
        if let Some(index) = self.constants.get(&value) {
            return *index;
        }
        let node = self.graph.node(value.node);
        if let Op::Parameter(index) = node.op {
            self.constants.insert(value, index);
            return index;
        }
        let operands = self.graph.operands(value.node);
        let inputs: Vec<u32> = operands
            .iter()
            .map(|operand| self.constant(*operand))
            .collect();
        let mut outputs = Vec::new();
        for (output, value_type) in node.types.iter().enumerate() {
            let index = self.plan.parameters.len() as u32;
            let name = format!("fold.{}", self.plan.folds.len());
            self.plan.parameters.push(Binding {
                name,
                value: value_type.clone(),
            });
            self.constants.insert(
                Value {
                    node: value.node,
                    output: output as u32,
                },
                index,
            );
            outputs.push(index);
        }
        self.plan.folds.push(Fold {
            op: node.op.clone(),
            inputs,
            outputs,
        });
        self.constants[&value]
    }
}
