// SPDX-License-Identifier: Apache-2.0
//! The e-graph's language: IR operators, and patterns that match them by name.

use super::origin::Application;
use crate::ir::{DType, Dim, Op, TensorType, infer};
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use std::collections::BTreeMap;
use std::fmt;

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    pub op: Op,
    /// Rank of the first operand, so that predicates can tell the last axis.
    rank: usize,
    /// Types of the results where they cannot be inferred.
    pub types: Vec<TensorType>,
    pub children: Vec<Id>,
}

/// A named set of operators, as patterns write it.
#[derive(Debug)]
pub struct Predicate {
    pub name: &'static str,
    /// [`Op::name`] of the operators in the set.
    pub kind: &'static str,
    /// Operands may be swapped.
    pub commutative: bool,
    /// `(operator, rank of its first operand) -> in the set`
    accepts: fn(&Op, usize) -> bool,
}

impl Predicate {
    /// The predicate of that name.
    pub fn named(name: &str) -> Option<&'static Predicate> {
        PREDICATES.iter().find(|predicate| predicate.name == name)
    }

    /// Whether the term is in the set.
    pub fn accepts(&self, term: &Term) -> bool {
        self.holds(&term.op, term.rank)
    }

    /// Whether the operator is in the set, its first operand having that rank.
    pub fn holds(&self, op: &Op, rank: usize) -> bool {
        self.kind == op.name() && (self.accepts)(op, rank)
    }
}

fn any(_: &Op, _: usize) -> bool {
    true
}

fn is_last(axes: &[usize], rank: usize) -> bool {
    rank > 0 && axes == [rank - 1]
}

/// Every name that a pattern may use.
static PREDICATES: &[Predicate] = &[
    Predicate {
        name: "add",
        kind: "add",
        commutative: true,
        accepts: any,
    },
    Predicate {
        name: "sub",
        kind: "sub",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "mul",
        kind: "mul",
        commutative: true,
        accepts: any,
    },
    Predicate {
        name: "div",
        kind: "div",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "neg",
        kind: "neg",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "square",
        kind: "square",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "rsqrt",
        kind: "rsqrt",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "silu",
        kind: "silu",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "gelu",
        kind: "gelu",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "gelu_tanh",
        kind: "gelu_tanh",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "relu",
        kind: "relu",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "cast",
        kind: "cast",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "cast_f32",
        kind: "cast",
        commutative: false,
        accepts: |op, _| {
            matches!(
                op,
                Op::Cast {
                    dtype: DType::Float32
                }
            )
        },
    },
    Predicate {
        name: "mean_last",
        kind: "mean",
        commutative: false,
        accepts: |op, rank| matches!(op, Op::Reduce { axes, keepdims: true, .. } if is_last(axes, rank)),
    },
    Predicate {
        name: "concat_last",
        kind: "concat",
        commutative: false,
        accepts: |op, rank| matches!(op, Op::Concat { axis } if axis + 1 == rank),
    },
    Predicate {
        name: "first_half",
        kind: "slice",
        commutative: false,
        accepts: |op, rank| match op {
            Op::Slice {
                axis,
                start: Dim::Fixed(0),
                stop,
                step: 1,
                length,
            } => axis + 1 == rank && stop.checked_mul(Dim::Fixed(2)) == Some(*length),
            _ => false,
        },
    },
    Predicate {
        name: "second_half",
        kind: "slice",
        commutative: false,
        accepts: |op, rank| match op {
            Op::Slice {
                axis,
                start,
                stop,
                step: 1,
                length,
            } => {
                axis + 1 == rank
                    && stop == length
                    && start.checked_mul(Dim::Fixed(2)) == Some(*length)
            }
            _ => false,
        },
    },
    Predicate {
        name: "reshape",
        kind: "reshape",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "transpose",
        kind: "transpose",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "matmul",
        kind: "matmul",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "take",
        kind: "take",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "tanh",
        kind: "tanh",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "erf",
        kind: "erf",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "pow",
        kind: "pow",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "sigmoid",
        kind: "sigmoid",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "where",
        kind: "where",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "broadcast",
        kind: "broadcast",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "softmax_last",
        kind: "softmax",
        commutative: false,
        accepts: |op, rank| matches!(op, Op::Softmax { axis } if axis + 1 == rank),
    },
    Predicate {
        name: "max_last",
        kind: "max",
        commutative: false,
        accepts: |op, rank| matches!(op, Op::Reduce { axes, keepdims: true, .. } if is_last(axes, rank)),
    },
    Predicate {
        name: "all_but_last",
        kind: "slice",
        commutative: false,
        accepts: |op, rank| match op {
            Op::Slice {
                axis,
                start: Dim::Fixed(0),
                stop,
                step: 1,
                length,
            } => axis + 1 == rank && stop.checked_add(Dim::Fixed(1)) == Some(*length),
            _ => false,
        },
    },
    Predicate {
        name: "attention_scores",
        kind: "attention_scores",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "scaled_dot_product_attention",
        kind: "scaled_dot_product_attention",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "sqrt",
        kind: "sqrt",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "reciprocal",
        kind: "reciprocal",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "sum_last",
        kind: "sum",
        commutative: false,
        accepts: |op, rank| matches!(op, Op::Reduce { axes, keepdims: true, .. } if is_last(axes, rank)),
    },
    Predicate {
        name: "layer_norm",
        kind: "layer_norm",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "gated_activation",
        kind: "gated_activation",
        commutative: false,
        accepts: any,
    },
    Predicate {
        name: "rms_norm",
        kind: "rms_norm",
        commutative: false,
        accepts: any,
    },
];

impl Language for Term {
    type Discriminant = &'static str;

    fn discriminant(&self) -> &'static str {
        self.op.name()
    }

    fn matches(&self, other: &Term) -> bool {
        (&self.op, self.rank, &self.types, self.children.len())
            == (&other.op, other.rank, &other.types, other.children.len())
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op.name())
    }
}

/// What is known of an e-class: the types of its results; and what rules did to the e-graph.
#[derive(Clone, Default)]
pub struct Types {
    /// In the order in which rules applied.
    pub applications: Vec<Application>,
    /// How often the left side of a rule was found, guards aside.
    pub matches: BTreeMap<&'static str, usize>,
}

/// The e-graph of a region.
pub type Terms = EGraph<Term, Types>;

impl Analysis<Term> for Types {
    type Data = Vec<TensorType>;

    fn make(egraph: &mut Terms, term: &Term, _: Id) -> Vec<TensorType> {
        if let Op::Project(index) = &term.op {
            return egraph[term.children[0]]
                .data
                .get(*index as usize)
                .cloned()
                .into_iter()
                .collect();
        }
        let operands: Vec<&TensorType> = term
            .children
            .iter()
            .filter_map(|child| egraph[*child].data.first())
            .collect();
        match infer(&term.op, &operands) {
            Some(inferred) => inferred.unwrap_or_default(),
            None => term.types.clone(),
        }
    }

    fn merge(&mut self, mine: &mut Vec<TensorType>, theirs: Vec<TensorType>) -> DidMerge {
        // Rules are checked to join equal types only, so there is nothing to learn.
        debug_assert_eq!(*mine, theirs);
        DidMerge(false, false)
    }
}

fn term(egraph: &Terms, op: Op, types: Vec<TensorType>, children: Vec<Id>) -> Term {
    let rank = children
        .first()
        .and_then(|child| egraph[*child].data.first())
        .map_or(0, TensorType::rank);
    Term {
        op,
        rank,
        types,
        children,
    }
}

/// A node of the region, whose types are known. They stay with the operator only where they
/// cannot be inferred, so that a rule's operator of the same form is the same e-node.
pub fn original(egraph: &Terms, op: Op, types: Vec<TensorType>, children: Vec<Id>) -> Term {
    let carried = match infer(&op, &[]) {
        None if !matches!(op, Op::Project(_)) => types,
        _ => Vec::new(),
    };
    term(egraph, op, carried, children)
}

/// An operator that a rule builds; `None` when its operands do not fit it.
pub fn fitting(egraph: &Terms, op: Op, children: Vec<Id>) -> Option<Term> {
    let operands: Vec<&TensorType> = children
        .iter()
        .filter_map(|child| egraph[*child].data.first())
        .collect();
    let fits = matches!(op, Op::Project(_))
        || infer(&op, &operands).is_some_and(|inferred| inferred.is_ok());
    fits.then(|| original(egraph, op, Vec::new(), children))
}

/// The operator of that form, if the e-graph holds it.
pub fn lookup(egraph: &Terms, op: Op, children: Vec<Id>) -> Option<Id> {
    egraph.lookup(term(egraph, op, Vec::new(), children))
}

/// Operators of a class with their operands.
pub fn ops(egraph: &Terms, class: Id) -> impl Iterator<Item = (&Op, &[Id])> {
    egraph[class]
        .nodes
        .iter()
        .map(|term| (&term.op, term.children.as_slice()))
}

/// Type of a class's only or first result.
pub fn type_of(egraph: &Terms, class: Id) -> Option<&TensorType> {
    egraph[class].data.first()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Reduction;

    #[test]
    fn mean_last_is_the_mean_over_the_last_axis_only() {
        let mean = Op::Reduce {
            function: Reduction::Mean,
            axes: vec![1],
            keepdims: true,
        };
        let of_rank = |rank| Term {
            op: mean.clone(),
            rank,
            types: vec![],
            children: vec![],
        };
        let mean_last = Predicate::named("mean_last").unwrap();
        assert!(mean_last.accepts(&of_rank(2)));
        assert!(!mean_last.accepts(&of_rank(3)));
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<&str> = PREDICATES.iter().map(|predicate| predicate.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PREDICATES.len());
    }
}
