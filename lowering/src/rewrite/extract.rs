// SPDX-License-Identifier: Apache-2.0
//! Greedy extraction over the DAG: a shared node is paid once.
//!
//! egg's own extractor adds up trees, which on a residual network grows exponentially with depth
//! and loses fusions. Costs are integers, and of equally dear forms the smallest is taken: by
//! operator in the order of [`Op`], its attributes, then operands in the order in which the region
//! and the rules made them. No two forms of a class are equal, so that the order is total and the
//! result does not depend on hashing.

use super::language::{Term, Terms};
use super::origin::{Origin, Original, Origins};
use crate::ir::{Graph, Op, Source, TensorType, Value};
use egg::{Id, Language};
use fixedbitset::FixedBitSet;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What an operator costs on operands and results of some types.
pub type Price<'a> = &'a dyn Fn(&Op, &[&TensorType], &[TensorType]) -> u64;

/// The cheapest known form of a class: its operator, and the classes that computing it pays for.
struct Choice<'a> {
    term: &'a Term,
    /// Cost of the operator alone.
    own: u64,
    total: u64,
    paid: FixedBitSet,
}

/// The cheapest graph that computes the roots, by the price of operators, and where each of its nodes
/// comes from.
pub fn extract(
    egraph: &Terms,
    roots: &[Id],
    sources: &[(Id, Arc<Source>)],
    originals: &[Original],
    price: Price,
) -> Result<(Graph, Vec<Origin>), String> {
    let mut choices = choose(egraph, price);
    share_results(egraph, roots, &mut choices);
    let mut origin: FxHashMap<Id, Arc<Source>> = FxHashMap::default();
    for (class, source) in sources {
        origin
            .entry(egraph.find(*class))
            .or_insert_with(|| source.clone());
    }
    let histories = Origins::new(egraph, originals);
    let mut origins: Vec<Origin> = Vec::new();
    let mut graph = Graph::default();
    let mut built: FxHashMap<Id, Value> = FxHashMap::default();
    for root in roots {
        let mut stack = vec![egraph.find(*root)];
        while let Some(class) = stack.last().copied() {
            if built.contains_key(&class) {
                stack.pop();
                continue;
            }
            let choice = choices.get(&class).ok_or("a class has no finite form")?;
            let children: Vec<Id> = choice
                .term
                .children()
                .iter()
                .map(|child| egraph.find(*child))
                .collect();
            let missing: Vec<Id> = children
                .iter()
                .rev()
                .copied()
                .filter(|child| !built.contains_key(child))
                .collect();
            if !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            stack.pop();
            let operands: Vec<Value> = children.iter().map(|child| built[child]).collect();
            let value = match &choice.term.op {
                Op::Project(output) => Value {
                    node: operands[0].node,
                    output: *output,
                },
                op => {
                    let types = egraph[class].data.clone();
                    let source = origin.get(&class).cloned();
                    origins.push(histories.of(choice.term, source.clone()));
                    Value {
                        node: graph.add(op.clone(), &operands, types, source),
                        output: 0,
                    }
                }
            };
            built.insert(class, value);
        }
    }
    graph.outputs = roots
        .iter()
        .map(|root| built[&egraph.find(*root)])
        .collect();
    name_fused(&mut graph, &mut origins, egraph, &origin, &built);
    Ok((graph, origins))
}

/// Takes values from fused operators that are computed anyway, wherever that makes the whole cheaper.
/// Greedy choice sees one class at a time: alone, a sum is cheaper than the norm that also yields it,
/// and so is a norm without the weight that another result needs.
fn share_results<'a>(egraph: &'a Terms, roots: &[Id], choices: &mut FxHashMap<Id, Choice<'a>>) {
    while share_result(egraph, roots, choices) {}
}

/// One improvement, if there is any. Each makes the whole cheaper, so that they end.
fn share_result<'a>(
    egraph: &'a Terms,
    roots: &[Id],
    choices: &mut FxHashMap<Id, Choice<'a>>,
) -> bool {
    let needed = needed(egraph, roots, choices);
    let before = total(&needed, choices);
    for class in &needed {
        let present = (choices[class].term, choices[class].own);
        for term in &egraph[*class].nodes {
            let (Op::Project(_), [whole]) = (&term.op, term.children()) else {
                continue;
            };
            let whole = egraph.find(*whole);
            let other = term != present.0 && needed.contains(&whole);
            if !other || reaches(egraph, choices, whole, *class) {
                continue;
            }
            choose_again(choices, *class, (term, 0));
            if total(&self::needed(egraph, roots, choices), choices) < before {
                return true;
            }
            choose_again(choices, *class, present);
        }
    }
    false
}

fn choose_again<'a>(
    choices: &mut FxHashMap<Id, Choice<'a>>,
    class: Id,
    (term, own): (&'a Term, u64),
) {
    if let Some(choice) = choices.get_mut(&class) {
        (choice.term, choice.own) = (term, own);
    }
}

/// Cost of all these classes, each once.
fn total(needed: &BTreeSet<Id>, choices: &FxHashMap<Id, Choice>) -> u64 {
    let costs = needed.iter().filter_map(|class| choices.get(class));
    costs.fold(0, |sum, choice| sum.saturating_add(choice.own))
}

/// Classes that the chosen forms of the roots consist of.
fn needed(egraph: &Terms, roots: &[Id], choices: &FxHashMap<Id, Choice>) -> BTreeSet<Id> {
    let mut needed = BTreeSet::new();
    let mut stack: Vec<Id> = roots.iter().map(|root| egraph.find(*root)).collect();
    while let Some(class) = stack.pop() {
        if needed.insert(class)
            && let Some(choice) = choices.get(&class)
        {
            stack.extend(
                choice
                    .term
                    .children()
                    .iter()
                    .map(|child| egraph.find(*child)),
            );
        }
    }
    needed
}

/// Whether the chosen form of `from` needs `class`.
fn reaches(egraph: &Terms, choices: &FxHashMap<Id, Choice>, from: Id, class: Id) -> bool {
    needed(egraph, &[from], choices).contains(&class)
}

/// A fused operator of several results is of no source node's class: it takes the source of its first result.
fn name_fused(
    graph: &mut Graph,
    origins: &mut [Origin],
    egraph: &Terms,
    origin: &FxHashMap<Id, Arc<Source>>,
    built: &FxHashMap<Id, Value>,
) {
    let mut named: Vec<(Value, Arc<Source>)> = built
        .iter()
        .filter_map(|(class, value)| Some((*value, origin.get(&egraph.find(*class))?.clone())))
        .collect();
    named.sort_by_key(|(value, _)| *value);
    for (value, source) in named {
        let named = graph.node_mut(value.node).source.get_or_insert(source);
        origins[value.node.index()].source = Some(named.clone());
    }
}

/// The terms of every class, ready to price: classes are numbered densely.
struct Candidates<'a> {
    /// `(class, term, its own cost, classes of its operands)`, by class.
    terms: Vec<(usize, &'a Term, u64, SmallVec<[usize; 4]>)>,
    ids: Vec<Id>,
}

fn candidates<'a>(egraph: &'a Terms, price: Price) -> Candidates<'a> {
    let mut ids: Vec<Id> = egraph.classes().map(|class| class.id).collect();
    ids.sort_unstable();
    let number: FxHashMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    let of_class = |(class, id): (usize, &Id)| {
        let terms = egraph[*id].nodes.iter();
        let priced: Vec<_> = terms
            .map(|term| {
                let children = term.children();
                let types = children
                    .iter()
                    .filter_map(|child| egraph[*child].data.first());
                let types: SmallVec<[&TensorType; 4]> = types.collect();
                let own = price(&term.op, &types, &egraph[*id].data);
                let children = children.iter();
                let children = children.map(|child| number[&egraph.find(*child)]);
                (class, term, own, children.collect())
            })
            .collect();
        priced
    };
    let terms = ids.iter().enumerate().flat_map(of_class).collect();
    Candidates { terms, ids }
}

/// The best choice of every class that has a finite form.
///
/// Sweeps until nothing improves. A choice's total is never below an operand's, and a choice is only
/// ever replaced by a cheaper one (or by an equally cheap, smaller term), so that sweeps end and
/// choices never form a cycle.
fn choose<'a>(egraph: &'a Terms, price: Price) -> FxHashMap<Id, Choice<'a>> {
    let Candidates { terms, ids } = candidates(egraph, price);
    let mut choices: Vec<Option<Choice>> = ids.iter().map(|_| None).collect();
    let mut costs: Vec<u64> = vec![0; ids.len()];
    loop {
        let mut changed = false;
        for (class, term, own, children) in &terms {
            let Some((total, paid)) = total_of(*class, *own, children, &choices, &costs) else {
                continue;
            };
            let better = choices[*class]
                .as_ref()
                .is_none_or(|best| (total, *term) < (best.total, best.term));
            if better {
                choices[*class] = Some(Choice {
                    term,
                    own: *own,
                    total,
                    paid,
                });
                costs[*class] = *own;
                changed = true;
            }
        }
        if !changed {
            let known = ids.into_iter().zip(choices);
            return known
                .filter_map(|(id, choice)| Some((id, choice?)))
                .collect();
        }
    }
}

/// What a term costs under the present choices, and the classes that it pays for; `None` if an
/// operand has no form yet or needs this class.
fn total_of(
    class: usize,
    own: u64,
    children: &[usize],
    choices: &[Option<Choice>],
    costs: &[u64],
) -> Option<(u64, FixedBitSet)> {
    let mut paid = FixedBitSet::with_capacity(costs.len());
    let mut dearest = 0;
    for child in children {
        let child = choices[*child].as_ref()?;
        paid.union_with(&child.paid);
        dearest = dearest.max(child.total);
    }
    if paid.put(class) {
        return None;
    }
    let others = paid.ones().filter(|paid| *paid != class);
    let operands = others.fold(0u64, |sum, paid| sum.saturating_add(costs[paid]));
    Some((operands.max(dearest).saturating_add(own), paid))
}
