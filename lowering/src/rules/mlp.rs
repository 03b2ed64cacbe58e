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
