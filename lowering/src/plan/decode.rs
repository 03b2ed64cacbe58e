// SPDX-License-Identifier: Apache-2.0
//! What one decode step of a plan launches and moves: one request, one token.

use super::cache_work::{AttentionWork, attention, key_selection};
use super::paged::PAGED_DECODE;
use super::work::{Work, one_launch, rope_table, rotation, work};
use super::{AttentionLayer, GraphPlan, PlanReport, Region, Register, Slot, Step};
use crate::ir::{DType, Graph, NodeId, Op, RopeStyle, TensorType, Value};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Tokens of the request whose next token is decoded.
pub const DECODE_CONTEXT: u64 = 512;

/// One decode step at batch 1, over all graphs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Decode {
    /// Tokens of the request: what attention reads of the KV cache.
    pub context_length: u64,
    /// Where no kernel of ours runs.
    #[serde(flatten)]
    pub reference: Launches,
    /// Where all those that the plan chose run.
    pub kernels: Launches,
}

/// What a step launches.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Launches {
    /// Kernels launched.
    pub launches: u64,
    /// Kernels from one attention to the next, on average; all of them where there are less than two.
    pub launches_per_layer: f64,
    /// The same by what launches them: operators of the plan, kernels, `cache_write`.
    pub layer: BTreeMap<String, f64>,
    /// Weights, activations and KV cache.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// A region's nodes that are instructions, in the order of the plan.
fn nodes(region: &Graph) -> impl Iterator<Item = NodeId> + '_ {
    let leaf = |id: &NodeId| matches!(region.node(*id).op, Op::Input(_) | Op::Parameter(_));
    region.topological().filter(move |id| !leaf(id))
}

fn operand_types(region: &Graph, id: NodeId) -> Vec<&TensorType> {
    let operands = region.operands(id);
    let types = operands.iter().map(|operand| region.value_type(*operand));
    types.collect()
}

/// Work of each instruction of a region, at one token.
pub fn region_work(region: &Graph) -> Vec<Work> {
    nodes(region)
        .map(|id| {
            let (node, operands) = (region.node(id), operand_types(region, id));
            match (&node.op, &region.operands(id)[..]) {
                (Op::Rope { .. }, [_, _, q, k]) if are_adjacent(region, *q, *k) => {
                    rotation(&operands)
                }
                _ => work(&node.op, &operands, &node.types),
            }
        })
        .collect()
}

/// Whether queries and keys are columns of one projection that follow each other, which are rotated
/// where they lie, also after a norm of each.
fn are_adjacent(region: &Graph, q: Value, k: Value) -> bool {
    let operand = |of: Value| region.operands(of.node).first().copied();
    let columns = |heads: Value| {
        let heads = match region.node(heads.node).op {
            Op::RmsNorm { .. } => operand(heads)?,
            _ => heads,
        };
        let Op::Reshape { .. } = region.node(heads.node).op else {
            return None;
        };
        let part = operand(heads)?;
        let Op::Slice {
            axis,
            start,
            stop,
            step: 1,
            ..
        } = region.node(part.node).op
        else {
            return None;
        };
        let whole = operand(part)?;
        (axis + 1 == region.value_type(whole).rank()).then_some((whole, start, stop))
    };
    matches!((columns(q), columns(k)), (Some((of, _, stop)), Some((other, start, _)))
        if of == other && stop == start)
}

/// Work of a region by name, where its kernels run or where they do not.
fn named_work(region: &Region, graph: &Graph, kernels: bool) -> Vec<(String, Work)> {
    let mut found = Vec::new();
    let ids: Vec<NodeId> = nodes(graph).collect();
    let works = region_work(graph);
    for (position, (instruction, reference)) in region.instructions.iter().zip(works).enumerate() {
        let mut fusions = region.fusions.iter().filter(|_| kernels);
        let chosen = instruction.kernel.as_ref().filter(|_| kernels);
        let (name, work) = match (fusions.find(|fusion| fusion.covers(position)), chosen) {
            (Some(fusion), _) if fusion.place() == Some(position) => {
                let covered = fusion.instructions.iter().map(|at| *at as usize);
                let mut types = BTreeMap::new();
                for at in covered.filter(|at| *at < ids.len()) {
                    let covered = &region.instructions[at];
                    types.extend(covered.inputs.iter().zip(operand_types(graph, ids[at])));
                    types.extend(covered.outputs.iter().zip(&covered.types));
                }
                // Each array once, whichever instructions read it.
                let of = |registers: &[Register]| -> Vec<&TensorType> {
                    let known = registers.iter().filter_map(|of| types.get(of));
                    known.copied().collect()
                };
                let work = one_launch(of(&fusion.inputs), of(&fusion.outputs));
                (fusion.kernel.name.clone(), work)
            }
            (Some(_), _) => continue,
            (None, Some(kernel)) => {
                let read = operand_types(graph, ids[position]);
                (kernel.name.clone(), one_launch(read, &instruction.types))
            }
            (None, None) => (instruction.op.name().to_owned(), reference),
        };
        found.push((name, work));
    }
    found
}

/// Bytes of an element of the cache.
fn element_size(dtype: &str) -> u64 {
    DType::from_name(dtype).map_or(2, DType::size) as u64
}

/// Work of an attention effect; none for anything else.
fn attention_work(op: &Op, layers: &[AttentionLayer], dtype: &str) -> Option<AttentionWork> {
    let (layer, context) = match op {
        Op::Attention { layer } => (layer, DECODE_CONTEXT),
        Op::SparseAttention { layer, count } => (layer, DECODE_CONTEXT.min((*count).max(0) as u64)),
        _ => return None,
    };
    let layer = layers.get(*layer as usize)?;
    Some(attention(layer, context, element_size(dtype)))
}

/// Work of a selection of keys; none for anything else.
fn selection_work(op: &Op, layers: &[AttentionLayer], dtype: &str) -> Work {
    let Op::SelectKeys { layer, count } = op else {
        return Work::default();
    };
    let layer = layers.get(*layer as usize);
    layer.map_or(Work::default(), |layer| {
        key_selection(layer, DECODE_CONTEXT, *count, element_size(dtype))
    })
}

/// Work of an effect on the KV cache without kernels; none for anything else.
pub fn effect_work(op: &Op, layers: &[AttentionLayer], dtype: &str) -> Work {
    match attention_work(op, layers, dtype) {
        Some(work) => work.reference(),
        None => selection_work(op, layers, dtype),
    }
}

/// Work of an effect by name.
fn named_effect(
    op: &Op,
    layers: &[AttentionLayer],
    dtype: &str,
    kernels: bool,
) -> Vec<(String, Work)> {
    let Some(work) = attention_work(op, layers, dtype) else {
        return vec![(op.name().to_owned(), selection_work(op, layers, dtype))];
    };
    let kernel = match op {
        Op::Attention { layer } => layers.get(*layer as usize),
        _ => None,
    };
    let kernel = kernel.and_then(|layer| layer.kernel.as_ref());
    let (name, attend) = match kernel.filter(|_| kernels) {
        Some(_) => (PAGED_DECODE, work.paged),
        None => (op.name(), work.attend),
    };
    vec![
        ("cache_write".to_owned(), work.write),
        (name.to_owned(), attend),
    ]
}

/// One decode step of the graphs.
pub fn decode(
    graphs: &[GraphPlan],
    reports: &[PlanReport],
    layers: &[AttentionLayer],
    dtype: &str,
) -> Decode {
    let count = |kernels: bool| launches(graphs, reports, layers, dtype, kernels);
    Decode {
        context_length: DECODE_CONTEXT,
        reference: count(false),
        kernels: count(true),
    }
}

fn launches(
    graphs: &[GraphPlan],
    reports: &[PlanReport],
    layers: &[AttentionLayer],
    dtype: &str,
    kernels: bool,
) -> Launches {
    let mut total = Work::default();
    // Launches before each attention, the attention before included.
    let mut spans: Vec<BTreeMap<String, u64>> = Vec::new();
    for (graph, report) in graphs.iter().zip(reports) {
        let planned = graph.regions.iter().zip(&report.regions);
        let regions: Vec<_> = planned
            .map(|(region, of)| named_work(region, of, kernels))
            .collect();
        let mut since = BTreeMap::new();
        for step in &graph.steps {
            let (works, is_attention) = match step {
                Step::Call { region, .. } => {
                    let called = regions.get(*region as usize);
                    (called.cloned().unwrap_or_default(), false)
                }
                Step::Effect { op, .. } => (
                    named_effect(op, layers, dtype, kernels),
                    matches!(op, Op::Attention { .. } | Op::SparseAttention { .. }),
                ),
            };
            for (name, work) in works {
                total = total + work;
                if work.launches > 0 {
                    *since.entry(name).or_default() += work.launches;
                }
            }
            if is_attention {
                spans.push(std::mem::take(&mut since));
            }
        }
        total = total + tables(graph, report, kernels);
    }
    let between = spans.get(1..).unwrap_or_default();
    let mut layer: BTreeMap<String, f64> = BTreeMap::new();
    for (name, count) in between.iter().flatten() {
        *layer.entry(name.clone()).or_default() += *count as f64 / between.len() as f64;
    }
    Launches {
        launches: total.launches,
        launches_per_layer: match between.len() {
            0 => total.launches as f64,
            _ => {
                between.iter().flat_map(BTreeMap::values).sum::<u64>() as f64 / between.len() as f64
            }
        },
        layer,
        bytes_read: total.bytes_read,
        bytes_written: total.bytes_written,
    }
}

/// Where a rope's cosines come from: a slot that calls share, or a register of one call.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Slot(Slot),
    Register(usize, usize),
}

/// Rope tables of the graph: one for each style and pair of cosines and sines. Kernels take none.
fn tables(graph: &GraphPlan, report: &PlanReport, kernels: bool) -> Work {
    let mut known: BTreeSet<(RopeStyle, Table)> = BTreeSet::new();
    let mut total = Work::default();
    for (call, step) in graph.steps.iter().enumerate() {
        let Step::Call { region, inputs, .. } = step else {
            continue;
        };
        let index = *region as usize;
        let (Some(region), Some(planned)) = (report.regions.get(index), graph.regions.get(index))
        else {
            continue;
        };
        for (position, id) in nodes(region).enumerate() {
            let Op::Rope { style, .. } = region.node(id).op else {
                continue;
            };
            let mut fusions = planned.fusions.iter();
            if kernels && fusions.any(|fusion| fusion.covers(position)) {
                continue;
            }
            let operands = region.operands(id);
            let origin = match region.node(operands[0].node).op {
                Op::Input(index) => inputs
                    .get(index as usize)
                    .map_or(Table::Register(call, 0), |slot| Table::Slot(*slot)),
                _ => Table::Register(call, operands[0].node.index()),
            };
            if known.insert((style, origin)) {
                total = total + rope_table(region.value_type(operands[1]));
            }
        }
    }
    total
}
