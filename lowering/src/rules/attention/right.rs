// SPDX-License-Identifier: Apache-2.0
//! Right sides of the rules of attention.

use super::guards::{bare, factor, of};
use crate::ir::{AttentionMask, Dim, Float, Op, Scores, Unary};
use crate::rules::{Build, Match, Right};

/// The permutation that swaps the last two of so many axes.
pub fn swap(rank: usize) -> Op {
    let mut permutation: Vec<usize> = (0..rank).collect();
    permutation.swap(rank - 2, rank - 1);
    Op::Transpose { permutation }
}

pub fn class(m: &Match, name: &str) -> Build {
    Build::Class(m.id(name))
}

pub fn capped(m: &Match) -> Option<Right> {
    let scores = Scores {
        soft_cap: Some(Float::new(m.scalar("?c")?)),
        ..bare(m)?
    };
    // `tanh(q @ k^T * scale / cap) * cap`
    Some(m.node(Op::AttentionScores(scores), &["?q", "?k"]).into())
}

pub fn masked(m: &Match, mask: AttentionMask, operand: Build) -> Option<Right> {
    let scores = Scores {
        mask,
        ..of(m, &["?q", "?k"])?
    };
    let operands = vec![class(m, "?q"), class(m, "?k"), operand];
    Some(Build::Node(Op::AttentionScores(scores), operands).into())
}

pub fn hidden(m: &Match, negated: bool) -> Option<Right> {
    let fill = Float::new(m.scalar("?f")?);
    let mask = match negated {
        true => m.node(Op::Unary(Unary::LogicalNot), &["?b"]),
        false => class(m, "?b"),
    };
    masked(m, AttentionMask::Boolean { fill }, mask)
}

/// `attention` of scores of these operands; of rank 3 as of a batch of 1.
pub fn attend(m: &Match, operands: &[&str], sinks: Option<Build>) -> Option<Right> {
    let scores = of(m, operands)?;
    let rank = m.type_of("?q")?.rank();
    let lift = |name: &str| {
        let mut shape = m.type_of(name)?.shape.clone();
        if rank == 4 {
            return Some(class(m, name));
        }
        shape.insert(0, Dim::Fixed(1));
        Some(m.node(Op::Reshape { shape }, &[name]))
    };
    let mut all = vec![lift("?q")?, lift("?k")?, lift("?v")?];
    all.extend(operands[2..].iter().map(|mask| class(m, mask)));
    let op = Op::ScaledDotProductAttention {
        scores,
        sinks: sinks.is_some(),
    };
    all.extend(sinks);
    let attention = Build::Node(op, all);
    if rank == 4 {
        return Some(attention.into());
    }
    let shape = m.root_type()?.shape.clone();
    Some(Build::Node(Op::Reshape { shape }, vec![attention]).into())
}

/// The same attention over keys and values that are not repeated.
pub fn shared(m: &Match, rest: &[&str]) -> Option<Right> {
    let operands = [&["?q", "?a", "?e"], rest].concat();
    let op = m.ops(m.root).find_map(|(op, children)| {
        let fits = children.len() == operands.len()
            && (children.iter().zip(&operands)).all(|(child, name)| m.same(*child, m.id(name)));
        (fits && matches!(op, Op::ScaledDotProductAttention { .. })).then(|| op.clone())
    })?;
    let operands = [&["?q", "?k", "?v"], rest].concat();
    Some(m.node(op, &operands).into())
}

/// `?s`, scores of the operands `found`, with the factor `?c` in their scale.
pub fn rescaled(
    m: &Match,
    found: [&str; 2],
    by: fn(f64, f64) -> f64,
    operands: [Build; 2],
) -> Option<Right> {
    let mut scores = of(m, &found)?;
    scores.scale = Float::new(by(scores.scale.get(), factor(m)?));
    Some(Build::Node(Op::AttentionScores(scores), operands.into()).into())
}

pub fn multiply(a: f64, b: f64) -> f64 {
    a * b
}

pub fn divide(a: f64, b: f64) -> f64 {
    a / b
}

pub fn query(m: &Match) -> Option<[Build; 2]> {
    Some([class(m, "?x"), class(m, "?k")])
}

pub fn key(m: &Match) -> Option<[Build; 2]> {
    Some([class(m, "?q"), class(m, "?x")])
}

pub fn transposed_key(m: &Match) -> Option<[Build; 2]> {
    let permutation = m.find("?t", |op, _| match op {
        Op::Transpose { permutation } => Some(permutation.clone()),
        _ => None,
    })?;
    Some([
        class(m, "?q"),
        m.node(Op::Transpose { permutation }, &["?x"]),
    ])
}
