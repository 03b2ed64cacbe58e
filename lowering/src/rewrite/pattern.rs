// SPDX-License-Identifier: Apache-2.0
//! Patterns over e-graphs: `(mul ?n:(rms_norm ?x) ?w)`.
//!
//! egg's own patterns compare operators for equality and name leaves only. Ours name operators by
//! [`Predicate`], try both orders of commutative ones, and may name inner nodes, whose attributes
//! guards and right sides read.

use super::language::{Predicate, Term, Terms, Types};
use egg::{Id, SearchMatches, Searcher, Subst, Var};
use std::borrow::Cow;
use std::str::FromStr;

/// A parsed pattern.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// `?x`: any class, the same wherever it stands.
    Variable(Var),
    /// `(name ..)` or `?n:(name ..)`.
    Node {
        bind: Option<Var>,
        predicate: &'static Predicate,
        children: Vec<Pattern>,
    },
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ");
        let mut tokens = spaced.split_whitespace().peekable();
        let pattern = parse(&mut tokens)?;
        match tokens.next() {
            None => Ok(pattern),
            Some(token) => Err(format!("{token:?} after the pattern")),
        }
    }
}

fn variable(name: &str) -> Result<Var, String> {
    name.parse().map_err(|_| format!("{name:?} is no variable"))
}

fn parse<'a>(
    tokens: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Result<Pattern, String> {
    let token = tokens.next().ok_or("the pattern ends early")?;
    let bind = match token.strip_suffix(':') {
        Some(name) => Some(variable(name)?),
        None if token == "(" => None,
        None => return variable(token).map(Pattern::Variable),
    };
    if bind.is_some() && tokens.next() != Some("(") {
        return Err(format!("no node after {token:?}"));
    }
    let name = tokens.next().ok_or("the pattern ends early")?;
    let predicate =
        Predicate::named(name).ok_or_else(|| format!("no operator is called {name:?}"))?;
    let mut children = Vec::new();
    loop {
        match tokens.peek() {
            Some(&")") => {
                tokens.next();
                return Ok(Pattern::Node {
                    bind,
                    predicate,
                    children,
                });
            }
            Some(_) => children.push(parse(tokens)?),
            None => return Err("an unclosed node".into()),
        }
    }
}

impl Pattern {
    fn matches(&self, egraph: &Terms, class: Id, bound: &Subst, found: &mut Vec<Subst>) {
        let class = egraph.find(class);
        match self {
            Pattern::Variable(variable) => {
                let mut bound = bound.clone();
                match bound.insert(*variable, class) {
                    Some(before) if egraph.find(before) != class => {}
                    _ => found.push(bound),
                }
            }
            Pattern::Node {
                bind,
                predicate,
                children,
            } => {
                let mut bound = bound.clone();
                if let Some(variable) = bind {
                    bound.insert(*variable, class);
                }
                for term in &egraph[class].nodes {
                    if term.children.len() != children.len() || !predicate.accepts(term) {
                        continue;
                    }
                    match_children(egraph, children, &term.children, &bound, found);
                    if let (true, [a, b]) = (predicate.commutative, term.children.as_slice())
                        && a != b
                    {
                        match_children(egraph, children, &[*b, *a], &bound, found);
                    }
                }
            }
        }
    }

    /// The operators by which this pattern matches `class` under `bound`, the root first.
    pub fn witness(&self, egraph: &Terms, class: Id, bound: &Subst) -> Option<Vec<Term>> {
        let class = egraph.find(class);
        let same = |variable: &Var| bound.get(*variable).map(|id| egraph.find(*id)) == Some(class);
        match self {
            Pattern::Variable(variable) => same(variable).then(Vec::new),
            Pattern::Node { bind, .. } if bind.as_ref().is_some_and(|bind| !same(bind)) => None,
            Pattern::Node {
                predicate,
                children,
                ..
            } => egraph[class].nodes.iter().find_map(|term| {
                if term.children.len() != children.len() || !predicate.accepts(term) {
                    return None;
                }
                let straight = term.children.iter().copied();
                let below = witness_all(egraph, children, straight, bound);
                let below = match predicate.commutative {
                    true => below.or_else(|| {
                        let swapped = term.children.iter().rev().copied();
                        witness_all(egraph, children, swapped, bound)
                    }),
                    false => below,
                };
                below.map(|below| [vec![term.clone()], below].concat())
            }),
        }
    }

    fn collect_variables(&self, variables: &mut Vec<Var>) {
        match self {
            Pattern::Variable(variable) => variables.push(*variable),
            Pattern::Node { bind, children, .. } => {
                variables.extend(bind);
                children
                    .iter()
                    .for_each(|child| child.collect_variables(variables));
            }
        }
    }
}

fn witness_all(
    egraph: &Terms,
    patterns: &[Pattern],
    classes: impl Iterator<Item = Id>,
    bound: &Subst,
) -> Option<Vec<Term>> {
    let mut all = Vec::new();
    for (pattern, class) in patterns.iter().zip(classes) {
        all.extend(pattern.witness(egraph, class, bound)?);
    }
    Some(all)
}

fn match_children(
    egraph: &Terms,
    patterns: &[Pattern],
    classes: &[Id],
    bound: &Subst,
    found: &mut Vec<Subst>,
) {
    let mut partial = vec![bound.clone()];
    for (pattern, class) in patterns.iter().zip(classes) {
        let mut next = Vec::new();
        for bound in &partial {
            pattern.matches(egraph, *class, bound, &mut next);
        }
        partial = next;
    }
    found.extend(partial);
}

impl Searcher<Term, Types> for Pattern {
    fn search_eclass_with_limit(
        &self,
        egraph: &Terms,
        eclass: Id,
        limit: usize,
    ) -> Option<SearchMatches<'_, Term>> {
        let mut substs = Vec::new();
        self.matches(egraph, eclass, &Subst::default(), &mut substs);
        substs.sort_unstable();
        substs.dedup();
        substs.truncate(limit);
        (!substs.is_empty()).then_some(SearchMatches {
            eclass,
            substs,
            ast: None::<Cow<_>>,
        })
    }

    fn search_with_limit(&self, egraph: &Terms, limit: usize) -> Vec<SearchMatches<'_, Term>> {
        let Pattern::Node { predicate, .. } = self else {
            return Vec::new();
        };
        let Some(classes) = egraph.classes_for_op(&predicate.kind) else {
            return Vec::new();
        };
        let mut classes: Vec<Id> = classes.collect();
        classes.sort_unstable();
        classes
            .into_iter()
            .filter_map(|class| self.search_eclass_with_limit(egraph, class, limit))
            .collect()
    }

    fn vars(&self) -> Vec<Var> {
        let mut variables = Vec::new();
        self.collect_variables(&mut variables);
        variables.sort_unstable();
        variables.dedup();
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_patterns_say_what_is_wrong() {
        assert!(
            Pattern::from_str("(mul ?x")
                .unwrap_err()
                .contains("unclosed")
        );
        assert!(
            Pattern::from_str("(nosuch ?x)")
                .unwrap_err()
                .contains("nosuch")
        );
        assert!(
            Pattern::from_str("(mul ?x ?y) ?z")
                .unwrap_err()
                .contains("after")
        );
        assert!(
            Pattern::from_str("(mul x)")
                .unwrap_err()
                .contains("variable")
        );
    }
}
