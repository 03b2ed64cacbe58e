// SPDX-License-Identifier: Apache-2.0
//! Equality saturation of one region: graph in, cheaper graph out.

mod cost;
mod extract;
pub mod language;
mod origin;
mod pattern;

pub use cost::{COST_VERSION, cost};
pub use origin::Origin;
pub use pattern::Pattern;

use crate::error::{Error, Result};
use crate::ir::{Graph, Op, Source, TensorType, Value};
use crate::rules::{self, Build, Match, Right, Rule};
use egg::{
    Applier, Id, PatternAst, Rewrite, Runner, Searcher, SimpleScheduler, StopReason, Subst, Symbol,
    Var,
};
use extract::Price;
use language::{Term, Terms, Types};
use origin::{Application, Original};
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
    /// For each node of the graph, where it comes from.
    pub origins: Vec<Origin>,
    /// Rules that joined anything, with how often.
    pub applied: BTreeMap<&'static str, usize>,
    /// Rules whose left side was found, with how often; guards may have refused.
    pub matched: BTreeMap<&'static str, usize>,
    pub iterations: usize,
    pub enodes: usize,
}

/// egg's form of a [`Rule`].
struct RuleApplier {
    rule: &'static Rule,
    left: Pattern,
}

impl Applier<Term, Types> for RuleApplier {
    fn apply_one(
        &self,
        egraph: &mut Terms,
        root: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        rule_name: Symbol,
    ) -> Vec<Id> {
        let matches = &mut egraph.analysis.matches;
        *matches.entry(self.rule.name).or_default() += 1;
        let Some(Right { root: right, also }) = apply(self.rule, egraph, root, subst) else {
            return Vec::new();
        };
        let consumed = self.left.witness(egraph, root, subst).unwrap_or_default();
        let mut built = Vec::new();
        let mut joined = Vec::new();
        for (left, right) in std::iter::once((root, right)).chain(also) {
            let Some(right) = build(egraph, right, &mut built) else {
                continue;
            };
            let same_type = egraph[left].data == egraph[right].data;
            if same_type && egraph.union_trusted(left, right, rule_name) {
                joined.push(left);
            }
        }
        if !joined.is_empty() {
            egraph.analysis.applications.push(Application {
                rule: self.rule,
                consumed,
                built,
            });
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

fn build(egraph: &mut Terms, term: Build, built: &mut Vec<Term>) -> Option<Id> {
    match term {
        Build::Class(class) => Some(class),
        Build::Node(op, operands) => {
            let operands: Option<Vec<Id>> = operands
                .into_iter()
                .map(|operand| build(egraph, operand, built))
                .collect();
            let term = language::fitting(egraph, op, operands?)?;
            built.push(term.clone());
            Some(egraph.add(term))
        }
    }
}

type Rewrites = Vec<Rewrite<Term, Types>>;

static REWRITES: LazyLock<Result<Rewrites, String>> = LazyLock::new(|| compile(rules::all()));

fn compile(rules: impl Iterator<Item = &'static Rule>) -> Result<Rewrites, String> {
    rules
        .map(|rule| {
            let left: Pattern = rule.left.parse()?;
            let applier = RuleApplier {
                rule,
                left: left.clone(),
            };
            Rewrite::new(rule.name, left, applier)
        })
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
    let price = |op: &Op, operands: &[&TensorType], results: &[TensorType]| match own.contains(op) {
        true => cost(op, operands, results).saturating_add(1),
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

/// A place where the left side of a rule stands and its guards refuse.
pub struct NearMiss {
    /// Wordings of the guards that failed, in the rule's order.
    pub failed: Vec<&'static str>,
    /// The captured node at the root of the left side.
    pub source: Option<Arc<Source>>,
}

/// The near misses of `rule` in the region.
pub fn near_misses(region: &Graph, rule: &Rule) -> Result<Vec<NearMiss>> {
    near_misses_in(&load(region), rule)
}

/// The near misses of each rule, for rules that have any.
pub fn all_near_misses(region: &Graph) -> Result<Vec<(&'static Rule, Vec<NearMiss>)>> {
    let loaded = load(region);
    let of_rule = |rule| Ok((rule, near_misses_in(&loaded, rule)?));
    let mut all: Vec<(&'static Rule, Vec<NearMiss>)> =
        rules::all().map(of_rule).collect::<Result<_>>()?;
    all.retain(|(_, missed)| !missed.is_empty());
    Ok(all)
}

fn near_misses_in(loaded: &Loaded, rule: &Rule) -> Result<Vec<NearMiss>> {
    let pattern: Pattern = rule.left.parse().map_err(internal)?;
    let egraph = &loaded.egraph;
    let mut missed = Vec::new();
    for found in pattern.search(egraph) {
        for subst in &found.substs {
            let m = Match::new(egraph, found.eclass, subst);
            let failed = rule.guards.iter().filter(|(_, holds)| !holds(&m));
            let failed: Vec<&str> = failed.map(|(reason, _)| *reason).collect();
            if !failed.is_empty() {
                let is_root = |(class, _): &&(Id, Arc<Source>)| *class == found.eclass;
                let source = loaded.sources.iter().find(is_root);
                let source = source.map(|(_, source)| source.clone());
                missed.push(NearMiss { failed, source });
            }
        }
    }
    Ok(missed)
}

/// A region as an e-graph.
struct Loaded {
    egraph: Terms,
    roots: Vec<Id>,
    sources: Vec<(Id, Arc<Source>)>,
    originals: Vec<Original>,
}

fn load(region: &Graph) -> Loaded {
    let mut egraph = Terms::new(Types::default());
    let mut classes: Vec<Id> = Vec::with_capacity(region.len());
    let mut sources: Vec<(Id, Arc<Source>)> = Vec::new();
    let mut originals = Vec::with_capacity(region.len());
    for id in region.topological() {
        let children: Vec<Id> = region
            .operands(id)
            .iter()
            .map(|operand| result(&mut egraph, region, &classes, *operand))
            .collect();
        let node = region.node(id);
        let term = language::original(&egraph, node.op.clone(), node.types.clone(), children);
        let class = egraph.add(term.clone());
        if let Some(source) = &node.source {
            sources.push((class, source.clone()));
        }
        classes.push(class);
        originals.push(Original {
            term,
            source: node.source.clone(),
        });
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
        originals,
    }
}

fn saturate(region: &Graph, rewrites: &[Rewrite<Term, Types>], price: Price) -> Result<Rewritten> {
    let Loaded {
        egraph,
        roots,
        sources,
        originals,
    } = load(region);
    let runner = Runner::<Term, Types>::new(Types::default())
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
    for application in &runner.egraph.analysis.applications {
        *applied.entry(application.rule.name).or_insert(0) += 1;
    }
    let (graph, origins) =
        extract::extract(&runner.egraph, &roots, &sources, &originals, price).map_err(internal)?;
    Ok(Rewritten {
        graph,
        origins,
        applied,
        matched: runner.egraph.analysis.matches.clone(),
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
            let term = language::original(egraph, Op::Project(value.output), types, vec![class]);
            egraph.add(term)
        }
    }
}
