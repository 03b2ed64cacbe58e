// SPDX-License-Identifier: Apache-2.0
//! Gated activations of merged gate and up projections (Shazeer 2020; vLLM `SiluAndMul`, `GeluAndMul`).
//!
//! ```text
//! y = f(x[.., :n]) * x[.., n:]
//! ```

use super::{Numerics, Rule};
use crate::ir::{Activation, Op};

macro_rules! gated {
    ($name:literal, $left:literal, $activation:expr) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[],
            right: |m| {
                Some(
                    m.node(
                        Op::GatedActivation {
                            activation: $activation,
                        },
                        &["?x"],
                    )
                    .into(),
                )
            },
        }
    };
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    gated!("silu_and_mul", "(mul (silu (first_half ?x)) (second_half ?x))", Activation::Silu),
    gated!("gelu_and_mul", "(mul (gelu (first_half ?x)) (second_half ?x))", Activation::Gelu),
    gated!("gelu_tanh_and_mul", "(mul (gelu_tanh (first_half ?x)) (second_half ?x))", Activation::GeluTanh),
    gated!("relu_and_mul", "(mul (relu (first_half ?x)) (second_half ?x))", Activation::Relu),
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("silu_and_mul", Fuses("gated_activation"), "(mul (silu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 x))"),
        ("silu_and_mul", Fuses("gated_activation"), "(mul (slice:1:4:8 x:bf16[t,8]) (silu (slice:1:0:4 x)))"),
        ("silu_and_mul", Differs, "(mul (silu (slice:1:4:8 x:bf16[t,8])) (slice:1:0:4 x))"),
        ("silu_and_mul", Differs, "(mul (silu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 y:bf16[t,8]))"),
        ("silu_and_mul", Differs, "(mul (silu (slice:0:0:4 x:bf16[8,3])) (slice:0:4:8 x))"),
        ("gelu_and_mul", Fuses("gated_activation"), "(mul (gelu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 x))"),
        ("gelu_and_mul", Fuses("gated_activation"), "(mul (slice:1:4:8 x:bf16[t,8]) (gelu (slice:1:0:4 x)))"),
        ("gelu_and_mul", Differs, "(mul (gelu (slice:1:4:8 x:bf16[t,8])) (slice:1:0:4 x))"),
        ("gelu_and_mul", Differs, "(mul (gelu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 y:bf16[t,8]))"),
        ("gelu_and_mul", Differs, "(mul (gelu (slice:0:0:4 x:bf16[8,3])) (slice:0:4:8 x))"),
        ("gelu_tanh_and_mul", Fuses("gated_activation"), "(mul (gelu_tanh (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 x))"),
        ("gelu_tanh_and_mul", Fuses("gated_activation"), "(mul (slice:1:4:8 x:bf16[t,8]) (gelu_tanh (slice:1:0:4 x)))"),
        ("gelu_tanh_and_mul", Differs, "(mul (gelu_tanh (slice:1:4:8 x:bf16[t,8])) (slice:1:0:4 x))"),
        ("gelu_tanh_and_mul", Differs, "(mul (gelu_tanh (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 y:bf16[t,8]))"),
        ("gelu_tanh_and_mul", Differs, "(mul (gelu_tanh (slice:0:0:4 x:bf16[8,3])) (slice:0:4:8 x))"),
        ("relu_and_mul", Fuses("gated_activation"), "(mul (relu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 x))"),
        ("relu_and_mul", Fuses("gated_activation"), "(mul (slice:1:4:8 x:bf16[t,8]) (relu (slice:1:0:4 x)))"),
        ("relu_and_mul", Differs, "(mul (relu (slice:1:4:8 x:bf16[t,8])) (slice:1:0:4 x))"),
        ("relu_and_mul", Differs, "(mul (relu (slice:1:0:4 x:bf16[t,8])) (slice:1:4:8 y:bf16[t,8]))"),
        ("relu_and_mul", Differs, "(mul (relu (slice:0:0:4 x:bf16[8,3])) (slice:0:4:8 x))"),
    ];
}
