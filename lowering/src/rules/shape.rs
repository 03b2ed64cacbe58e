// SPDX-License-Identifier: Apache-2.0
//! Movements that undo or absorb each other.

use super::{Build, Guard, Match, Numerics, Rule};
use crate::ir::Op;
use egg::Id;

const INVERSE: Guard = ("the second permutation undoes the first", |m| {
    undone(m).is_some()
});

/// What was transposed, where transposing it again gives it back.
fn undone(m: &Match) -> Option<Id> {
    let outer = m.find_at_root(permutation)?;
    m.find("?t", |op, children| {
        let inner = permutation(op)?;
        let identity = outer
            .iter()
            .enumerate()
            .all(|(i, axis)| inner.get(*axis) == Some(&i));
        identity.then_some(children[0])
    })
}

fn permutation(op: &Op) -> Option<Vec<usize>> {
    match op {
        Op::Transpose { permutation } => Some(permutation.clone()),
        _ => None,
    }
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // transpose(transpose(x))  =>  x, where the one undoes the other
    Rule {
        name: "transpose_twice",
        numerics: Numerics::Exact,
        left: "(transpose ?t:(transpose ?x))",
        guards: &[INVERSE],
        right: |m| undone(m).map(|x| Build::Class(x).into()),
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
        ("transpose_twice", Refuses("the second permutation undoes the first"), "(transpose:1,2,0 (transpose:1,2,0 x:f32[t,2,3]))"),
        ("reshape_twice", Fuses("input"), "(reshape:t,6 (reshape:t,2,3 x:f32[t,6]))"),
        ("reshape_twice", Fuses("reshape"), "(reshape:t,3,2 (reshape:t,2,3 x:f32[t,6]))"),
        ("reshape_twice", Differs, "(reshape:t,6 x:f32[t,2,3])"),
    ];
}
