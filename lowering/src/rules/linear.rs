// SPDX-License-Identifier: Apache-2.0
//! Linear layers.

use super::{Guard, Numerics, Rule};
use crate::ir::Op;

const MATRIX: Guard = ("the weight is a matrix", |m| {
    m.type_of("?w").is_some_and(|t| t.rank() == 2)
});
const BIAS: Guard = ("the bias is a vector of the columns", |m| {
    m.is_vector_of("?b", "?p")
});

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // x @ w + b  =>  addmm(x, w, b)
    Rule {
        name: "linear_bias",
        numerics: Numerics::Improves,
        left: "(add ?p:(matmul ?x ?w) ?b)",
        guards: &[MATRIX, BIAS],
        right: |m| Some(m.node(Op::Addmm, &["?x", "?w", "?b"]).into()),
    },
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("linear_bias", Fuses("addmm"), "(add (matmul x:bf16[t,4] w:bf16[4,6]) b:bf16[6])"),
        ("linear_bias", Fuses("addmm"), "(add b:bf16[6] (matmul x:bf16[2,t,4] w:bf16[4,6]))"),
        ("linear_bias", Refuses("the weight is a matrix"), "(add (matmul x:bf16[2,t,4] w:bf16[2,4,6]) b:bf16[6])"),
        ("linear_bias", Refuses("the bias is a vector of the columns"), "(add (matmul x:bf16[t,4] w:bf16[4,6]) b:bf16[t,6])"),
    ];
}
