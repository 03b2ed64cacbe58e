// SPDX-License-Identifier: Apache-2.0
//! Gathers.

use super::{Guard, Numerics, Rule};
use crate::ir::{DType, Op};

const WIDENED: Guard = ("the indices were a narrower integer dtype", |m| {
    m.dtype("?c") == Some(DType::Int64)
        && matches!(m.dtype("?i"), Some(DType::Int32 | DType::Uint32))
});

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // take(x, int64(i))  =>  take(x, i)
    Rule {
        name: "take_by_narrow_indices",
        numerics: Numerics::Exact,
        left: "(take ?x ?c:(cast ?i))",
        guards: &[WIDENED],
        right: |m| {
            let axis = m.find_at_root(|op| match op { Op::Take { axis } => Some(*axis), _ => None })?;
            Some(m.node(Op::Take { axis }, &["?x", "?i"]).into())
        },
    },
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("take_by_narrow_indices", Fuses("take"), "(take:0 w:bf16[5,4] (cast:i64 i:i32[t]))"),
        ("take_by_narrow_indices", Refuses("the indices were a narrower integer dtype"), "(take:0 w:bf16[5,4] (cast:i32 i:i64[t]))"),
    ];
}
