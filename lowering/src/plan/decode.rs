// SPDX-License-Identifier: Apache-2.0
//! What one decode step of a plan launches and moves: one request, one token.

use super::work::{Work, attention, key_selection, rope_table, work};
use super::{AttentionLayer, GraphPlan, PlanReport, Slot, Step};
use crate::ir::{DType, Graph, Op, RopeStyle, TensorType};
use serde::Serialize;
use std::collections::BTreeSet;

/// Tokens of the request whose next token is decoded.
pub const DECODE_CONTEXT: u64 = 512;

/// One decode step at batch 1, over all graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Decode {
    /// Tokens of the request: what attention reads of the KV cache.
    pub context_length: u64,
    /// Kernels launched.
    pub launches: u64,
    /// Kernels from one attention to the next, on average; all of them where there are less than two.
    pub launches_per_layer: f64,
    /// Weights, activations and KV cache.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// Work of each instruction of a region, at one token.
pub fn region_work(region: &Graph) -> Vec<Work> {
    let instructions = region
        .topological()
        .filter(|id| !matches!(region.node(*id).op, Op::Input(_) | Op::Parameter(_)));
    instructions
        .map(|id| {
            let node = region.node(id);
            let operands = region.operands(id);
            let types: Vec<&TensorType> = operands
                .iter()
                .map(|operand| region.value_type(*operand))
                .collect();
            work(&node.op, &types, &node.types)
        })
        .collect()
}

/// Work of an effect on the KV cache; none for anything else.
pub fn effect_work(op: &Op, layers: &[AttentionLayer], dtype: &str) -> Work {
    let size = DType::from_name(dtype).map_or(2, DType::size) as u64;
    let of = |layer: &u32, work: &dyn Fn(&AttentionLayer) -> Work| {
        layers.get(*layer as usize).map_or(Work::default(), work)
    };
    match op {
        Op::Attention { layer } => of(layer, &|layer| attention(layer, DECODE_CONTEXT, size)),
        Op::SparseAttention { layer, count } => {
            let selected = DECODE_CONTEXT.min((*count).max(0) as u64);
            of(layer, &|layer| attention(layer, selected, size))
        }
        Op::SelectKeys { layer, count } => of(layer, &|layer| {
            key_selection(layer, DECODE_CONTEXT, *count, size)
        }),
        _ => Work::default(),
    }
}

/// One decode step of the graphs.
pub fn decode(
    graphs: &[GraphPlan],
    reports: &[PlanReport],
    layers: &[AttentionLayer],
    dtype: &str,
) -> Decode {
    let mut total = Work::default();
    // Launches before each attention and at the end, the attention before included.
    let mut spans: Vec<u64> = Vec::new();
    for (graph, report) in graphs.iter().zip(reports) {
        let regions: Vec<Work> = report
            .regions
            .iter()
            .map(|region| region_work(region).into_iter().sum())
            .collect();
        let mut since = 0;
        for step in &graph.steps {
            let (work, is_attention) = match step {
                Step::Call { region, .. } => (
                    regions.get(*region as usize).copied().unwrap_or_default(),
                    false,
                ),
                Step::Effect { op, .. } => (
                    effect_work(op, layers, dtype),
                    matches!(op, Op::Attention { .. } | Op::SparseAttention { .. }),
                ),
            };
            total = total + work;
            since += work.launches;
            if is_attention {
                spans.push(since);
                since = 0;
            }
        }
        total = total + tables(graph, report);
    }
    let between = spans.get(1..).unwrap_or_default();
    Decode {
        context_length: DECODE_CONTEXT,
        launches: total.launches,
        launches_per_layer: match between.len() {
            0 => total.launches as f64,
            count => between.iter().sum::<u64>() as f64 / count as f64,
        },
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

/// Rope tables of the graph: one for each style and pair of cosines and sines.
fn tables(graph: &GraphPlan, report: &PlanReport) -> Work {
    let mut known: BTreeSet<(RopeStyle, Table)> = BTreeSet::new();
    let mut total = Work::default();
    for (call, step) in graph.steps.iter().enumerate() {
        let Step::Call { region, inputs, .. } = step else {
            continue;
        };
        let Some(region) = report.regions.get(*region as usize) else {
            continue;
        };
        for id in region.topological() {
            let Op::Rope { style, .. } = region.node(id).op else {
                continue;
            };
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
