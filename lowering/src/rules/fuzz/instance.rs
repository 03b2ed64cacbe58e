// SPDX-License-Identifier: Apache-2.0
//! Left sides of rules as graphs: a pattern whose variables are values of a site and whose operators
//! have attributes, all by a list of choices.

use super::site::{Env, SITES, Values};
use crate::ir::{
    Activation, AttentionMask, Binary, DType, Dim, Float, Graph, Op, Reduction, Scores,
};
use crate::ir::{TensorType, Unary, Value, infer};
use crate::rewrite::{Pattern, language::Predicate, rewrite_by};
use crate::rules::{Numerics, Rule};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashMap;

/// A way to write a rule's left side that the rule accepts.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub site: usize,
    pub choices: Vec<usize>,
}

/// A left side.
pub struct Instance {
    pub graph: Graph,
    pub inputs: Vec<TensorType>,
}

/// Where a list of choices leads.
enum Outcome {
    Done(Instance),
    /// The list is too short: these may follow.
    More(Vec<usize>),
    Dead,
}

struct Writer<'a> {
    env: &'a Env,
    values: Values,
    bound: HashMap<String, Value>,
    named: Vec<Value>,
    choices: &'a [usize],
    used: usize,
    /// Bits that decide what the rule may not care about.
    bits: u64,
}

/// Why writing stopped early.
enum Stop {
    More(Vec<usize>),
    Dead,
}

impl Writer<'_> {
    fn choose(&mut self, options: impl Fn() -> Vec<usize>) -> Result<usize, Stop> {
        let choice = self.choices.get(self.used);
        let choice = *choice.ok_or_else(|| Stop::More(options()))?;
        self.used += 1;
        Ok(choice)
    }

    fn bit(&mut self) -> bool {
        let bit = self.bits & 1 == 1;
        self.bits >>= 1;
        bit
    }

    fn write(&mut self, pattern: &Pattern) -> Result<Value, Stop> {
        match pattern {
            Pattern::Variable(variable) => {
                if let Some(value) = self.bound.get(&variable.to_string()) {
                    return Ok(*value);
                }
                let count = self.values.values.len();
                let choice = self.choose(|| (0..count).collect())?;
                let value = *self.values.values.get(choice).ok_or(Stop::Dead)?;
                self.bound.insert(variable.to_string(), value);
                Ok(value)
            }
            Pattern::Node {
                bind,
                predicate,
                children,
            } => {
                let operands: Result<Vec<Value>, Stop> =
                    children.iter().map(|child| self.write(child)).collect();
                let mut operands = operands?;
                let types: Vec<TensorType> = operands
                    .iter()
                    .map(|value| self.values.builder.type_of(*value).clone())
                    .collect();
                let shapes = self.values.shapes.clone();
                let shapes = shapes.unwrap_or_else(|| self.env.shapes());
                let options = operators(predicate, &types, self.env, &shapes);
                let rank = types.first().map_or(0, TensorType::rank);
                let fits = |op: &Op| {
                    let types: Vec<&TensorType> = types.iter().collect();
                    predicate.holds(op, rank) && infer(op, &types).is_some_and(|t| t.is_ok())
                };
                let choice = match options.len() {
                    1 => 0,
                    count => self.choose(|| (0..count).filter(|i| fits(&options[*i])).collect())?,
                };
                let op = options.get(choice).filter(|op| fits(op));
                let op = op.ok_or(Stop::Dead)?.clone();
                if predicate.commutative && self.bit() {
                    operands.reverse();
                }
                let value = self.values.builder.add(op, &operands);
                let value = value.map_err(|_| Stop::Dead)?;
                if let Some(variable) = bind {
                    self.bound.insert(variable.to_string(), value);
                    self.named.push(value);
                }
                Ok(value)
            }
        }
    }
}

fn parsed<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(json!(name)).ok()
}

/// Operators that a predicate may stand for; as many in every environment.
fn operators(
    predicate: &Predicate,
    operands: &[TensorType],
    env: &Env,
    shapes: &[Vec<Dim>],
) -> Vec<Op> {
    let rank = operands.first().map_or(0, TensorType::rank);
    if let Some(function) = parsed::<Binary>(predicate.kind) {
        return vec![Op::Binary(function)];
    }
    if let Some(function) = parsed::<Unary>(predicate.kind) {
        return vec![Op::Unary(function)];
    }
    if let Some(function) = parsed::<Reduction>(predicate.kind) {
        let reduce = |axis| Op::Reduce {
            function,
            axes: vec![axis],
            keepdims: true,
        };
        return (0..rank).map(reduce).collect();
    }
    match predicate.kind {
        "cast" => [DType::Float32, env.dtype, DType::Int64]
            .map(|dtype| Op::Cast { dtype })
            .to_vec(),
        "concat" => (0..rank).map(|axis| Op::Concat { axis }).collect(),
        "take" => (0..rank).map(|axis| Op::Take { axis }).collect(),
        "reshape" => {
            let shapes = shapes.iter().cloned();
            shapes.map(|shape| Op::Reshape { shape }).collect()
        }
        "transpose" => permutations(rank)
            .into_iter()
            .map(|permutation| Op::Transpose { permutation })
            .collect(),
        "slice" => halves(operands.first(), rank),
        "matmul" => vec![Op::Matmul],
        "where" => vec![Op::Where],
        "softmax" => (0..rank).map(|axis| Op::Softmax { axis }).collect(),
        "broadcast" => {
            let shapes = shapes.iter().cloned();
            shapes.map(|shape| Op::Broadcast { shape }).collect()
        }
        "attention_scores" => scores(env).map(Op::AttentionScores).to_vec(),
        "scaled_dot_product_attention" => [false, true]
            .iter()
            .flat_map(|sinks| {
                scores(env).map(|scores| Op::ScaledDotProductAttention {
                    scores,
                    sinks: *sinks,
                })
            })
            .collect(),
        "gated_activation" => vec![
            Op::GatedActivation {
                activation: Activation::Silu,
            },
            Op::GatedActivation {
                activation: Activation::GeluTanh,
            },
        ],
        "layer_norm" => vec![Op::LayerNorm {
            eps: Float::new(env.eps),
        }],
        "rms_norm" => vec![Op::RmsNorm {
            eps: Float::new(env.eps),
        }],
        other => panic!("rules/fuzz/instance.rs does not know how to write {other}"),
    }
}

/// Ways to make scores, by what may stand among their attributes.
fn scores(env: &Env) -> [Scores; 6] {
    let fill = Float::new(-1e4);
    let offset = Dim::Fixed(env.heads - 2);
    [
        (None, AttentionMask::None),
        (Some(5.0), AttentionMask::None),
        (None, AttentionMask::Additive),
        (Some(5.0), AttentionMask::Additive),
        (None, AttentionMask::Boolean { fill }),
        (None, AttentionMask::Causal { offset }),
    ]
    .map(|(soft_cap, mask)| Scores {
        scale: Float::new(0.5),
        soft_cap: soft_cap.map(Float::new),
        mask,
    })
}

fn permutations(rank: usize) -> Vec<Vec<usize>> {
    (0..rank).fold(vec![vec![]], |all, axis| {
        let insert = |p: &Vec<usize>| {
            let p = p.clone();
            (0..=p.len()).map(move |i| [&p[..i], &[axis], &p[i..]].concat())
        };
        all.iter().flat_map(insert).collect()
    })
}

/// Both halves of the last axis, and all but its last element.
fn halves(x: Option<&TensorType>, rank: usize) -> Vec<Op> {
    let Some(length) = x.and_then(TensorType::last) else {
        return vec![];
    };
    let half = length.checked_div(2).unwrap_or(length);
    let before = length.checked_sub(Dim::Fixed(1)).unwrap_or(length);
    [
        (Dim::Fixed(0), half),
        (half, length),
        (Dim::Fixed(0), before),
    ]
    .map(|(start, stop)| Op::Slice {
        axis: rank - 1,
        start,
        stop,
        step: 1,
        length,
    })
    .to_vec()
}

fn follow(pattern: &Pattern, site: usize, choices: &[usize], env: &Env, bits: u64) -> Outcome {
    let mut values = Values::default();
    if SITES[site].0(env, &mut values).is_none() {
        return Outcome::Dead;
    }
    let mut writer = Writer {
        env,
        values,
        bound: HashMap::new(),
        named: Vec::new(),
        choices,
        used: 0,
        bits,
    };
    let root = match writer.write(pattern) {
        Ok(root) => root,
        Err(Stop::More(options)) => return Outcome::More(options),
        Err(Stop::Dead) => return Outcome::Dead,
    };
    // Inner values that something else reads too, as they are or rounded.
    let mut outputs = vec![root];
    for value in writer.named.clone() {
        if writer.bit() {
            outputs.push(value);
        }
        if writer.bit()
            && let Ok(rounded) = writer.values.builder.cast(value, env.dtype)
        {
            outputs.push(rounded);
        }
    }
    let mut graph = writer.values.builder.graph;
    graph.outputs = outputs;
    Outcome::Done(Instance {
        graph: graph.into_canonical(),
        inputs: writer.values.inputs,
    })
}

/// The recipe in an environment; `None` where it does not exist there.
pub fn instance(rule: &Rule, recipe: &Recipe, env: &Env, bits: u64) -> Option<Instance> {
    let pattern: Pattern = rule.left.parse().ok()?;
    match follow(&pattern, recipe.site, &recipe.choices, env, bits) {
        Outcome::Done(instance) => Some(instance),
        _ => None,
    }
}

/// Whether a site's values are more than inputs and movements of them.
fn computes(site: usize, env: &Env) -> bool {
    let mut values = Values::default();
    SITES[site].0(env, &mut values);
    let graph = &values.builder.graph;
    let moved = |op: &Op| {
        op.is_leaf()
            || matches!(
                op,
                Op::Reshape { .. } | Op::Slice { .. } | Op::Broadcast { .. }
            )
    };
    !graph.topological().all(|id| moved(&graph.node(id).op))
}

/// Whether the pattern's operators are of a kind that the site serves.
fn served(pattern: &str, site: usize) -> bool {
    let holds = |name: &str| pattern.contains(&format!("({name} "));
    let needed = SITES.iter().filter_map(|(_, needed)| *needed);
    match SITES[site].1 {
        Some(needed) => holds(needed),
        None => !needed
            .clone()
            .any(|name| name.contains("attention") && holds(name)),
    }
}

/// Recipes kept for one rule in one site.
const ENOUGH: usize = 16;

/// All ways, up to a limit, to write the rule's left side in which it applies.
pub fn recipes(rule: &'static Rule, env: &Env) -> Vec<Recipe> {
    let pattern: Pattern = rule.left.parse().expect("a well-formed rule");
    let mut recipes = Vec::new();
    for site in 0..SITES.len() {
        if !served(rule.left, site) {
            continue;
        }
        // Roundings before the left side would blur what is measured against the exact result.
        if rule.numerics == Numerics::Improves && computes(site, env) {
            continue;
        }
        let mut found = 0;
        let mut open: Vec<Vec<usize>> = vec![vec![]];
        while let (Some(choices), true) = (open.pop(), found < ENOUGH) {
            match follow(&pattern, site, &choices, env, 0) {
                Outcome::Dead => {}
                Outcome::More(options) => {
                    let options = options.into_iter().rev();
                    open.extend(options.map(|i| [&choices[..], &[i]].concat()));
                }
                Outcome::Done(instance) => {
                    let rewritten = rewrite_by(&instance.graph, &[rule]).expect("saturation");
                    if !rewritten.applied.is_empty() {
                        recipes.push(Recipe { site, choices });
                        found += 1;
                    }
                }
            }
        }
    }
    recipes
}

/// Checks that [`operators`] only offers operators that have inferred types.
#[test]
fn operators_are_pure() {
    let env = super::typical();
    let x = TensorType {
        dtype: DType::Float32,
        shape: vec![env.t(), 4.into()],
    };
    for name in [
        "add",
        "mean_last",
        "cast",
        "concat_last",
        "first_half",
        "take",
    ] {
        let predicate = Predicate::named(name).unwrap();
        for op in operators(predicate, &[x.clone(), x.clone()], &env, &env.shapes()) {
            assert!(infer(&op, &[&x]).is_some(), "{op:?}");
        }
    }
}
