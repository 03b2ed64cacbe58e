// SPDX-License-Identifier: Apache-2.0
//! Greedy extraction over the DAG: a shared node is paid once.
//!
//! egg's own extractor adds up trees, which on a residual network grows exponentially with depth
//! and loses fusions. Costs are integers and ties are broken by operator, then operands, so that
//! the result does not depend on hashing.

use super::cost::cost;
use super::language::{Term, Terms};
use crate::ir::{Graph, Node, Op, Source, Value};
use egg::{Id, Language};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The cheapest known form of a class: its operator and everything that computing it pays for.
struct Choice<'a> {
    term: &'a Term,
    total: u64,
    paid: BTreeMap<Id, u64>,
}

/// The cheapest graph that computes the roots.
pub fn extract(
    egraph: &Terms,
    roots: &[Id],
    sources: &[(Id, Arc<Source>)],
) -> Result<Graph, String> {
    let mut choices = choose(egraph);
    share_results(egraph, roots, &mut choices);
    let mut origin: HashMap<Id, Arc<Source>> = HashMap::new();
    for (class, source) in sources {
        origin
            .entry(egraph.find(*class))
            .or_insert_with(|| source.clone());
    }
    let mut graph = Graph::default();
    let mut built: HashMap<Id, Value> = HashMap::new();
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
    name_fused(&mut graph, egraph, &origin, &built);
    Ok(graph)
}

/// Takes a class's value from a fused operator that is computed anyway. Greedy choice sees one class
/// at a time: alone, a sum is cheaper than the norm that also yields it.
fn share_results<'a>(egraph: &'a Terms, roots: &[Id], choices: &mut HashMap<Id, Choice<'a>>) {
    let mut changed = true;
    while std::mem::take(&mut changed) {
        let needed = needed(egraph, roots, choices);
        for class in &needed {
            if matches!(choices[class].term.op, Op::Project(_)) {
                continue;
            }
            let shared = egraph[*class].nodes.iter().find(|term| {
                let Op::Project(_) = term.op else {
                    return false;
                };
                let whole = egraph.find(term.children[0]);
                needed.contains(&whole) && !reaches(egraph, choices, whole, *class)
            });
            if let (Some(term), Some(choice)) = (shared, choices.get_mut(class)) {
                choice.term = term;
                changed = true;
                break;
            }
        }
    }
}

/// Classes that the chosen forms of the roots consist of.
fn needed(egraph: &Terms, roots: &[Id], choices: &HashMap<Id, Choice>) -> BTreeSet<Id> {
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
fn reaches(egraph: &Terms, choices: &HashMap<Id, Choice>, from: Id, class: Id) -> bool {
    needed(egraph, &[from], choices).contains(&class)
}

/// A fused operator of several results is of no source node's class: it takes the source of its first result.
fn name_fused(
    graph: &mut Graph,
    egraph: &Terms,
    origin: &HashMap<Id, Arc<Source>>,
    built: &HashMap<Id, Value>,
) {
    let mut named: Vec<(Value, Arc<Source>)> = built
        .iter()
        .filter_map(|(class, value)| Some((*value, origin.get(&egraph.find(*class))?.clone())))
        .collect();
    named.sort_by_key(|(value, _)| *value);
    for (value, source) in named {
        let node: &mut Node = graph.node_mut(value.node);
        node.source.get_or_insert(source);
    }
}

fn choose(egraph: &Terms) -> HashMap<Id, Choice<'_>> {
    let mut classes: Vec<Id> = egraph.classes().map(|class| class.id).collect();
    classes.sort_unstable();
    let mut choices: HashMap<Id, Choice> = HashMap::new();
    loop {
        let mut changed = false;
        for class in &classes {
            for term in &egraph[*class].nodes {
                let Some(candidate) = price(egraph, *class, term, &choices) else {
                    continue;
                };
                let better = choices
                    .get(class)
                    .is_none_or(|best| (candidate.total, candidate.term) < (best.total, best.term));
                if better {
                    choices.insert(*class, candidate);
                    changed = true;
                }
            }
        }
        if !changed {
            return choices;
        }
    }
}

/// The price of a term under the present choices; `None` if an operand has no form yet or needs this class.
fn price<'a>(
    egraph: &Terms,
    class: Id,
    term: &'a Term,
    choices: &HashMap<Id, Choice>,
) -> Option<Choice<'a>> {
    let mut paid = BTreeMap::new();
    for child in term.children() {
        let child = choices.get(&egraph.find(*child))?;
        if paid.is_empty() {
            paid = child.paid.clone();
        } else {
            paid.extend(child.paid.iter().map(|(class, cost)| (*class, *cost)));
        }
    }
    if paid.contains_key(&class) {
        return None;
    }
    paid.insert(class, cost(&term.op));
    Some(Choice {
        term,
        total: paid.values().sum(),
        paid,
    })
}
