// SPDX-License-Identifier: Apache-2.0
//! What the rules of attention find in a match, and the guards that ask for it.

use crate::ir::{AttentionMask, Dim, Op, Scores};
use crate::rules::{Build, Guard, Match};

pub const BATCHED: Guard = (
    "both operands are batches of matrices of the same sizes",
    |m| {
        let outer = |name| {
            let shape = &m.type_of(name)?.shape;
            let outer = shape.len().checked_sub(2).filter(|outer| *outer > 0)?;
            Some(&shape[..outer])
        };
        outer("?q").is_some() && outer("?q") == outer("?k")
    },
);
pub const MATRICES: Guard = ("the reshape splits the batch of matrices only", |m| {
    split(m).is_some()
});
pub const FACTOR: Guard = ("the factor is a constant", |m| factor(m).is_some());
pub const BARE: Guard = ("the scores are neither capped nor masked", |m| {
    bare(m).is_some()
});
pub const UNMASKED: Guard = ("the scores are not masked", |m| {
    of(m, &["?q", "?k"]).is_some_and(|scores| scores.mask == AttentionMask::None)
});
pub const SAME_TYPE: Guard = ("the result has the scores' type", |m| {
    m.root_type() == m.type_of("?s")
});
pub const CAP: Guard = ("scores are divided and multiplied by one constant", |m| {
    m.scalar("?c").is_some_and(|c| c > 0.0 && c.is_finite()) && m.scalar("?c") == m.scalar("?d")
});
pub const FILL: Guard = ("hidden scores are replaced by a constant", |m| {
    m.scalar("?f").is_some()
});
pub const VALUES: Guard = (
    "values are of the keys' batch, heads and number",
    |m| match (m.type_of("?k"), m.type_of("?v")) {
        (Some(k), Some(v)) => {
            (3..=4).contains(&k.rank())
                && k.rank() == v.rank()
                && k.shape[..k.rank() - 1] == v.shape[..k.rank() - 1]
        }
        _ => false,
    },
);
pub const ROUNDED: Guard = ("the weights are rounded to the values' dtype", |m| {
    m.dtype("?q") == m.dtype("?v")
});
pub const SINKS: Guard = ("the last score is one number for each head", |m| {
    sinks(m).is_some()
});
pub const SHARED: Guard = ("neighbouring heads share keys and values", |m| {
    repeated(m, "?k", "?n", "?a") && repeated(m, "?v", "?w", "?e")
});
pub const SAME_OPERAND_TYPE: Guard = ("the scaled operand keeps its dtype", |m| {
    m.dtype("?y") == m.dtype("?x")
});

/// How the scores of these operands, which `?s` stands for, are made. Another form of the same class
/// has other operands.
pub fn of(m: &Match, operands: &[&str]) -> Option<Scores> {
    m.find("?s", |op, children| match op {
        Op::AttentionScores(scores) if children.len() == operands.len() => children
            .iter()
            .zip(operands)
            .all(|(child, operand)| m.same(*child, m.id(operand)))
            .then_some(*scores),
        _ => None,
    })
}

pub fn bare(m: &Match) -> Option<Scores> {
    of(m, &["?q", "?k"])
        .filter(|scores| scores.mask == AttentionMask::None && scores.soft_cap.is_none())
}

pub fn factor(m: &Match) -> Option<f64> {
    m.scalar("?c").filter(|c| c.is_finite() && *c != 0.0)
}

/// The batch `[.., ]` that `[n, ..]` matrices are reshaped to, with both operands' sizes.
pub fn split(m: &Match) -> Option<[Vec<Dim>; 2]> {
    let (x, y, whole) = (m.type_of("?x")?, m.type_of("?y")?, m.root_type()?);
    let [&[batch, rows, inner], &[other, _, columns]] = [x.shape.as_slice(), y.shape.as_slice()]
    else {
        return None;
    };
    let [outer @ .., a, b] = whole.shape.as_slice() else {
        return None;
    };
    let splits = outer.len() > 1 && batch == other && [*a, *b] == [rows, columns];
    splits.then(|| {
        [
            [outer, &[rows, inner]].concat(),
            [outer, &[inner, columns]].concat(),
        ]
    })
}

/// The `[h]` that was broadcast to the column `?z` of `[b, h, t, 1]`.
pub fn sinks(m: &Match) -> Option<Build> {
    let column = m.type_of("?z")?;
    let &[_, heads, _, Dim::Fixed(1)] = column.shape.as_slice() else {
        return None;
    };
    let one = Dim::Fixed(1);
    let per_head = [one, heads, one, one];
    let own = (column.shape == per_head).then(|| m.id("?z"));
    let of_broadcast = m.find("?z", |op, children| match op {
        Op::Broadcast { .. } => {
            let from = m.type_of_id(children[0])?;
            (from.shape == per_head).then_some(children[0])
        }
        _ => None,
    });
    let from = own.or(of_broadcast)?;
    Some(Build::Node(
        Op::Reshape { shape: vec![heads] },
        vec![Build::Class(from)],
    ))
}

/// Whether `?whole`, `[b, g n, s, d]`, is `[b, g, s, d]` with each head repeated: reshaped to
/// `[b, g, 1, s, d]`, broadcast to the `[b, g, n, s, d]` that `repeat` names, and reshaped.
pub fn repeated(m: &Match, of: &str, repeat: &str, whole: &str) -> bool {
    let shape = |name| m.type_of(name).map(|x| x.shape.as_slice());
    let (Some([b, g, s, d]), Some([b5, g5, n, s5, d5]), Some([b4, h, s4, d4])) =
        (shape(of), shape(repeat), shape(whole))
    else {
        return false;
    };
    let column = [*b, *g, Dim::Fixed(1), *s, *d];
    let from_column = m.ops(m.id(repeat)).any(|(op, children)| {
        let column = || m.type_of_id(children[0]).is_some_and(|x| x.shape == column);
        matches!(op, Op::Broadcast { .. }) && column()
    });
    from_column
        && [b, g, s, d] == [b5, g5, s5, d5]
        && [b, s, d] == [b4, s4, d4]
        && g.checked_mul(*n) == Some(*h)
}
