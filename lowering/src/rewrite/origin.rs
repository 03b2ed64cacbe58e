// SPDX-License-Identifier: Apache-2.0
//! Where a rewritten node comes from: the rules that made it, and the captured nodes that they took.
//!
//! Every rule that joins something leaves an [`Application`]. A node of the result either stands in
//! the region as captured, or was built by a rule; what that rule's left side matched is traced the
//! same way, through earlier applications only.

use super::language::{Term, Terms};
use crate::ir::Source;
use crate::rules::Rule;
use egg::Language;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A rule that joined something.
#[derive(Clone)]
pub struct Application {
    pub rule: &'static Rule,
    /// Operators that the left side matched.
    pub consumed: Vec<Term>,
    /// Operators of the right side.
    pub built: Vec<Term>,
}

/// A node's history.
#[derive(Clone, Default)]
pub struct Origin {
    /// The captured node that computes the same value, for messages.
    pub source: Option<Arc<Source>>,
    /// Captured nodes that it stands for, in their order; each once.
    pub consumed: Vec<Arc<Source>>,
    /// Rules that made it, in the order in which they applied; none where it is as captured.
    pub rules: Vec<&'static Rule>,
}

impl Origin {
    /// The history of a node that stands for both.
    pub fn join(&mut self, other: &Origin) {
        for source in &other.consumed {
            if !self.consumed.contains(source) {
                self.consumed.push(source.clone());
            }
        }
        for rule in &other.rules {
            if !self.rules.iter().any(|known| known.name == rule.name) {
                self.rules.push(rule);
            }
        }
    }
}

/// A node of the region as it was captured.
pub struct Original {
    pub term: Term,
    pub source: Option<Arc<Source>>,
}

/// Histories in a saturated e-graph.
pub struct Origins<'a> {
    egraph: &'a Terms,
    originals: &'a [Original],
    /// Positions in `originals`.
    captured: FxHashMap<Term, Vec<usize>>,
    /// Positions among the applications, ascending.
    built: FxHashMap<Term, Vec<usize>>,
}

impl<'a> Origins<'a> {
    /// Indexes what the e-graph's analysis has recorded.
    pub fn new(egraph: &'a Terms, originals: &'a [Original]) -> Origins<'a> {
        let mut origins = Origins {
            egraph,
            originals,
            captured: FxHashMap::default(),
            built: FxHashMap::default(),
        };
        for (index, original) in originals.iter().enumerate() {
            let term = origins.canonical(&original.term);
            origins.captured.entry(term).or_default().push(index);
        }
        for (index, application) in egraph.analysis.applications.iter().enumerate() {
            for term in &application.built {
                let term = origins.canonical(term);
                origins.built.entry(term).or_default().push(index);
            }
        }
        origins
    }

    fn canonical(&self, term: &Term) -> Term {
        term.clone().map_children(|child| self.egraph.find(child))
    }

    /// The history of an operator of the e-graph. `source` names its class.
    pub fn of(&self, term: &Term, source: Option<Arc<Source>>) -> Origin {
        let mut captured: BTreeSet<usize> = BTreeSet::new();
        let mut applied: BTreeSet<usize> = BTreeSet::new();
        let mut seen = FxHashSet::default();
        let applications = &self.egraph.analysis.applications;
        let mut stack = vec![(self.canonical(term), applications.len())];
        while let Some((term, before)) = stack.pop() {
            if let Some(indices) = self.captured.get(&term) {
                captured.extend(indices);
            } else if let Some(indices) = self.built.get(&term)
                && let Some(index) = indices.iter().copied().find(|index| *index < before)
                && seen.insert(index)
            {
                applied.insert(index);
                let consumed = applications[index].consumed.iter();
                stack.extend(consumed.map(|term| (self.canonical(term), index)));
            }
        }
        let mut origin = Origin {
            source,
            ..Origin::default()
        };
        let captured = captured.into_iter().map(|index| Origin {
            consumed: self.originals[index].source.iter().cloned().collect(),
            ..Origin::default()
        });
        let applied = applied.into_iter().map(|index| Origin {
            rules: vec![applications[index].rule],
            ..Origin::default()
        });
        captured.chain(applied).for_each(|part| origin.join(&part));
        origin
    }
}
