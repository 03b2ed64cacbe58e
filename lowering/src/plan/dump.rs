// SPDX-License-Identifier: Apache-2.0
//! Graphs and plans as text: one line an operator, in canonical order, so that two dumps compare line by line.

use super::{GraphPlan, PlanReport, Step};
use crate::ir::{Graph, Op, TensorType, Value};
use std::fmt::Write;

/// An operator with its attributes.
pub fn describe(op: &Op) -> String {
    let name = op.name();
    let attributes = match op {
        Op::Input(index) | Op::Parameter(index) | Op::Project(index) => index.to_string(),
        Op::Scalar(value) => format!("{value:?}"),
        Op::Full { value, .. } => format!("{value:?}"),
        Op::Arange { start, step, .. } => format!("{start} by {step}"),
        Op::Transpose { permutation } => format!("{permutation:?}"),
        Op::Slice { axis, start, stop, step, .. } => format!("axis {axis}, {start}:{stop}:{step}"),
        Op::Concat { axis }
        | Op::Take { axis }
        | Op::TakeAlongAxis { axis }
        | Op::PutAlongAxis { axis }
        | Op::Softmax { axis }
        | Op::Cumsum { axis } => format!("axis {axis}"),
        Op::Sort { axis, descending } => format!("axis {axis}, descending {descending}"),
        Op::Topk { axis, k } => format!("axis {axis}, k {k}"),
        Op::Cast { dtype } => dtype.to_string(),
        Op::Reduce { axes, .. } => format!("axes {axes:?}"),
        Op::RmsNorm { eps } | Op::AddRmsNorm { eps, .. } | Op::LayerNorm { eps } => format!("eps {eps}"),
        Op::Rope { style, rotary_dim } => format!("{style:?}, {rotary_dim}").to_lowercase(),
        Op::GatedActivation { activation } => format!("{activation:?}").to_lowercase(),
        Op::Attention { layer } => format!("layer {layer}"),
        Op::Tril { diagonal } | Op::Triu { diagonal } => format!("diagonal {diagonal}"),
        Op::Pad { low, high, .. } => format!("{low:?} {high:?}"),
        Op::Island { target, .. } => target.clone(),
        Op::Reshape { .. } | Op::Broadcast { .. } | Op::Unary(_) | Op::Binary(_) | Op::Where | Op::Matmul | Op::Addmm => {
            String::new()
        }
    };
    if attributes.is_empty() { name.to_string() } else { format!("{name} {{{attributes}}}") }
}

fn types(types: &[TensorType]) -> String {
    types.iter().map(TensorType::to_string).collect::<Vec<_>>().join(" ")
}

fn numbers(prefix: char, numbers: &[u32]) -> String {
    numbers.iter().map(|number| format!("{prefix}{number}")).collect::<Vec<_>>().join(" ")
}

/// A graph before planning.
pub fn dump_graph(graph: &Graph) -> String {
    let mut text = String::new();
    let name = |value: &Value| match graph.node(value.node).types.len() {
        1 => format!("%{}", value.node.index()),
        _ => format!("%{}.{}", value.node.index(), value.output),
    };
    for id in graph.topological() {
        let node = graph.node(id);
        let operands: Vec<String> = graph.operands(id).iter().map(name).collect();
        let source = node.source.as_ref().map_or(String::new(), |source| format!("    <- {source}"));
        let _ = writeln!(text, "%{} = {} {} : {}{source}", id.index(), describe(&node.op), operands.join(" "), types(&node.types));
    }
    let outputs: Vec<String> = graph.outputs.iter().map(name).collect();
    let _ = writeln!(text, "return {}", outputs.join(" "));
    text
}

/// A plan with the sources of its instructions.
pub fn dump_plan(plan: &GraphPlan, report: &PlanReport) -> String {
    let mut text = String::new();
    for (index, region) in plan.regions.iter().enumerate() {
        let calls = report.calls.get(index).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "region {index} x {calls}  ({} inputs, {} parameters)",
            region.num_inputs, region.num_parameters
        );
        for (place, instruction) in region.instructions.iter().enumerate() {
            let source = report.sources.get(index).and_then(|sources| sources.get(place)?.as_ref());
            let source = source.map_or(String::new(), |source| format!("    <- {} {}", source.target, source.line));
            let _ = writeln!(
                text,
                "  {} = {} {} : {}{source}",
                numbers('%', &instruction.outputs),
                describe(&instruction.op),
                numbers('%', &instruction.inputs),
                types(&instruction.types)
            );
        }
        let _ = writeln!(text, "  return {}", numbers('%', &region.outputs));
    }
    for step in &plan.steps {
        let _ = match step {
            Step::Call { region, inputs, parameters, outputs, .. } => {
                let weights: Vec<&str> =
                    parameters.iter().map(|index| plan.parameters[*index as usize].name.as_str()).collect();
                writeln!(
                    text,
                    "{} = region {region} {} [{}]",
                    numbers('$', outputs),
                    numbers('$', inputs),
                    weights.join(" ")
                )
            }
            Step::Effect { op, inputs, outputs, .. } => {
                writeln!(text, "{} = {} {}", numbers('$', outputs), describe(op), numbers('$', inputs))
            }
        };
    }
    let _ = writeln!(text, "return {}", numbers('$', &plan.outputs));
    text
}
