// SPDX-License-Identifier: Apache-2.0
//! Movements that undo or absorb each other.

use super::{Build, Match, Numerics, Rule};
use crate::ir::Op;
use egg::Id;

/// What two permutations make together of `?x`; `None` where they cancel out.
fn composed(m: &Match) -> Option<Vec<usize>> {
    let with = |class: Id, operand: Id| {
        m.ops(class).find_map(|(op, children)| {
            let moves = m.same(children.first().copied()?, operand);
            permutation(op).filter(|_| moves)
        })
    };
    let (outer, inner) = (with(m.root, m.id("?t"))?, with(m.id("?t"), m.id("?x"))?);
    outer.iter().map(|axis| inner.get(*axis).copied()).collect()
}

fn permutation(op: &Op) -> Option<Vec<usize>> {
    match op {
        Op::Transpose { permutation } => Some(permutation.clone()),
        _ => None,
    }
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // transpose(transpose(x))  =>  transpose(x), or x where the one undoes the other
    Rule {
        name: "transpose_twice",
        numerics: Numerics::Exact,
        left: "(transpose ?t:(transpose ?x))",
        guards: &[],
        right: |m| {
            let permutation = composed(m)?;
            if permutation.windows(2).all(|pair| pair[0] < pair[1]) {
                return Some(Build::Class(m.id("?x")).into());
            }
            Some(m.node(Op::Transpose { permutation }, &["?x"]).into())
        },
    },
    // reshape(reshape(x))  =>  reshape(x), or x in its own shape
    Rule {
        name: "reshape_twice",
        numerics: Numerics::Exact,
        left: "(reshape (reshape ?x))",
        guards: &[],
        right: |m| {
            let shape = m.root_type()?.shape.clone();
            if m.type_of("?x")?.shape == shape {
                return Some(Build::Class(m.id("?x")).into());
            }
            Some(m.node(Op::Reshape { shape }, &["?x"]).into())
        },
    },
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("transpose_twice", Fuses("input"), "(transpose:2,0,1 (transpose:1,2,0 x:f32[t,2,3]))"),
        ("transpose_twice", Fuses("transpose"), "(transpose:1,2,0 (transpose:1,2,0 x:f32[t,2,3]))"),
        ("transpose_twice", Differs, "(transpose:1,2,0 x:f32[t,2,3])"),
        ("reshape_twice", Fuses("input"), "(reshape:t,6 (reshape:t,2,3 x:f32[t,6]))"),
        ("reshape_twice", Fuses("reshape"), "(reshape:t,3,2 (reshape:t,2,3 x:f32[t,6]))"),
        ("reshape_twice", Differs, "(reshape:t,6 x:f32[t,2,3])"),
    ];
}
