// SPDX-License-Identifier: Apache-2.0
//! RMSNorm (Zhang & Sennrich 2019; vLLM `ir.ops.rms_norm`, MLX `fast.rms_norm`), alone and after a residual
//! sum, and LayerNorm (Ba et al. 2016; MLX `fast.layer_norm`).
//!
//! ```text
//! y = x / sqrt(mean(x^2) + eps) * w
//! y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b
//! ```

use super::{Build, Guard, Match, Numerics, Right, Rule};
use crate::ir::{DType, Float, Op, Reduction, Unary};

const F32: Guard = ("the normalised operand is float32", |m| {
    m.dtype("?x") == Some(DType::Float32)
});
const EPS: Guard = ("eps is a constant", |m| m.scalar("?eps").is_some());
const WEIGHT: Guard = ("the weight is a vector along the last axis", |m| {
    m.is_vector_of("?w", "?x")
});
const SUM_WEIGHT: Guard = ("the weight is a vector along the last axis", |m| {
    m.is_vector_of("?w", "?a")
});
const WIDE_WEIGHT: Guard = ("the weight is float32", |m| {
    m.dtype("?w") == Some(DType::Float32)
});
const NARROW_WEIGHT: Guard = ("the weight has the operand's dtype", |m| {
    m.dtype("?w") == m.dtype("?x")
});
const ROUND_TRIP: Guard = ("the result has the operand's dtype", |m| {
    m.root_dtype() == m.dtype("?x")
});
const ROUNDED: Guard = ("the norm is rounded to the operand's dtype", |m| {
    m.dtype("?r") == m.dtype("?x")
});
const SAME_ADDENDS: Guard = ("both addends have one type", |m| {
    m.type_of("?a") == m.type_of("?b")
});
const SUM_ROUND_TRIP: Guard = ("the result has the addends' dtype", |m| {
    m.root_dtype() == m.dtype("?a")
});
const SUM_ROUNDED: Guard = ("the norm is rounded to the addends' dtype", |m| {
    m.dtype("?r") == m.dtype("?a")
});
const SUM_NARROW_WEIGHT: Guard = ("the weight has the addends' dtype", |m| {
    m.dtype("?w") == m.dtype("?a")
});

const COUNT: Guard = ("the divisor is the length of the last axis", |m| {
    let length = m
        .type_of("?x")
        .and_then(|x| x.last())
        .and_then(|x| x.fixed());
    length.is_some_and(|length| length > 0 && m.scalar("?c") == Some(length as f64))
});
const BIAS: Guard = ("the bias is a vector along the last axis", |m| {
    m.is_vector_of("?b", "?x")
});
const WIDE_BIAS: Guard = ("the bias is float32", |m| {
    m.dtype("?b") == Some(DType::Float32)
});

/// eps of the norm that `?n` stands for.
fn eps(m: &Match) -> Option<Float> {
    m.find("?n", |op, _| match op {
        Op::RmsNorm { eps } => Some(*eps),
        _ => None,
    })
}

fn layer_norm(m: &Match, operands: &[&str]) -> Option<Right> {
    let eps = m.find("?n", |op, _| match op {
        Op::LayerNorm { eps } => Some(*eps),
        _ => None,
    })?;
    Some(m.node(Op::LayerNorm { eps }, operands).into())
}

fn norm(m: &Match, operands: &[&str]) -> Option<Right> {
    Some(m.node(Op::RmsNorm { eps: eps(m)? }, operands).into())
}

/// The fused operator's two results: the norm at the root, and the sum wherever the graph holds it.
fn add_norm(m: &Match, operands: &[&str], rounded_sum: bool) -> Option<Right> {
    let eps = eps(m)?;
    let project = |result| {
        let both = m.node(Op::AddRmsNorm { eps, rounded_sum }, operands);
        Build::Node(Op::Project(result), vec![both])
    };
    let dtype = m.dtype("?a")?;
    let sum = match m.dtype("?s") == Some(dtype) {
        true => Some(m.id("?s")),
        false => m.lookup(Op::Cast { dtype }, "?s"),
    };
    Some(Right {
        root: project(0),
        also: sum.map(|sum| (sum, project(1))).into_iter().collect(),
    })
}

/// As [`add_norm`], of a layer norm.
fn add_layer_norm(m: &Match, operands: &[&str]) -> Option<Right> {
    let eps = m.find("?n", |op, _| match op {
        Op::LayerNorm { eps } => Some(*eps),
        _ => None,
    })?;
    let project = |result| {
        let both = m.node(Op::AddLayerNorm { eps }, operands);
        Build::Node(Op::Project(result), vec![both])
    };
    Some(Right {
        root: project(0),
        also: vec![(m.id("?s"), project(1))],
    })
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // x * rsqrt(mean(x^2) + eps)  =>  rms_norm(x)
    Rule {
        name: "rms_norm",
        numerics: Numerics::SameRounding,
        left: "(mul ?x (rsqrt (add (mean_last (square ?x)) ?eps)))",
        guards: &[F32, EPS],
        right: |m| {
            let eps = Float::new(m.scalar("?eps")?);
            Some(m.node(Op::RmsNorm { eps }, &["?x"]).into())
        },
    },
    // x / sqrt(mean(x^2) + eps)  =>  rms_norm(x)
    Rule {
        name: "rms_norm_divided",
        numerics: Numerics::Improves,
        left: "(div ?x (sqrt (add (mean_last (square ?x)) ?eps)))",
        guards: &[F32, EPS],
        right: |m| {
            let eps = Float::new(m.scalar("?eps")?);
            Some(m.node(Op::RmsNorm { eps }, &["?x"]).into())
        },
    },
    // x * x  =>  x^2
    Rule {
        name: "square",
        numerics: Numerics::Exact,
        left: "(mul ?x ?x)",
        guards: &[],
        right: |m| Some(m.node(Op::Unary(Unary::Square), &["?x"]).into()),
    },
    // 1 / sqrt(x)  =>  rsqrt(x)
    Rule {
        name: "rsqrt",
        numerics: Numerics::Improves,
        left: "(reciprocal (sqrt ?x))",
        guards: &[],
        right: |m| Some(m.node(Op::Unary(Unary::Rsqrt), &["?x"]).into()),
    },
    // sum(x) / n  =>  mean(x)
    Rule {
        name: "mean",
        numerics: Numerics::Improves,
        left: "(div (sum_last ?x) ?c)",
        guards: &[COUNT],
        right: |m| {
            let axes = vec![m.type_of("?x")?.rank() - 1];
            let mean = Op::Reduce { function: Reduction::Mean, axes, keepdims: true };
            Some(m.node(mean, &["?x"]).into())
        },
    },
    // (x - mean(x)) * rsqrt(mean((x - mean(x))^2) + eps)  =>  layer_norm(x)
    Rule {
        name: "layer_norm",
        numerics: Numerics::Improves,
        left: "(mul ?d:(sub ?x (mean_last ?x)) (rsqrt (add (mean_last (square ?d)) ?eps)))",
        guards: &[F32, EPS],
        right: |m| {
            let eps = Float::new(m.scalar("?eps")?);
            Some(m.node(Op::LayerNorm { eps }, &["?x"]).into())
        },
    },
    Rule {
        name: "layer_norm_divided",
        numerics: Numerics::Improves,
        left: "(div ?d:(sub ?x (mean_last ?x)) (sqrt (add (mean_last (square ?d)) ?eps)))",
        guards: &[F32, EPS],
        right: |m| {
            let eps = Float::new(m.scalar("?eps")?);
            Some(m.node(Op::LayerNorm { eps }, &["?x"]).into())
        },
    },
    // s = a + b, layer_norm(s, w, b)  =>  add_layer_norm(a, b, w, b), s
    Rule {
        name: "add_layer_norm",
        numerics: Numerics::Exact,
        left: "?n:(layer_norm ?s:(add ?a ?b) ?w ?v)",
        guards: &[SAME_ADDENDS],
        right: |m| add_layer_norm(m, &["?a", "?b", "?w", "?v"]),
    },
    Rule {
        name: "add_layer_norm_unshifted",
        numerics: Numerics::Exact,
        left: "?n:(layer_norm ?s:(add ?a ?b) ?w)",
        guards: &[SAME_ADDENDS],
        right: |m| add_layer_norm(m, &["?a", "?b", "?w"]),
    },
    Rule {
        name: "add_layer_norm_weightless",
        numerics: Numerics::Exact,
        left: "?n:(layer_norm ?s:(add ?a ?b))",
        guards: &[SAME_ADDENDS],
        right: |m| add_layer_norm(m, &["?a", "?b"]),
    },
    // layer_norm(x) * w  =>  layer_norm(x, w)
    Rule {
        name: "layer_norm_weight",
        numerics: Numerics::Improves,
        left: "(mul ?n:(layer_norm ?x) ?w)",
        guards: &[F32, WIDE_WEIGHT, WEIGHT],
        right: |m| layer_norm(m, &["?x", "?w"]),
    },
    // layer_norm(x, w) + b  =>  layer_norm(x, w, b)
    Rule {
        name: "layer_norm_bias",
        numerics: Numerics::Improves,
        left: "(add ?n:(layer_norm ?x ?w) ?b)",
        guards: &[F32, WIDE_BIAS, BIAS],
        right: |m| layer_norm(m, &["?x", "?w", "?b"]),
    },
    // T(layer_norm(f32(x), w: f32, b: f32))  =>  layer_norm(x, w, b)
    Rule {
        name: "layer_norm_narrow",
        numerics: Numerics::Exact,
        left: "(cast ?n:(layer_norm (cast_f32 ?x) ?w ?b))",
        guards: &[ROUND_TRIP],
        right: |m| layer_norm(m, &["?x", "?w", "?b"]),
    },
    Rule {
        name: "layer_norm_narrow_weightless",
        numerics: Numerics::Exact,
        left: "(cast ?n:(layer_norm (cast_f32 ?x)))",
        guards: &[ROUND_TRIP],
        right: |m| layer_norm(m, &["?x"]),
    },
    // rms_norm(x) * w  =>  rms_norm(x, w)
    Rule {
        name: "rms_norm_weight",
        numerics: Numerics::Exact,
        left: "(mul ?n:(rms_norm ?x) ?w)",
        guards: &[F32, WIDE_WEIGHT, WEIGHT],
        right: |m| norm(m, &["?x", "?w"]),
    },
    // T(rms_norm(f32(x), w: f32))  =>  rms_norm(x, w)
    Rule {
        name: "rms_norm_narrow_float32_weight",
        numerics: Numerics::Exact,
        left: "(cast ?n:(rms_norm (cast_f32 ?x) ?w))",
        guards: &[ROUND_TRIP, WIDE_WEIGHT],
        right: |m| norm(m, &["?x", "?w"]),
    },
    // T(rms_norm(f32(x))) * w: T  =>  rms_norm(x, w)
    Rule {
        name: "rms_norm_narrow",
        numerics: Numerics::Exact,
        left: "(mul ?r:(cast ?n:(rms_norm (cast_f32 ?x))) ?w)",
        guards: &[ROUNDED, NARROW_WEIGHT, WEIGHT],
        right: |m| norm(m, &["?x", "?w"]),
    },
    // T(rms_norm(f32(x)))  =>  rms_norm(x)
    Rule {
        name: "rms_norm_narrow_weightless",
        numerics: Numerics::Exact,
        left: "(cast ?n:(rms_norm (cast_f32 ?x)))",
        guards: &[ROUND_TRIP],
        right: |m| norm(m, &["?x"]),
    },
    // s = a + b, rms_norm(s, w)  =>  add_rms_norm(a, b, w)
    Rule {
        name: "add_rms_norm",
        numerics: Numerics::Exact,
        left: "?n:(rms_norm ?s:(add ?a ?b) ?w)",
        guards: &[SAME_ADDENDS, SUM_WEIGHT],
        right: |m| add_norm(m, &["?a", "?b", "?w"], m.dtype("?a")?.is_half()),
    },
    // s = a + b, rms_norm(s)  =>  add_rms_norm(a, b)
    Rule {
        name: "add_rms_norm_weightless",
        numerics: Numerics::Exact,
        left: "?n:(rms_norm ?s:(add ?a ?b))",
        guards: &[SAME_ADDENDS],
        right: |m| add_norm(m, &["?a", "?b"], m.dtype("?a")?.is_half()),
    },
    // s = f32(a) + f32(b), T(rms_norm(s)) * w: T  =>  add_rms_norm(a, b, w), T(s)
    Rule {
        name: "add_rms_norm_narrow",
        numerics: Numerics::Exact,
        left: "(mul ?r:(cast ?n:(rms_norm ?s:(add (cast_f32 ?a) (cast_f32 ?b)))) ?w)",
        guards: &[SAME_ADDENDS, SUM_ROUNDED, SUM_NARROW_WEIGHT, SUM_WEIGHT],
        right: |m| add_norm(m, &["?a", "?b", "?w"], false),
    },
    // s = f32(a) + f32(b), T(rms_norm(s, w: f32))  =>  add_rms_norm(a, b, w), T(s)
    Rule {
        name: "add_rms_norm_narrow_float32_weight",
        numerics: Numerics::Exact,
        left: "(cast ?n:(rms_norm ?s:(add (cast_f32 ?a) (cast_f32 ?b)) ?w))",
        guards: &[SAME_ADDENDS, SUM_ROUND_TRIP, WIDE_WEIGHT, SUM_WEIGHT],
        right: |m| add_norm(m, &["?a", "?b", "?w"], false),
    },
    // s = f32(a) + f32(b), T(rms_norm(s))  =>  add_rms_norm(a, b), T(s)
    Rule {
        name: "add_rms_norm_narrow_weightless",
        numerics: Numerics::Exact,
        left: "(cast ?n:(rms_norm ?s:(add (cast_f32 ?a) (cast_f32 ?b))))",
        guards: &[SAME_ADDENDS, SUM_ROUND_TRIP],
        right: |m| add_norm(m, &["?a", "?b"], false),
    },
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("rms_norm", Fuses("rms_norm"), "(mul x:f32[t,8] (rsqrt (add (mean_last (square x)) 1e-6)))"),
        ("rms_norm", Fuses("rms_norm"), "(mul (rsqrt (add 1e-6 (mean_last (square x:f32[t,8])))) x)"),
        ("rms_norm", Refuses("the normalised operand is float32"), "(mul x:bf16[t,8] (rsqrt (add (mean_last (square x)) (cast:bf16 1e-6))))"),
        ("rms_norm", Refuses("eps is a constant"), "(mul x:f32[t,8] (rsqrt (add (mean_last (square x)) e:f32[t,1])))"),
        ("rms_norm", Differs, "(mul x:f32[t,8] (rsqrt (add (mean:0 (square x)) 1e-6)))"),
        ("rms_norm", Differs, "(mul y:f32[t,8] (rsqrt (add (mean_last (square x:f32[t,8])) 1e-6)))"),
        ("rms_norm", Differs, "(mul x:f32[t,8] (rsqrt (add (mean_last (square (slice:1:0:4 x))) 1e-6)))"),
        ("rms_norm_divided", Fuses("rms_norm"), "(div x:f32[t,8] (sqrt (add (mean_last (square x)) 1e-6)))"),
        ("rms_norm_divided", Refuses("the normalised operand is float32"), "(div x:bf16[t,8] (sqrt (add (mean_last (square x)) (cast:bf16 1e-6))))"),
        ("rms_norm_divided", Refuses("eps is a constant"), "(div x:f32[t,8] (sqrt (add (mean_last (square x)) e:f32[t,1])))"),
        ("square", Fuses("rms_norm"), "(mul x:f32[t,8] (rsqrt (add (mean_last (mul x x)) 1e-6)))"),
        ("square", Differs, "(mul x:f32[t,8] y:f32[t,8])"),
        ("rsqrt", Fuses("rms_norm"), "(mul x:f32[t,8] (reciprocal (sqrt (add (mean_last (square x)) 1e-6))))"),
        ("rsqrt", Differs, "(sqrt (reciprocal x:f32[t,8]))"),
        ("mean", Fuses("rms_norm"), "(mul x:f32[t,8] (rsqrt (add (div (sum_last (square x)) 8) 1e-6)))"),
        ("mean", Refuses("the divisor is the length of the last axis"), "(div (sum_last x:f32[t,8]) 7)"),
        ("layer_norm", Fuses("layer_norm"), "d = (sub x:f32[t,8] (mean_last x)); (mul d (rsqrt (add (mean_last (square d)) 1e-6)))"),
        ("layer_norm", Refuses("the normalised operand is float32"), "d = (sub x:bf16[t,8] (mean_last x)); (mul d (rsqrt (add (mean_last (square d)) (cast:bf16 1e-6))))"),
        ("layer_norm", Refuses("eps is a constant"), "d = (sub x:f32[t,8] (mean_last x)); (mul d (rsqrt (add (mean_last (square d)) e:f32[t,1])))"),
        ("layer_norm", Differs, "d = (sub x:f32[t,8] (mean_last x)); (mul d (rsqrt (add (mean_last (square x)) 1e-6)))"),
        ("layer_norm_divided", Fuses("layer_norm"), "d = (sub x:f32[t,8] (mean_last x)); (div d (sqrt (add (mean_last (square d)) 1e-6)))"),
        ("layer_norm_divided", Refuses("the normalised operand is float32"), "d = (sub x:bf16[t,8] (mean_last x)); (div d (sqrt (add (mean_last (square d)) (cast:bf16 1e-6))))"),
        ("layer_norm_divided", Refuses("eps is a constant"), "d = (sub x:f32[t,8] (mean_last x)); (div d (sqrt (add (mean_last (square d)) e:f32[t,1])))"),
        ("layer_norm_weight", Fuses("layer_norm"), "(mul (layer_norm:1e-6 x:f32[t,8]) w:f32[8])"),
        ("layer_norm_weight", Refuses("the normalised operand is float32"), "(mul (layer_norm:1e-6 x:bf16[t,8]) w:bf16[8])"),
        ("layer_norm_weight", Refuses("the weight is float32"), "(mul (layer_norm:1e-6 x:bf16[t,8]) w:bf16[8])"),
        ("layer_norm_weight", Refuses("the weight is a vector along the last axis"), "(mul (layer_norm:1e-6 x:f32[t,8]) w:f32[t,8])"),
        ("layer_norm_bias", Fuses("layer_norm"), "(add (layer_norm:1e-6 x:f32[t,8] w:f32[8]) b:f32[8])"),
        ("layer_norm_bias", Refuses("the normalised operand is float32"), "(add (layer_norm:1e-6 x:bf16[t,8] w:bf16[8]) b:bf16[8])"),
        ("layer_norm_bias", Refuses("the bias is float32"), "(add (layer_norm:1e-6 x:bf16[t,8] w:bf16[8]) b:bf16[8])"),
        ("layer_norm_bias", Refuses("the bias is a vector along the last axis"), "(add (layer_norm:1e-6 x:f32[t,8] w:f32[8]) b:f32[t,8])"),
        ("layer_norm_narrow", Fuses("layer_norm"), "(cast:bf16 (layer_norm:1e-6 (cast:f32 x:bf16[t,8]) w:f32[8] b:f32[8]))"),
        ("layer_norm_narrow", Refuses("the result has the operand's dtype"), "(cast:f16 (layer_norm:1e-6 (cast:f32 x:bf16[t,8]) w:f32[8] b:f32[8]))"),
        ("layer_norm_narrow_weightless", Fuses("layer_norm"), "(cast:bf16 (layer_norm:1e-6 (cast:f32 x:bf16[t,8])))"),
        ("layer_norm_narrow_weightless", Refuses("the result has the operand's dtype"), "(cast:f16 (layer_norm:1e-6 (cast:f32 x:bf16[t,8])))"),
        ("add_layer_norm", Fuses("add_layer_norm"), "s = (add a:bf16[t,8] b:bf16[t,8]); (layer_norm:1e-6 s w:bf16[8] v:bf16[8]); s"),
        ("add_layer_norm", Fuses("add_layer_norm"), "(layer_norm:1e-6 (add a:f32[t,8] b:f32[t,8]) w:f32[8] v:f32[8])"),
        ("add_layer_norm", Refuses("both addends have one type"), "(layer_norm:1e-6 (add a:bf16[t,8] b:bf16[8]) w:bf16[8] v:bf16[8])"),
        ("add_layer_norm", Differs, "(layer_norm:1e-6 (sub a:bf16[t,8] b:bf16[t,8]) w:bf16[8] v:bf16[8])"),
        ("add_layer_norm_unshifted", Fuses("add_layer_norm"), "(layer_norm:1e-6 (add a:bf16[t,8] b:bf16[t,8]) w:f32[8])"),
        ("add_layer_norm_unshifted", Refuses("both addends have one type"), "(layer_norm:1e-6 (add a:bf16[t,1] b:bf16[t,8]) w:bf16[8])"),
        ("add_layer_norm_weightless", Fuses("add_layer_norm"), "s = (add a:f16[t,8] b:f16[t,8]); (layer_norm:1e-6 s); s"),
        ("add_layer_norm_weightless", Refuses("both addends have one type"), "(layer_norm:1e-6 (add a:bf16[t,8] b:bf16[8]))"),
        ("rms_norm_weight", Fuses("rms_norm"), "(mul (rms_norm:1e-6 x:f32[t,8]) w:f32[8])"),
        ("rms_norm_weight", Refuses("the normalised operand is float32"), "(mul (rms_norm:1e-6 x:bf16[t,8]) w:bf16[8])"),
        ("rms_norm_weight", Refuses("the weight is float32"), "(mul (rms_norm:1e-6 x:bf16[t,8]) w:bf16[8])"),
        ("rms_norm_weight", Refuses("the weight is a vector along the last axis"), "(mul (rms_norm:1e-6 x:f32[t,8]) w:f32[t,8])"),
        ("rms_norm_narrow_float32_weight", Fuses("rms_norm"), "(cast:bf16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]) w:f32[8]))"),
        ("rms_norm_narrow_float32_weight", Refuses("the result has the operand's dtype"), "(cast:f16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]) w:f32[8]))"),
        ("rms_norm_narrow_float32_weight", Refuses("the weight is float32"), "(cast:bf16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]) w:bf16[8]))"),
        ("rms_norm_narrow", Fuses("rms_norm"), "(mul (cast:bf16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]))) w:bf16[8])"),
        ("rms_norm_narrow", Refuses("the norm is rounded to the operand's dtype"), "(mul (cast:f16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]))) w:f16[8])"),
        ("rms_norm_narrow", Refuses("the weight has the operand's dtype"), "(mul (cast:f16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]))) w:f16[8])"),
        ("rms_norm_narrow", Refuses("the weight is a vector along the last axis"), "(mul (cast:bf16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8]))) w:bf16[t,8])"),
        ("rms_norm_narrow_weightless", Fuses("rms_norm"), "(cast:bf16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8])))"),
        ("rms_norm_narrow_weightless", Refuses("the result has the operand's dtype"), "(cast:f16 (rms_norm:1e-6 (cast:f32 x:bf16[t,8])))"),
        ("add_rms_norm", Fuses("add_rms_norm"), "s = (add a:bf16[t,8] b:bf16[t,8]); (rms_norm:1e-6 s w:bf16[8]); s"),
        ("add_rms_norm", Refuses("both addends have one type"), "(rms_norm:1e-6 (add a:bf16[t,8] b:bf16[8]) w:bf16[8])"),
        ("add_rms_norm", Refuses("the weight is a vector along the last axis"), "(rms_norm:1e-6 (add a:bf16[t,1] b:bf16[t,8]) w:bf16[8])"),
        ("add_rms_norm_weightless", Fuses("add_rms_norm"), "(rms_norm:1e-6 (add a:bf16[t,8] b:bf16[t,8]))"),
        ("add_rms_norm_weightless", Refuses("both addends have one type"), "(rms_norm:1e-6 (add a:bf16[t,8] b:bf16[8]))"),
        ("add_rms_norm_narrow", Fuses("add_rms_norm"), "s = (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])); (mul (cast:bf16 (rms_norm:1e-6 s)) w:bf16[8]); (cast:bf16 s)"),
        ("add_rms_norm_narrow", Refuses("both addends have one type"), "(mul (cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:f16[t,8])))) w:bf16[8])"),
        ("add_rms_norm_narrow", Refuses("the norm is rounded to the addends' dtype"), "(mul (cast:f16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])))) w:f16[8])"),
        ("add_rms_norm_narrow", Refuses("the weight has the addends' dtype"), "(mul (cast:f16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])))) w:f16[8])"),
        ("add_rms_norm_narrow", Refuses("the weight is a vector along the last axis"), "(mul (cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])))) w:bf16[t,8])"),
        ("add_rms_norm_narrow_float32_weight", Fuses("add_rms_norm"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])) w:f32[8]))"),
        ("add_rms_norm_narrow_float32_weight", Refuses("both addends have one type"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:f16[t,8])) w:f32[8]))"),
        ("add_rms_norm_narrow_float32_weight", Refuses("the result has the addends' dtype"), "(cast:f16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])) w:f32[8]))"),
        ("add_rms_norm_narrow_float32_weight", Refuses("the weight is float32"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8])) w:bf16[8]))"),
        ("add_rms_norm_narrow_float32_weight", Refuses("the weight is a vector along the last axis"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,1]) (cast:f32 b:bf16[t,8])) w:f32[8]))"),
        ("add_rms_norm_narrow_weightless", Fuses("add_rms_norm"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8]))))"),
        ("add_rms_norm_narrow_weightless", Refuses("both addends have one type"), "(cast:bf16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:f16[t,8]))))"),
        ("add_rms_norm_narrow_weightless", Refuses("the result has the addends' dtype"), "(cast:f16 (rms_norm:1e-6 (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8]))))"),
    ];
}
