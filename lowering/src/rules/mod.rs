// SPDX-License-Identifier: Apache-2.0
//! The rewrite rules, one file a family. A rule is a line of mathematics with its conditions.

mod attention;
#[cfg(test)]
mod fuzz;
mod gelu;
#[cfg(test)]
mod golden;
mod index;
mod linear;
mod mlp;
mod norm;
#[cfg(test)]
mod notation;
mod rope;
mod shape;

use crate::ir::{DType, Dim, Op, Scalar, TensorType};
use crate::rewrite::language::{self, Terms};
use egg::{Id, Subst};
use serde::Serialize;

/// What a rule may do to the result's rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Numerics {
    /// Bit for bit the same.
    Exact,
    /// The same rounding points; a reduction may run in another order.
    SameRounding,
    /// Fewer roundings: nowhere farther from the exact result in the worst case.
    Improves,
}

/// A condition of a rule: what it says when it fails, and the test.
pub type Guard = (&'static str, fn(&Match) -> bool);

/// A rewrite rule.
pub struct Rule {
    pub name: &'static str,
    pub numerics: Numerics,
    /// Left side, in the notation of [`crate::rewrite::Pattern`].
    pub left: &'static str,
    pub guards: &'static [Guard],
    /// The right side; `None` when a guard was too weak for it.
    pub right: fn(&Match) -> Option<Right>,
}

/// A term to build: a class of the match, or an operator on terms.
pub enum Build {
    Class(Id),
    Node(Op, Vec<Build>),
}

/// What a rule joins: the root with a term, and further classes of the match with terms, which are
/// a fused operator's other results.
pub struct Right {
    pub root: Build,
    pub also: Vec<(Id, Build)>,
}

impl From<Build> for Right {
    fn from(root: Build) -> Right {
        Right {
            root,
            also: Vec::new(),
        }
    }
}

/// A match of a rule's left side.
pub struct Match<'a> {
    egraph: &'a Terms,
    pub root: Id,
    subst: &'a Subst,
}

impl<'a> Match<'a> {
    /// A match at `root`.
    pub fn new(egraph: &'a Terms, root: Id, subst: &'a Subst) -> Match<'a> {
        Match {
            egraph,
            root,
            subst,
        }
    }

    /// The class that a variable stands for. Rules name only variables of their left side, which
    /// [`tests::every_rule_is_well_formed`] checks.
    pub fn id(&self, variable: &str) -> Id {
        variable
            .parse()
            .ok()
            .and_then(|variable| self.subst.get(variable).copied())
            .unwrap_or(self.root)
    }

    /// Type of a variable's class.
    pub fn type_of(&self, variable: &str) -> Option<&TensorType> {
        language::type_of(self.egraph, self.id(variable))
    }

    /// `op` on the classes of these variables.
    pub fn node(&self, op: Op, operands: &[&str]) -> Build {
        Build::Node(
            op,
            operands
                .iter()
                .map(|name| Build::Class(self.id(name)))
                .collect(),
        )
    }

    /// The class of `op` on a variable's class, if the graph holds it.
    pub fn lookup(&self, op: Op, operand: &str) -> Option<Id> {
        language::lookup(self.egraph, op, vec![self.id(operand)])
    }

    /// Type of a class.
    pub fn type_of_id(&self, class: Id) -> Option<&TensorType> {
        language::type_of(self.egraph, class)
    }

    /// Operators of a class with their operands.
    pub fn ops(&self, class: Id) -> impl Iterator<Item = (&Op, &[Id])> {
        language::ops(self.egraph, class)
    }

    /// Whether two classes are one.
    pub fn same(&self, a: Id, b: Id) -> bool {
        self.egraph.find(a) == self.egraph.find(b)
    }

    /// Dtype of a variable's class.
    pub fn dtype(&self, variable: &str) -> Option<DType> {
        self.type_of(variable).map(|t| t.dtype)
    }

    /// Type of the root.
    pub fn root_type(&self) -> Option<&TensorType> {
        language::type_of(self.egraph, self.root)
    }

    /// Dtype of the root.
    pub fn root_dtype(&self) -> Option<DType> {
        self.root_type().map(|t| t.dtype)
    }

    /// First attribute that `pick` finds among the operators of a variable's class.
    pub fn find<T>(&self, variable: &str, pick: impl Fn(&Op, &[Id]) -> Option<T>) -> Option<T> {
        language::ops(self.egraph, self.id(variable)).find_map(|(op, children)| pick(op, children))
    }

    /// First attribute that `pick` finds among the operators of the root's class.
    pub fn find_at_root<T>(&self, pick: impl Fn(&Op) -> Option<T>) -> Option<T> {
        language::ops(self.egraph, self.root).find_map(|(op, _)| pick(op))
    }

    /// The constant that a variable stands for.
    pub fn scalar(&self, variable: &str) -> Option<f64> {
        self.find(variable, |op, _| match op {
            Op::Scalar(value) if !matches!(value, Scalar::Size(_)) => value.as_f64(),
            _ => None,
        })
    }

    /// `variable` is a vector along the last axis of `of`.
    pub fn is_vector_of(&self, variable: &str, of: &str) -> bool {
        match (self.type_of(variable), self.type_of(of)) {
            (Some(vector), Some(x)) => vector.rank() == 1 && vector.last() == x.last(),
            _ => false,
        }
    }

    /// The whole of which `variable` is `start:stop:step` along the last axis, with those bounds and its size.
    pub fn last_axis_slice(&self, variable: &str) -> Option<LastAxisSlice> {
        let rank = self.type_of(variable)?.rank();
        self.find(variable, |op, children| match op {
            Op::Slice {
                axis,
                start: Dim::Fixed(start),
                stop: Dim::Fixed(stop),
                step,
                length: Dim::Fixed(length),
            } if axis + 1 == rank => {
                let whole = self.egraph.find(children[0]);
                Some(LastAxisSlice {
                    whole,
                    start: *start,
                    stop: *stop,
                    step: *step,
                    length: *length,
                })
            }
            _ => None,
        })
    }
}

/// A cut of the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastAxisSlice {
    pub whole: Id,
    pub start: i64,
    pub stop: i64,
    pub step: i64,
    /// Size of the whole's last axis.
    pub length: i64,
}

/// All rules, in the order in which reports list them.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    norm::RULES
        .iter()
        .chain(rope::RULES)
        .chain(attention::RULES)
        .chain(gelu::RULES)
        .chain(mlp::RULES)
        .chain(linear::RULES)
        .chain(index::RULES)
        .chain(shape::RULES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::Pattern;

    #[test]
    fn every_rule_is_well_formed() {
        let mut names: Vec<&str> = all().map(|rule| rule.name).collect();
        for rule in all() {
            rule.left
                .parse::<Pattern>()
                .unwrap_or_else(|error| panic!("{}: {error}", rule.name));
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two rules of one name");
    }

    fn cases() -> impl Iterator<Item = &'static notation::Case> {
        norm::tests::CASES
            .iter()
            .chain(rope::tests::CASES)
            .chain(attention::tests::CASES)
            .chain(gelu::tests::CASES)
            .chain(mlp::tests::CASES)
            .chain(linear::tests::CASES)
            .chain(index::tests::CASES)
            .chain(shape::tests::CASES)
    }

    #[test]
    fn rules_apply_where_they_may_and_nowhere_else() {
        for (name, expect, graph) in cases() {
            let rule = all().find(|rule| rule.name == *name);
            notation::check(rule.expect(name), expect, graph);
        }
    }

    #[test]
    fn every_rule_applies_and_every_guard_refuses_in_some_test() {
        use notation::Expect;
        for rule in all() {
            let own = || cases().filter(|(name, ..)| *name == rule.name);
            let applies = own().any(|(_, expect, _)| matches!(expect, Expect::Fuses(_)));
            assert!(applies, "{} has no test in which it applies", rule.name);
            for (guard, _) in rule.guards {
                let refuses = own()
                    .any(|(_, expect, _)| matches!(expect, Expect::Refuses(by) if by == guard));
                assert!(refuses, "{}: no test fails the guard {guard:?}", rule.name);
            }
        }
    }
}
