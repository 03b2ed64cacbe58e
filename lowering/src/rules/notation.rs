// SPDX-License-Identifier: Apache-2.0
//! Graphs as text, for the tests beside the rules.
//!
//! ```text
//! s = (add a:bf16[t,8] b:bf16[t,8]); (rms_norm:1e-6 s w:bf16[8]); s
//! ```
//! `name:dtype[sizes]` is an input, `t` the token count, a number a constant (float32, or as in
//! `0.5:bf16`), attributes follow the operator's name; `name = term` names a term, other terms are
//! outputs.

use super::Rule;
use crate::ir::{Activation, AttentionMask, Scores, TensorType, Unary, Value};
use crate::ir::{Binary, Builder, DType, Dim, Float, Graph, Op, Reduction, RopeStyle, Scalar};
use crate::rewrite::{near_misses, rewrite, rewrite_by};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashMap;

/// What a rule does with a graph.
pub enum Expect {
    /// It applies, and an operator of that name comes out.
    Fuses(&'static str),
    /// Its left side stands there, and the guard of that wording refuses.
    Refuses(&'static str),
    /// Its left side does not stand there.
    Differs,
}

/// A rule, what it does, and the graph.
pub type Case = (&'static str, Expect, &'static str);

/// Checks a case.
pub fn check(rule: &'static Rule, expect: &Expect, text: &str) {
    let graph = parse(text);
    let place = format!("{}: {text}", rule.name);
    let alone = rewrite_by(&graph, &[rule]).expect(&place);
    let missed = near_misses(&graph, rule).expect(&place);
    let missed: Vec<Vec<&str>> = missed.into_iter().map(|miss| miss.failed).collect();
    match expect {
        Expect::Fuses(name) => {
            assert!(alone.applied.contains_key(rule.name), "{place}: {missed:?}");
            let whole = rewrite(&graph).expect(&place).graph;
            let mut ops = whole.topological().map(|id| whole.node(id).op.name());
            assert!(ops.any(|op| op == *name), "{place}: no {name}");
        }
        Expect::Refuses(guard) => {
            assert!(alone.applied.is_empty(), "{place}: it applies");
            let refused = missed.iter().any(|failed| failed.contains(guard));
            assert!(refused, "{place}: {missed:?}");
        }
        Expect::Differs => {
            assert!(alone.applied.is_empty(), "{place}: it applies");
            assert!(missed.is_empty(), "{place}: {missed:?}");
        }
    }
}

/// The graph that the text describes.
pub fn parse(text: &str) -> Graph {
    let mut reader = Reader::default();
    let mut outputs = Vec::new();
    for part in text.split(';') {
        let (name, term) = match part.split_once('=') {
            Some((name, term)) => (Some(name.trim()), term),
            None => (None, part),
        };
        let spaced = term.replace('(', " ( ").replace(')', " ) ");
        let value = reader.term(&mut spaced.split_whitespace().peekable());
        match name {
            Some(name) => drop(reader.names.insert(name.to_owned(), value)),
            None => outputs.push(value),
        }
    }
    reader.builder.graph.outputs = outputs;
    reader.builder.graph.into_canonical()
}

#[derive(Default)]
struct Reader {
    builder: Builder,
    names: HashMap<String, Value>,
    inputs: u32,
}

fn dtype(name: &str) -> DType {
    match name {
        "f16" => DType::Float16,
        "bf16" => DType::Bfloat16,
        "f32" => DType::Float32,
        "i32" => DType::Int32,
        "i64" => DType::Int64,
        "bool" => DType::Bool,
        other => panic!("no dtype is called {other}"),
    }
}

fn dims(text: &str) -> Vec<Dim> {
    let dim = |text: &str| match text {
        "t" => Dim::symbol(0),
        number => Dim::Fixed(number.parse().expect("a size")),
    };
    text.split(',').map(dim).collect()
}

/// `0.5`, `0.5,cap:30,added`, `1,shown:-1e9`, `1,causal`; and whether there are sinks.
fn scores(text: &str) -> (Scores, bool) {
    let number = |text: &str| Float::new(text.parse().expect("a number"));
    let (scale, rest) = text.split_once(',').unwrap_or((text, ""));
    let mut scores = Scores {
        scale: number(scale),
        soft_cap: None,
        mask: AttentionMask::None,
    };
    let mut sinks = false;
    for part in rest.split(',').filter(|part| !part.is_empty()) {
        match part.split_once(':').unwrap_or((part, "")) {
            ("cap", cap) => scores.soft_cap = Some(number(cap)),
            ("added", _) => scores.mask = AttentionMask::Additive,
            ("shown", fill) => scores.mask = AttentionMask::Boolean { fill: number(fill) },
            ("causal", _) => scores.mask = AttentionMask::Causal { offset: 0.into() },
            ("sinks", _) => sinks = true,
            other => panic!("no attribute is called {other:?}"),
        }
    }
    (scores, sinks)
}

fn parsed<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(json!(name)).ok()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

impl Reader {
    fn term(&mut self, tokens: &mut Tokens) -> Value {
        let token = tokens.next().expect("a term");
        if token != "(" {
            return self.leaf(token);
        }
        let head = tokens.next().expect("an operator");
        let mut operands = Vec::new();
        while tokens.next_if_eq(&")").is_none() {
            operands.push(self.term(tokens));
        }
        self.operator(head, &operands)
    }

    fn leaf(&mut self, token: &str) -> Value {
        if let Some(value) = self.names.get(token) {
            return *value;
        }
        let (name, kind) = token.split_once(':').unwrap_or((token, "f32"));
        if let Ok(number) = name.parse() {
            let number = Scalar::Float(Float::new(number));
            return self.builder.scalar(number, dtype(kind));
        }
        let (of, shape) = kind.split_once('[').expect("a shape");
        let leaf = TensorType {
            dtype: dtype(of),
            shape: dims(shape.trim_end_matches(']')),
        };
        let node = self.builder.node(Op::Input(self.inputs), &[], vec![leaf]);
        self.inputs += 1;
        let value = Value { node, output: 0 };
        self.names.insert(name.to_owned(), value);
        value
    }

    fn operator(&mut self, head: &str, operands: &[Value]) -> Value {
        let (name, attributes) = head.split_once(':').unwrap_or((head, ""));
        let axes = || {
            attributes
                .split(',')
                .map(|axis| axis.parse().expect("an axis"))
        };
        let axis = || axes().next().expect("an axis");
        let float = || Float::new(attributes.parse().expect("a number"));
        let shape = self.builder.shape(operands[0]).to_vec();
        let op = match name {
            "cast" => Op::Cast {
                dtype: dtype(attributes),
            },
            "softmax_last" => Op::Softmax {
                axis: shape.len() - 1,
            },
            "where" => Op::Where,
            "broadcast" => Op::Broadcast {
                shape: dims(attributes),
            },
            "attention_scores" => Op::AttentionScores(scores(attributes).0),
            "scaled_dot_product_attention" => {
                let (scores, sinks) = scores(attributes);
                Op::ScaledDotProductAttention { scores, sinks }
            }
            "mean" | "mean_last" | "max_last" | "sum_last" => Op::Reduce {
                function: match name {
                    "max_last" => Reduction::Max,
                    "sum_last" => Reduction::Sum,
                    _ => Reduction::Mean,
                },
                axes: vec![if name == "mean" {
                    axis()
                } else {
                    shape.len() - 1
                }],
                keepdims: true,
            },
            "slice" => {
                let bounds: Vec<Dim> = attributes.split(':').flat_map(dims).collect();
                let axis = bounds[0].fixed().expect("an axis") as usize;
                Op::Slice {
                    axis,
                    start: bounds[1],
                    stop: bounds[2],
                    step: bounds.get(3).and_then(|step| step.fixed()).unwrap_or(1),
                    length: shape[axis],
                }
            }
            "reshape" => Op::Reshape {
                shape: dims(attributes),
            },
            "transpose" => Op::Transpose {
                permutation: axes().collect(),
            },
            "concat" => Op::Concat { axis: axis() },
            "take" => Op::Take { axis: axis() },
            "matmul" => Op::Matmul,
            "gated_silu" => Op::GatedActivation {
                activation: Activation::Silu,
            },
            "layer_norm" => Op::LayerNorm { eps: float() },
            "rms_norm" => Op::RmsNorm { eps: float() },
            "rope_neox" => Op::Rope {
                style: RopeStyle::Neox,
                rotary_dim: attributes.parse().expect("a size"),
            },
            _ => match (parsed::<Unary>(name), parsed::<Binary>(name)) {
                (Some(function), _) => Op::Unary(function),
                (_, Some(function)) => Op::Binary(function),
                _ => panic!("no operator is called {name}"),
            },
        };
        self.builder
            .add(op, operands)
            .unwrap_or_else(|reason| panic!("{head}: {reason}"))
    }
}
