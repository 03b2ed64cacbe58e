// SPDX-License-Identifier: Apache-2.0
//! GELU (Hendrycks & Gimpel 2016) that is written out (vLLM `NewGELU`, `FastGELU`, Hugging Face
//! `NewGELUActivation`, `FastGELUActivation`, `gelu_python`).
//!
//! ```text
//! gelu(x)      = x / 2 * (1 + erf(x / sqrt(2)))
//! gelu_tanh(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
//! ```
//! Each has a form in which products with constants are float32 and rounded: that of halves.

use super::{Guard, Match, Numerics, Right, Rule};
use crate::ir::{Op, Unary};
use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};

/// sqrt(2 / pi)
const TANH_SCALE: f64 = FRAC_2_SQRT_PI / SQRT_2;
/// Of x^3, as published.
const CUBE_SCALE: f64 = 0.044715;

/// Whether the constant is that number, to the digits that models write.
fn is(m: &Match, name: &str, number: f64) -> bool {
    m.scalar(name)
        .is_some_and(|found| (found / number - 1.0).abs() < 1e-8)
}

const HALF: Guard = ("x is halved", |m| is(m, "?h", 0.5));
const ONE: Guard = ("1 is added", |m| is(m, "?o", 1.0));
const CUBE: Guard = ("the exponent is 3", |m| is(m, "?t", 3.0));
const CUBE_SCALED: Guard = ("the cube's factor is 0.044715", |m| is(m, "?k", CUBE_SCALE));
const TANH_SCALED: Guard = ("the sum's factor is sqrt(2 / pi)", |m| {
    is(m, "?c", TANH_SCALE)
});
const ROOT: Guard = ("x is divided by sqrt(2)", |m| is(m, "?r", SQRT_2));

macro_rules! written_out {
    ($name:literal, $left:literal, $function:expr, $($guard:expr),*) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[HALF, ONE, $($guard),*],
            right: |m| Some(Right::from(m.node(Op::Unary($function), &["?x"]))),
        }
    };
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // x / 2 * (1 + erf(x / sqrt(2)))  =>  gelu(x)
    written_out!("gelu", "(mul (mul ?x ?h) (add (erf (div ?x ?r)) ?o))", Unary::Gelu, ROOT),
    written_out!("gelu_rounded", "(mul (mul ?x ?h) (add (erf (cast (div (cast_f32 ?x) ?r))) ?o))", Unary::Gelu, ROOT),
    // x / 2 * (1 + tanh((x + x^3 * k) * c))  =>  gelu_tanh(x)
    written_out!("gelu_tanh", "(mul (mul ?x ?h) (add (tanh (mul (add ?x (mul (pow ?x ?t) ?k)) ?c)) ?o))", Unary::GeluTanh, CUBE, CUBE_SCALED, TANH_SCALED),
    written_out!("gelu_tanh_rounded", "(mul (mul ?x ?h) (add (tanh (cast (mul (cast_f32 (add ?x (cast (mul (cast_f32 (pow ?x ?t)) ?k)))) ?c))) ?o))", Unary::GeluTanh, CUBE, CUBE_SCALED, TANH_SCALED),
    // x / 2 * (1 + tanh(x * c * (1 + x * k * x)))  =>  gelu_tanh(x)
    written_out!("gelu_tanh_factored", "(mul (mul ?x ?h) (add (tanh (mul (mul ?x ?c) (add (mul (mul ?x ?k) ?x) ?o))) ?o))", Unary::GeluTanh, CUBE_SCALED, TANH_SCALED),
    written_out!("gelu_tanh_factored_rounded", "(mul (mul ?x ?h) (add (tanh (mul (cast (mul (cast_f32 ?x) ?c)) (add (mul (cast (mul (cast_f32 ?x) ?k)) ?x) ?o))) ?o))", Unary::GeluTanh, CUBE_SCALED, TANH_SCALED),
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("gelu", Fuses("gelu"), "(mul (mul x:f32[t,8] 0.5) (add (erf (div x 1.4142135623730951)) 1))"),
        ("gelu", Fuses("gelu"), "(mul (add 1 (erf (div x:f32[t,8] 1.4142135623730951))) (mul 0.5 x))"),
        ("gelu", Refuses("x is halved"), "(mul (mul x:f32[t,8] 0.6) (add (erf (div x 1.4142135623730951)) 1))"),
        ("gelu", Refuses("1 is added"), "(mul (mul x:f32[t,8] 0.5) (add (erf (div x 1.4142135623730951)) 2))"),
        ("gelu", Refuses("x is divided by sqrt(2)"), "(mul (mul x:f32[t,8] 0.5) (add (erf (div x 1.5)) 1))"),
        ("gelu", Differs, "(mul (mul x:f32[t,8] 0.5) (add (erf (div y:f32[t,8] 1.4142135623730951)) 1))"),
        ("gelu_rounded", Fuses("gelu"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (erf (cast:bf16 (div (cast:f32 x) 1.4142135623730951))) 1:bf16))"),
        ("gelu_rounded", Refuses("x is halved"), "(mul (mul x:bf16[t,8] 2:bf16) (add (erf (cast:bf16 (div (cast:f32 x) 1.4142135623730951))) 1:bf16))"),
        ("gelu_rounded", Refuses("1 is added"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (erf (cast:bf16 (div (cast:f32 x) 1.4142135623730951))) 2:bf16))"),
        ("gelu_rounded", Refuses("x is divided by sqrt(2)"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (erf (cast:bf16 (div (cast:f32 x) 1.5))) 1:bf16))"),
        ("gelu_tanh", Fuses("gelu_tanh"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (add x (mul (pow x 3) 0.044715)) 0.7978845608028654)) 1))"),
        ("gelu_tanh", Refuses("x is halved"), "(mul (mul x:f32[t,8] 0.6) (add (tanh (mul (add x (mul (pow x 3) 0.044715)) 0.7978845608028654)) 1))"),
        ("gelu_tanh", Refuses("1 is added"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (add x (mul (pow x 3) 0.044715)) 0.7978845608028654)) 2))"),
        ("gelu_tanh", Refuses("the exponent is 3"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (add x (mul (pow x 5) 0.044715)) 0.7978845608028654)) 1))"),
        ("gelu_tanh", Refuses("the cube's factor is 0.044715"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (add x (mul (pow x 3) 0.0447)) 0.7978845608028654)) 1))"),
        ("gelu_tanh", Refuses("the sum's factor is sqrt(2 / pi)"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (add x (mul (pow x 3) 0.044715)) 0.8)) 1))"),
        ("gelu_tanh_rounded", Fuses("gelu_tanh"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 3:bf16)) 0.044715)))) 0.7978845608028654))) 1:bf16))"),
        ("gelu_tanh_rounded", Refuses("x is halved"), "(mul (mul x:bf16[t,8] 2:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 3:bf16)) 0.044715)))) 0.7978845608028654))) 1:bf16))"),
        ("gelu_tanh_rounded", Refuses("1 is added"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 3:bf16)) 0.044715)))) 0.7978845608028654))) 2:bf16))"),
        ("gelu_tanh_rounded", Refuses("the exponent is 3"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 5:bf16)) 0.044715)))) 0.7978845608028654))) 1:bf16))"),
        ("gelu_tanh_rounded", Refuses("the cube's factor is 0.044715"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 3:bf16)) 0.05)))) 0.7978845608028654))) 1:bf16))"),
        ("gelu_tanh_rounded", Refuses("the sum's factor is sqrt(2 / pi)"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (cast:bf16 (mul (cast:f32 (add x (cast:bf16 (mul (cast:f32 (pow x 3:bf16)) 0.044715)))) 0.8))) 1:bf16))"),
        ("gelu_tanh_factored", Fuses("gelu_tanh"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (mul x 0.7978845608) (add (mul (mul x 0.044715) x) 1))) 1))"),
        ("gelu_tanh_factored", Refuses("x is halved"), "(mul (mul x:f32[t,8] 0.6) (add (tanh (mul (mul x 0.7978845608) (add (mul (mul x 0.044715) x) 1))) 1))"),
        ("gelu_tanh_factored", Refuses("1 is added"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (mul x 0.7978845608) (add (mul (mul x 0.044715) x) 2))) 2))"),
        ("gelu_tanh_factored", Refuses("the cube's factor is 0.044715"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (mul x 0.7978845608) (add (mul (mul x 0.05) x) 1))) 1))"),
        ("gelu_tanh_factored", Refuses("the sum's factor is sqrt(2 / pi)"), "(mul (mul x:f32[t,8] 0.5) (add (tanh (mul (mul x 0.8) (add (mul (mul x 0.044715) x) 1))) 1))"),
        ("gelu_tanh_factored_rounded", Fuses("gelu_tanh"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (mul (cast:bf16 (mul (cast:f32 x) 0.7978845608)) (add (mul (cast:bf16 (mul (cast:f32 x) 0.044715)) x) 1:bf16))) 1:bf16))"),
        ("gelu_tanh_factored_rounded", Refuses("x is halved"), "(mul (mul x:bf16[t,8] 2:bf16) (add (tanh (mul (cast:bf16 (mul (cast:f32 x) 0.7978845608)) (add (mul (cast:bf16 (mul (cast:f32 x) 0.044715)) x) 1:bf16))) 1:bf16))"),
        ("gelu_tanh_factored_rounded", Refuses("1 is added"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (mul (cast:bf16 (mul (cast:f32 x) 0.7978845608)) (add (mul (cast:bf16 (mul (cast:f32 x) 0.044715)) x) 2:bf16))) 2:bf16))"),
        ("gelu_tanh_factored_rounded", Refuses("the cube's factor is 0.044715"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (mul (cast:bf16 (mul (cast:f32 x) 0.7978845608)) (add (mul (cast:bf16 (mul (cast:f32 x) 0.05)) x) 1:bf16))) 1:bf16))"),
        ("gelu_tanh_factored_rounded", Refuses("the sum's factor is sqrt(2 / pi)"), "(mul (mul x:bf16[t,8] 0.5:bf16) (add (tanh (mul (cast:bf16 (mul (cast:f32 x) 0.8)) (add (mul (cast:bf16 (mul (cast:f32 x) 0.044715)) x) 1:bf16))) 1:bf16))"),
    ];
}
