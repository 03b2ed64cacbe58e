// SPDX-License-Identifier: Apache-2.0
//! Equality saturation of one region: graph in, cheaper graph out.

mod cost;
mod extract;
pub mod language;
mod pattern;

pub use cost::cost;
pub use pattern::Pattern;

use crate::error::{Error, Result};
use crate::ir::{Graph, Op, Source, TensorType, Value};
use crate::rules::{self, Build, Match, Right, Rule};
use egg::{
    Applier, Id, PatternAst, Rewrite, Runner, Searcher, SimpleScheduler, StopReason, Subst, Symbol,
    Var,
};
use language::{Term, Terms, Types};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

/// E-nodes allowed for each node of the region, beyond a constant. Rules are directional, so a
/// region that exceeds it shows a rule that feeds itself.
const NODE_BUDGET_FACTOR: usize = 20;
const NODE_BUDGET_BASE: usize = 1_000;
const ITERATION_BUDGET: usize = 100;

/// A rewritten region.
pub struct Rewritten {
    pub graph: Graph,
    /// Rules that joined anything, with how often.
    pub applied: BTreeMap<&'static str, usize>,
    pub iterations: usize,
    pub enodes: usize,
}

/// egg's form of a [`Rule`].
struct RuleApplier(&'static Rule);

impl Applier<Term, Types> for RuleApplier {
    fn apply_one(
        &self,
        egraph: &mut Terms,
        root: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        rule_name: Symbol,
    ) -> Vec<Id> {
        let Some(Right { root: right, also }) = apply(self.0, egraph, root, subst) else {
            return Vec::new();
        };
        let mut joined = Vec::new();
        for (left, right) in std::iter::once((root, right)).chain(also) {
            let Some(right) = build(egraph, right) else {
                continue;
            };
            let same_type = egraph[left].data == egraph[right].data;
            if same_type && egraph.union_trusted(left, right, rule_name) {
                joined.push(left);
            }
        }
        joined
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

/// The right side, where all guards hold.
fn apply(rule: &Rule, egraph: &Terms, root: Id, subst: &Subst) -> Option<Right> {
    let m = Match::new(egraph, root, subst);
    if rule.guards.iter().all(|(_, holds)| holds(&m)) {
        (rule.right)(&m)
    } else {
        None
    }
}

fn build(egraph: &mut Terms, term: Build) -> Option<Id> {
    match term {
        Build::Class(class) => Some(class),
        Build::Node(op, operands) => {
            let operands: Option<Vec<Id>> = operands
                .into_iter()
                .map(|operand| build(egraph, operand))
                .collect();
            language::add(egraph, op, operands?)
        }
    }
}

type Rewrites = Vec<Rewrite<Term, Types>>;

static REWRITES: LazyLock<Result<Rewrites, String>> = LazyLock::new(|| compile(rules::all()));

fn compile(rules: impl Iterator<Item = &'static Rule>) -> Result<Rewrites, String> {
    rules
        .map(|rule| Rewrite::new(rule.name, rule.left.parse::<Pattern>()?, RuleApplier(rule)))
        .collect()
}

/// Rewrites a region to saturation and extracts its cheapest form.
pub fn rewrite(region: &Graph) -> Result<Rewritten> {
    let rewrites = REWRITES
        .as_ref()
        .map_err(|reason| internal(reason.clone()))?;
    saturate(region, rewrites, &cost)
}

/// Rewrites a region by some rules only, and takes what they make whatever it costs: operators that
/// the region does not hold are free.
pub fn rewrite_by(region: &Graph, rules: &[&'static Rule]) -> Result<Rewritten> {
    let rewrites = compile(rules.iter().copied()).map_err(internal)?;
    let own: HashSet<&Op> = region.topological().map(|id| &region.node(id).op).collect();
    let price = |op: &Op| match own.contains(op) {
        true => 1 + cost(op),
        false => 0,
    };
    saturate(region, &rewrites, &price)
}

fn internal(reason: String) -> Error {
    Error::Verifier {
        stage: "rewriting",
        reason,
    }
}

/// For each place where the left side of `rule` stands in the region and guards refuse, these guards.
pub fn near_misses(region: &Graph, rule: &Rule) -> Result<Vec<Vec<&'static str>>> {
    let pattern: Pattern = rule.left.parse().map_err(internal)?;
    let egraph = load(region).egraph;
    let mut refused = Vec::new();
    for found in pattern.search(&egraph) {
        for subst in &found.substs {
            let m = Match::new(&egraph, found.eclass, subst);
            let failed = rule.guards.iter().filter(|(_, holds)| !holds(&m));
            refused.push(failed.map(|(reason, _)| *reason).collect());
        }
    }
    refused.retain(|guards: &Vec<&str>| !guards.is_empty());
    Ok(refused)
}

/// A region as an e-graph.
struct Loaded {
    egraph: Terms,
    roots: Vec<Id>,
    sources: Vec<(Id, Arc<Source>)>,
}

fn load(region: &Graph) -> Loaded {
    let mut egraph = Terms::new(Types);
    let mut classes: Vec<Id> = Vec::with_capacity(region.len());
    let mut sources: Vec<(Id, Arc<Source>)> = Vec::new();
    for id in region.topological() {
        let children: Vec<Id> = region
            .operands(id)
            .iter()
            .map(|operand| result(&mut egraph, region, &classes, *operand))
            .collect();
        let node = region.node(id);
        let class =
            language::add_original(&mut egraph, node.op.clone(), node.types.clone(), children);
        if let Some(source) = &node.source {
            sources.push((class, source.clone()));
        }
        classes.push(class);
    }
    let roots: Vec<Id> = region
        .outputs
        .iter()
        .map(|output| result(&mut egraph, region, &classes, *output))
        .collect();
    egraph.rebuild();
    Loaded {
        egraph,
        roots,
        sources,
    }
}

fn saturate(
    region: &Graph,
    rewrites: &[Rewrite<Term, Types>],
    price: &dyn Fn(&Op) -> u64,
) -> Result<Rewritten> {
    let Loaded {
        egraph,
        roots,
        sources,
    } = load(region);
    let runner = Runner::<Term, Types>::new(Types)
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ITERATION_BUDGET)
        .with_node_limit(NODE_BUDGET_FACTOR * region.len() + NODE_BUDGET_BASE)
        // Saturation must not depend on the machine's speed.
        .with_time_limit(Duration::MAX)
        .run(rewrites);
    match runner.stop_reason {
        Some(StopReason::Saturated) => {}
        reason => return Err(internal(format!("rules did not saturate: {reason:?}"))),
    }
    let mut applied = BTreeMap::new();
    for iteration in &runner.iterations {
        for (rule, count) in &iteration.applied {
            *applied.entry(rule.as_str()).or_insert(0) += count;
        }
    }
    let graph = extract::extract(&runner.egraph, &roots, &sources, price).map_err(internal)?;
    Ok(Rewritten {
        graph,
        applied,
        iterations: runner.iterations.len(),
        enodes: runner.egraph.total_number_of_nodes(),
    })
}

/// The class of one result of a node.
fn result(egraph: &mut Terms, region: &Graph, classes: &[Id], value: Value) -> Id {
    let class = classes[value.node.index()];
    match region.node(value.node).types.len() {
        1 => class,
        _ => {
            let types: Vec<TensorType> = vec![region.value_type(value).clone()];
            language::add_original(egraph, Op::Project(value.output), types, vec![class])
        }
    }
}
