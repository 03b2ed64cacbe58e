// SPDX-License-Identifier: Apache-2.0
//! Gated activations (Shazeer 2020; vLLM `SiluAndMul`, `MulAndSilu`, `GeluAndMul`, `SwigluOAIAndMul`), of
//! merged gate and up projections or of two, and activations that are written out.
//!
//! ```text
//! y = f(gate) * up        y = f(x[.., :n]) * x[.., n:]
//! ```

use super::{Guard, Match, Numerics, Right, Rule};
use crate::ir::{Activation, Float, Op, Unary};

const SAME_TYPE: Guard = ("gate and up have one type", |m| {
    m.type_of("?g") == m.type_of("?u")
});
const ALPHA: Guard = ("the sigmoid's scale is a constant", |m| {
    m.scalar("?a").is_some_and(f64::is_finite)
});
const HALVES: Guard = ("gate and up are the halves of one operand", |m| {
    let (gate, up) = (m.last_axis_slice("?g"), m.last_axis_slice("?u"));
    gate.zip(up).is_some_and(|(gate, up)| {
        m.same(gate.whole, up.whole)
            && (gate.start, gate.step, up.step) == (0, 1, 1)
            && (gate.stop, up.stop) == (up.start, up.length)
            && 2 * up.start == up.length
    })
});

/// `f(?g) * ?u`
fn gate(m: &Match, activation: Activation) -> Option<Right> {
    let op = Op::GatedActivation { activation };
    Some(m.node(op, &["?g", "?u"]).into())
}

macro_rules! gated_pair {
    ($name:literal, $left:literal, $activation:expr) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[SAME_TYPE],
            right: |m| gate(m, $activation),
        }
    };
}

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
    gated_pair!("silu_gate", "(mul (silu ?g) ?u)", Activation::Silu),
    gated_pair!("gelu_gate", "(mul (gelu ?g) ?u)", Activation::Gelu),
    gated_pair!("gelu_tanh_gate", "(mul (gelu_tanh ?g) ?u)", Activation::GeluTanh),
    gated_pair!("relu_gate", "(mul (relu ?g) ?u)", Activation::Relu),
    // x * sigmoid(x)  =>  silu(x)
    Rule {
        name: "silu",
        numerics: Numerics::Improves,
        left: "(mul ?x (sigmoid ?x))",
        guards: &[],
        right: |m| Some(m.node(Op::Unary(Unary::Silu), &["?x"]).into()),
    },
    // x * sigmoid(x * a) * u  =>  swish(x) * u
    Rule {
        name: "swish_gate",
        numerics: Numerics::Improves,
        left: "(mul (mul ?g (sigmoid (mul ?g ?a))) ?u)",
        guards: &[SAME_TYPE, ALPHA],
        right: |m| gate(m, Activation::Swish { alpha: Float::new(m.scalar("?a")?) }),
    },
    Rule {
        name: "swish_gate_rounded",
        numerics: Numerics::Improves,
        left: "(mul (mul ?g (sigmoid (cast (mul (cast_f32 ?g) ?a)))) ?u)",
        guards: &[SAME_TYPE, ALPHA],
        right: |m| gate(m, Activation::Swish { alpha: Float::new(m.scalar("?a")?) }),
    },
    // gate(x[.., :n], x[.., n:])  =>  gate(x)
    Rule {
        name: "gate_of_halves",
        numerics: Numerics::Exact,
        left: "?y:(gated_activation ?g ?u)",
        guards: &[HALVES],
        right: |m| {
            let activation = m.find("?y", |op, children| match op {
                Op::GatedActivation { activation } if children.len() == 2 => {
                    let own = m.same(children[0], m.id("?g")) && m.same(children[1], m.id("?u"));
                    own.then_some(*activation)
                }
                _ => None,
            })?;
            let whole = super::Build::Class(m.last_axis_slice("?g")?.whole);
            Some(super::Build::Node(Op::GatedActivation { activation }, vec![whole]).into())
        },
    },
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
        ("silu_gate", Fuses("gated_activation"), "(mul (silu g:bf16[2,t,8]) u:bf16[2,t,8])"),
        ("silu_gate", Fuses("gated_activation"), "(mul u:bf16[2,t,8] (silu g:bf16[2,t,8]))"),
        ("silu_gate", Refuses("gate and up have one type"), "(mul u:bf16[2,t,8] (silu g:bf16[8]))"),
        ("gelu_gate", Fuses("gated_activation"), "(mul (gelu g:bf16[t,8]) u:bf16[t,8])"),
        ("gelu_gate", Refuses("gate and up have one type"), "(mul u:bf16[2,t,8] (gelu g:bf16[8]))"),
        ("gelu_tanh_gate", Fuses("gated_activation"), "(mul (gelu_tanh g:bf16[t,8]) u:bf16[t,8])"),
        ("gelu_tanh_gate", Refuses("gate and up have one type"), "(mul u:bf16[2,t,8] (gelu_tanh g:bf16[8]))"),
        ("relu_gate", Fuses("gated_activation"), "(mul (relu g:bf16[t,8]) u:bf16[t,8])"),
        ("relu_gate", Refuses("gate and up have one type"), "(mul u:bf16[2,t,8] (relu g:bf16[8]))"),
        ("silu", Fuses("silu"), "(mul x:bf16[t,8] (sigmoid x))"),
        ("silu", Differs, "(mul x:bf16[t,8] (sigmoid y:bf16[t,8]))"),
        ("swish_gate", Fuses("gated_activation"), "(mul (mul g:f32[t,8] (sigmoid (mul g 1.702))) u:f32[t,8])"),
        ("swish_gate", Refuses("gate and up have one type"), "(mul (mul g:f32[8] (sigmoid (mul g 1.702))) u:f32[t,8])"),
        ("swish_gate", Refuses("the sigmoid's scale is a constant"), "(mul (mul g:f32[t,8] (sigmoid (mul g a:f32[1]))) u:f32[t,8])"),
        ("swish_gate_rounded", Fuses("gated_activation"), "(mul (mul g:bf16[t,8] (sigmoid (cast:bf16 (mul (cast:f32 g) 1.702)))) u:bf16[t,8])"),
        ("swish_gate_rounded", Refuses("gate and up have one type"), "(mul (mul g:bf16[8] (sigmoid (cast:bf16 (mul (cast:f32 g) 1.702)))) u:bf16[t,8])"),
        ("swish_gate_rounded", Refuses("the sigmoid's scale is a constant"), "(mul (mul g:bf16[t,8] (sigmoid (cast:bf16 (mul (cast:f32 g) a:f32[1])))) u:bf16[t,8])"),
        ("gate_of_halves", Fuses("gated_activation"), "(gated_silu (slice:1:0:4 x:bf16[t,8]) (slice:1:4:8 x))"),
        ("gate_of_halves", Refuses("gate and up are the halves of one operand"), "(gated_silu (slice:1:4:8 x:bf16[t,8]) (slice:1:0:4 x))"),
        ("gate_of_halves", Refuses("gate and up are the halves of one operand"), "(gated_silu (slice:1:0:4 x:bf16[t,8]) (slice:1:4:8 y:bf16[t,8]))"),
    ];
}
