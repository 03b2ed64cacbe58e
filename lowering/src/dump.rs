// SPDX-License-Identifier: Apache-2.0
//! Every stage as a listing: one line an operator, in canonical order, so that two dumps compare
//! line by line. Text, JSON and DOT are written from the same listing.

use crate::error::{Error, Result};
use crate::import::{Arg, Document, FxGraph, FxNode, FxValue, NodeOp};
use crate::ir::{AttentionMask, Convolution, Graph, Op, Scores, Source, TensorType, Value};
use crate::plan::{GraphPlan, Plan, PlanReport, Step, Work, effect_work, region_work};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write;
use std::str::FromStr;

/// What a dump shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The FX document.
    Captured,
    /// The IR before rewriting.
    Imported,
    /// The unique regions after rewriting.
    Fused,
    /// Regions and the calls that string them together.
    Plan,
}

/// How a dump is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    /// Graphviz.
    Dot,
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Stage> {
        match name {
            "captured" => Ok(Stage::Captured),
            "imported" => Ok(Stage::Imported),
            "fused" => Ok(Stage::Fused),
            "plan" => Ok(Stage::Plan),
            _ => Err(Error::Malformed {
                what: "stage",
                reason: format!("{name:?}"),
            }),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Format> {
        match name {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "dot" => Ok(Format::Dot),
            _ => Err(Error::Malformed {
                what: "format",
                reason: format!("{name:?}"),
            }),
        }
    }
}

/// A graph, region or sequence of calls.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    pub title: String,
    /// Of a region: its calls in a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<usize>,
    /// What a decode step at batch 1 launches and moves here, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    pub lines: Vec<Line>,
    pub outputs: Vec<String>,
}

/// One operator.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    pub results: Vec<String>,
    pub op: String,
    pub operands: Vec<String>,
    pub types: Vec<String>,
    /// Of ours, that stands for it and perhaps for neighbours on Metal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// FX node, module and source line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// All captured nodes that the operator stands for, in the region's first call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub consumed: Vec<Source>,
    /// Rules that made it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<&'static str>,
    /// What a decode step at batch 1 launches and moves here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
}

/// Writes listings.
pub fn write(listings: &[Listing], format: Format) -> Result<String> {
    match format {
        Format::Text => Ok(listings.iter().map(text).collect::<Vec<_>>().join("\n")),
        Format::Json => serde_json::to_string_pretty(listings).map_err(|error| Error::Malformed {
            what: "dump",
            reason: error.to_string(),
        }),
        Format::Dot => Ok(dot(listings)),
    }
}

fn text(listing: &Listing) -> String {
    let mut text = format!("{}\n", listing.title);
    for Line {
        results,
        op,
        operands,
        types,
        kernel,
        source,
        consumed,
        ..
    } in &listing.lines
    {
        let _ = write!(text, "  {} = {op}", results.join(" "));
        for operand in operands {
            let _ = write!(text, " {operand}");
        }
        if !types.is_empty() {
            let _ = write!(text, " : {}", types.join(" "));
        }
        if let Some(kernel) = kernel {
            let _ = write!(text, " [{kernel}]");
        }
        if !source.is_empty() {
            let _ = write!(text, "    <- {source}");
        }
        if consumed.len() > 1 {
            let _ = write!(text, " ({} nodes)", consumed.len());
        }
        text.push('\n');
    }
    let _ = writeln!(text, "  return {}", listing.outputs.join(" "));
    text
}

fn dot(listings: &[Listing]) -> String {
    let mut text = String::from("digraph lowering {\n  node [shape=box, fontname=monospace];\n");
    for (cluster, listing) in listings.iter().enumerate() {
        let _ = writeln!(
            text,
            "  subgraph cluster_{cluster} {{\n    label={:?};",
            listing.title
        );
        let mut producer: HashMap<&str, usize> = HashMap::new();
        for (index, line) in listing.lines.iter().enumerate() {
            let label = format!("{}\n{}", line.op, line.types.join(" "));
            let _ = writeln!(text, "    n{cluster}_{index} [label={label:?}];");
            for operand in &line.operands {
                if let Some(from) = producer.get(operand.as_str()) {
                    let _ = writeln!(text, "    n{cluster}_{from} -> n{cluster}_{index};");
                }
            }
            producer.extend(line.results.iter().map(|result| (result.as_str(), index)));
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

fn attention(scores: &Scores, sinks: bool) -> String {
    let mut text = format!("scale {}", scores.scale);
    if let Some(cap) = scores.soft_cap {
        let _ = write!(text, ", soft cap {cap}");
    }
    let _ = match scores.mask {
        AttentionMask::None => Ok(()),
        AttentionMask::Causal { offset } => write!(text, ", causal from {offset}"),
        AttentionMask::Additive => write!(text, ", mask added"),
        AttentionMask::Boolean { fill } => write!(text, ", mask or {fill}"),
    };
    if sinks {
        text.push_str(", sinks");
    }
    text
}

/// An operator with its attributes.
pub fn describe(op: &Op) -> String {
    let name = op.name();
    let attributes = match op {
        Op::Input(index) | Op::Parameter(index) | Op::Project(index) => index.to_string(),
        Op::Scalar(value) => format!("{value:?}"),
        Op::Full { value, .. } => format!("{value:?}"),
        Op::Arange { start, step, .. } => format!("{start} by {step}"),
        Op::Transpose { permutation } => format!("{permutation:?}"),
        Op::Slice {
            axis,
            start,
            stop,
            step,
            ..
        } => format!("axis {axis}, {start}:{stop}:{step}"),
        Op::Concat { axis }
        | Op::Take { axis }
        | Op::TakeAlongAxis { axis }
        | Op::PutAlongAxis { axis }
        | Op::AddAlongAxis { axis }
        | Op::Softmax { axis }
        | Op::Scan { axis, .. } => format!("axis {axis}"),
        Op::Sort { axis, descending } => format!("axis {axis}, descending {descending}"),
        Op::Convolution(convolution) => convolution_attributes(convolution),
        Op::Topk { axis, k } => format!("axis {axis}, k {k}"),
        Op::Cast { dtype } => dtype.to_string(),
        Op::Reduce { axes, .. } => format!("axes {axes:?}"),
        Op::RmsNorm { eps }
        | Op::AddRmsNorm { eps, .. }
        | Op::LayerNorm { eps }
        | Op::AddLayerNorm { eps } => {
            format!("eps {eps}")
        }
        Op::Rope { style, rotary_dim } => format!("{style:?}, {rotary_dim}").to_lowercase(),
        Op::GatedActivation { activation } => format!("{activation:?}").to_lowercase(),
        Op::AttentionScores(scores) => attention(scores, false),
        Op::ScaledDotProductAttention { scores, sinks } => attention(scores, *sinks),
        Op::Attention { layer } => format!("layer {layer}"),
        Op::SparseAttention { layer, count } | Op::SelectKeys { layer, count } => {
            format!("layer {layer}, {count} keys")
        }
        Op::Recurrence { layer, state, .. } => format!("layer {layer}, state {state}"),
        Op::Tril { diagonal } | Op::Triu { diagonal } => format!("diagonal {diagonal}"),
        Op::Pad { low, high, .. } => format!("{low:?} {high:?}"),
        Op::Island { target, .. } => target.clone(),
        Op::Reshape { .. }
        | Op::Broadcast { .. }
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Where
        | Op::Matmul
        | Op::Addmm
        | Op::ExpertMatmul => String::new(),
    };
    if attributes.is_empty() {
        name.to_string()
    } else {
        format!("{name} {{{attributes}}}")
    }
}

fn types(types: &[TensorType]) -> Vec<String> {
    types.iter().map(TensorType::to_string).collect()
}

fn numbers(prefix: char, numbers: &[u32]) -> Vec<String> {
    numbers
        .iter()
        .map(|number| format!("{prefix}{number}"))
        .collect()
}

/// The FX document's graphs.
pub fn captured(document: &Document<'_>) -> Vec<Listing> {
    document.graphs.iter().map(captured_graph).collect()
}

fn captured_graph(graph: &FxGraph<'_>) -> Listing {
    let mut listing = Listing {
        title: format!("graph {}", graph.name),
        work: None,
        calls: None,
        lines: vec![],
        outputs: vec![],
    };
    for node in &graph.nodes {
        let operands = node.args.iter().map(argument);
        let keywords = node
            .kwargs
            .iter()
            .map(|(name, arg)| format!("{name}={}", argument(arg)));
        let operands: Vec<String> = operands.chain(keywords).collect();
        if node.op == NodeOp::Output {
            listing.outputs = operands;
            continue;
        }
        listing.lines.push(Line {
            results: vec![node.name.to_string()],
            op: call_name(node),
            operands,
            types: node.value.iter().flat_map(recorded).collect(),
            source: [&*node.module, &*node.source].join(" ").trim().to_owned(),
            ..Line::default()
        });
    }
    listing
}

fn call_name(node: &FxNode<'_>) -> String {
    match (&node.role, &node.path) {
        (Some(role), Some(path)) => format!("{role:?} {path}").to_lowercase(),
        (Some(role), None) => format!("{role:?}").to_lowercase(),
        (None, _) => node.target.to_string(),
    }
}

fn argument(arg: &Arg<'_>) -> String {
    match arg {
        Arg::None => "None".into(),
        Arg::Bool(flag) => flag.to_string(),
        Arg::Int(value) => value.to_string(),
        Arg::Float(value) => format!("{value:?}"),
        Arg::List(items) => {
            format!(
                "[{}]",
                items.iter().map(argument).collect::<Vec<_>>().join(", ")
            )
        }
        Arg::Str(text) => format!("{:?}", &**text),
        Arg::Node(text)
        | Arg::DType(text)
        | Arg::Device(text)
        | Arg::MemoryFormat(text)
        | Arg::Layout(text)
        | Arg::Layer(text)
        | Arg::Expression(text)
        | Arg::Other(text) => text.to_string(),
    }
}

fn recorded(value: &FxValue<'_>) -> Vec<String> {
    match value {
        FxValue::Tensor { dtype, shape } => {
            let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
            vec![format!("{dtype}[{}]", sizes.join(","))]
        }
        FxValue::Tuple { tuple } => tuple.iter().flatten().flat_map(recorded).collect(),
        FxValue::Scalar { scalar, .. } => vec![scalar.to_string()],
    }
}

/// An imported graph.
pub fn imported(name: &str, graph: &Graph) -> Listing {
    let name_of = |value: &Value| match graph.node(value.node).types.len() {
        1 => format!("%{}", value.node.index()),
        _ => format!("%{}.{}", value.node.index(), value.output),
    };
    let lines = graph.topological().map(|id| {
        let node = graph.node(id);
        Line {
            results: (0..node.types.len() as u32)
                .map(|output| name_of(&Value { node: id, output }))
                .collect(),
            op: describe(&node.op),
            operands: graph.operands(id).iter().map(name_of).collect(),
            types: types(&node.types),
            source: node
                .source
                .as_ref()
                .map_or(String::new(), |source| source.to_string()),
            ..Line::default()
        }
    });
    Listing {
        title: format!("graph {name}"),
        work: None,
        calls: None,
        lines: lines.collect(),
        outputs: graph.outputs.iter().map(name_of).collect(),
    }
}

/// The unique regions of a plan.
pub fn regions(plan: &GraphPlan, report: &PlanReport) -> Vec<Listing> {
    let planned = plan.regions.iter().zip(&report.regions);
    let known = planned.zip(report.origins.iter().zip(&report.calls));
    known
        .enumerate()
        .map(|(index, ((region, graph), (origins, calls)))| {
            let works = region_work(graph);
            let instructions = region.instructions.iter().zip(origins).zip(&works);
            let lines = instructions
                .enumerate()
                .map(|(at, ((instruction, origin), work))| Line {
                    results: numbers('%', &instruction.outputs),
                    op: describe(&instruction.op),
                    operands: numbers('%', &instruction.inputs),
                    types: types(&instruction.types),
                    kernel: region.kernel_at(at).map(str::to_owned),
                    source: origin.source.as_ref().map_or(String::new(), |source| {
                        format!("{} {}", source.target, source.line)
                    }),
                    consumed: origin.consumed.iter().map(|of| (**of).clone()).collect(),
                    rules: origin.rules.iter().map(|rule| rule.name).collect(),
                    work: Some(*work),
                });
            Listing {
                title: format!(
                    "{} region {index} x {calls}  ({} inputs, {} parameters)",
                    plan.name, region.num_inputs, region.num_parameters
                ),
                calls: Some(*calls),
                lines: lines.collect(),
                work: Some(works.iter().copied().sum()),
                outputs: numbers('%', &region.outputs),
            }
        })
        .collect()
}

/// The calls and effects of a plan.
pub fn steps(graph: &GraphPlan, plan: &Plan) -> Listing {
    let name = |index: &u32| {
        graph
            .parameters
            .get(*index as usize)
            .map_or(String::new(), |p| p.name.clone())
    };
    let lines = graph.steps.iter().map(|step| match step {
        Step::Call {
            region,
            inputs,
            parameters,
            outputs,
            ..
        } => Line {
            results: numbers('$', outputs),
            op: format!("region {region}"),
            operands: numbers('$', inputs)
                .into_iter()
                .chain(parameters.iter().map(name))
                .collect(),
            ..Line::default()
        },
        Step::Effect {
            op,
            inputs,
            outputs,
            types: result,
            ..
        } => Line {
            results: numbers('$', outputs),
            op: describe(op),
            operands: numbers('$', inputs),
            types: types(result),
            kernel: Some(plan.kernels_of(op).join(" ")).filter(|names| !names.is_empty()),
            work: Some(effect_work(op, &plan.layers, &plan.dtype)),
            ..Line::default()
        },
    });
    Listing {
        title: format!("graph {}", graph.name),
        work: None,
        calls: None,
        lines: lines.collect(),
        outputs: numbers('$', &graph.outputs),
    }
}

/// What differs from a plain convolution.
fn convolution_attributes(convolution: &Convolution) -> String {
    let Convolution {
        stride,
        low,
        high,
        dilation,
        expansion,
        groups,
        flip,
    } = convolution;
    let mut parts = vec![format!("stride {stride:?}")];
    if low.iter().chain(high).any(|zeros| *zeros != 0) {
        parts.push(format!("padding {low:?} {high:?}"));
    }
    for (name, steps) in [("dilation", dilation), ("expansion", expansion)] {
        if steps.iter().any(|step| *step != 1) {
            parts.push(format!("{name} {steps:?}"));
        }
    }
    if *groups != 1 {
        parts.push(format!("groups {groups}"));
    }
    if *flip {
        parts.push("flip".into());
    }
    parts.join(", ")
}
