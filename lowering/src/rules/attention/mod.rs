// SPDX-License-Identifier: Apache-2.0
//! Attention written out by hand (Vaswani et al. 2017; MLX `fast.scaled_dot_product_attention`).
//!
//! ```text
//! y = softmax(mask(cap * tanh(q @ k^T * scale / cap))) @ v
//! ```
//! The rules gather what makes the scores in [`Op::AttentionScores`], one step of the formula each,
//! then the softmax and the values around it, then the repetition of keys and values that heads share.

mod guards;
mod right;

use super::{Build, Match, Numerics, Rule};
use crate::ir::{AttentionMask, Float, Op, Scores};
use guards::*;
use right::*;

/// Scores, then the scale.
macro_rules! scores_scaled {
    ($name:literal, $left:literal, $by:expr, $($guard:expr),*) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[FACTOR, BARE, $($guard),*],
            right: |m| rescaled(m, ["?q", "?k"], $by, [class(m, "?q"), class(m, "?k")]),
        }
    };
}

/// The scale on an operand `?x`, which becomes `?y`, then the scores.
macro_rules! operand_scaled {
    ($name:literal, $left:literal, $found:expr, $by:expr, $operands:expr, $($guard:expr),*) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[FACTOR, $($guard),*],
            right: |m| {
                let operands: fn(&Match) -> Option<[Build; 2]> = $operands;
                rescaled(m, $found, $by, operands(m)?)
            },
        }
    };
}

/// `softmax(scores) @ v`; the rounded form has its softmax in float32.
macro_rules! attention {
    ($name:literal, $left:literal, $operands:expr, $sinks:expr, $($guard:expr),*) => {
        Rule {
            name: $name,
            numerics: Numerics::Improves,
            left: $left,
            guards: &[VALUES, $($guard),*],
            right: |m| {
                let sinks: Option<fn(&Match) -> Option<Build>> = $sinks;
                match sinks {
                    Some(sinks) => attend(m, $operands, Some(sinks(m)?)),
                    None => attend(m, $operands, None),
                }
            },
        }
    };
}

/// Keys and values repeated for the heads that share them.
macro_rules! grouped {
    ($name:literal, $left:literal, $rest:expr) => {
        Rule {
            name: $name,
            numerics: Numerics::Exact,
            left: $left,
            guards: &[SHARED],
            right: |m| shared(m, $rest),
        }
    };
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    // reshape(x @ y)  =>  reshape(x) @ reshape(y), where the reshape splits the batch
    Rule {
        name: "matmul_of_split_batches",
        numerics: Numerics::Exact,
        left: "(reshape (matmul ?x ?y))",
        guards: &[MATRICES],
        right: |m| {
            let [x, y] = split(m)?;
            let reshape = |name, shape| m.node(Op::Reshape { shape }, &[name]);
            Some(Build::Node(Op::Matmul, vec![reshape("?x", x), reshape("?y", y)]).into())
        },
    },
    // q @ k  =>  scores(q, k^T)
    Rule {
        name: "attention_scores",
        numerics: Numerics::Exact,
        left: "(matmul ?q ?k)",
        guards: &[BATCHED],
        right: |m| {
            let scores = Scores { scale: Float::new(1.0), soft_cap: None, mask: AttentionMask::None };
            let keys = m.node(swap(m.type_of("?k")?.rank()), &["?k"]);
            Some(Build::Node(Op::AttentionScores(scores), vec![class(m, "?q"), keys]).into())
        },
    },
    // scores(q, k) * c  =>  scores(q, k) with that in the scale
    scores_scaled!("scores_multiplied", "(mul ?s:(attention_scores ?q ?k) ?c)", multiply,),
    scores_scaled!("scores_multiplied_rounded", "(cast (mul (cast_f32 ?s:(attention_scores ?q ?k)) ?c))", multiply, SAME_TYPE),
    scores_scaled!("scores_divided", "(div ?s:(attention_scores ?q ?k) ?c)", divide,),
    scores_scaled!("scores_divided_rounded", "(cast (div (cast_f32 ?s:(attention_scores ?q ?k)) ?c))", divide, SAME_TYPE),
    operand_scaled!("queries_multiplied", "?s:(attention_scores ?y:(mul ?x ?c) ?k)", ["?y", "?k"], multiply, query,),
    operand_scaled!("queries_multiplied_rounded", "?s:(attention_scores ?y:(cast (mul (cast_f32 ?x) ?c)) ?k)", ["?y", "?k"], multiply, query, SAME_OPERAND_TYPE),
    operand_scaled!("queries_divided", "?s:(attention_scores ?y:(div ?x ?c) ?k)", ["?y", "?k"], divide, query,),
    operand_scaled!("queries_divided_rounded", "?s:(attention_scores ?y:(cast (div (cast_f32 ?x) ?c)) ?k)", ["?y", "?k"], divide, query, SAME_OPERAND_TYPE),
    operand_scaled!("keys_multiplied", "?s:(attention_scores ?q ?y:(mul ?x ?c))", ["?q", "?y"], multiply, key,),
    operand_scaled!("keys_multiplied_rounded", "?s:(attention_scores ?q ?y:(cast (mul (cast_f32 ?x) ?c)))", ["?q", "?y"], multiply, key, SAME_OPERAND_TYPE),
    operand_scaled!("transposed_keys_multiplied", "?s:(attention_scores ?q ?t:(transpose ?y:(mul ?x ?c)))", ["?q", "?t"], multiply, transposed_key,),
    operand_scaled!("transposed_keys_multiplied_rounded", "?s:(attention_scores ?q ?t:(transpose ?y:(cast (mul (cast_f32 ?x) ?c))))", ["?q", "?t"], multiply, transposed_key, SAME_OPERAND_TYPE),
    // tanh(scores(q, k) / c) * c  =>  scores(q, k) with that cap
    Rule {
        name: "scores_capped",
        numerics: Numerics::Improves,
        left: "(mul (tanh (div ?s:(attention_scores ?q ?k) ?c)) ?d)",
        guards: &[CAP, BARE],
        right: capped,
    },
    Rule {
        name: "scores_capped_rounded",
        numerics: Numerics::Improves,
        left: "(cast (mul (cast_f32 (tanh (cast (div (cast_f32 ?s:(attention_scores ?q ?k)) ?c)))) ?d))",
        guards: &[CAP, BARE, SAME_TYPE],
        right: capped,
    },
    // scores(q, k) + m  =>  scores(q, k, m)
    Rule {
        name: "scores_masked",
        numerics: Numerics::Improves,
        left: "(add ?s:(attention_scores ?q ?k) ?m)",
        guards: &[UNMASKED, SAME_TYPE],
        right: |m| masked(m, AttentionMask::Additive, class(m, "?m")),
    },
    // where(b, scores(q, k), f)  =>  scores(q, k, b)
    Rule {
        name: "scores_shown",
        numerics: Numerics::Improves,
        left: "(where ?b ?s:(attention_scores ?q ?k) ?f)",
        guards: &[UNMASKED, FILL, SAME_TYPE],
        right: |m| hidden(m, false),
    },
    // where(b, f, scores(q, k))  =>  scores(q, k, not b)
    Rule {
        name: "scores_hidden",
        numerics: Numerics::Improves,
        left: "(where ?b ?f ?s:(attention_scores ?q ?k))",
        guards: &[UNMASKED, FILL, SAME_TYPE],
        right: |m| hidden(m, true),
    },
    // softmax(x - max(x))  =>  softmax(x)
    Rule {
        name: "softmax_shifted",
        numerics: Numerics::Improves,
        left: "(softmax_last (sub ?x (max_last ?x)))",
        guards: &[],
        right: |m| Some(m.node(Op::Softmax { axis: m.type_of("?x")?.rank() - 1 }, &["?x"]).into()),
    },
    // softmax(scores(q, k)) @ v  =>  attention(q, k, v)
    attention!("attention", "(matmul (softmax_last ?s:(attention_scores ?q ?k)) ?v)", &["?q", "?k"], None,),
    attention!("attention_rounded", "(matmul (cast (softmax_last (cast_f32 ?s:(attention_scores ?q ?k)))) ?v)", &["?q", "?k"], None, ROUNDED),
    attention!("attention_masked", "(matmul (softmax_last ?s:(attention_scores ?q ?k ?m)) ?v)", &["?q", "?k", "?m"], None,),
    attention!("attention_masked_rounded", "(matmul (cast (softmax_last (cast_f32 ?s:(attention_scores ?q ?k ?m)))) ?v)", &["?q", "?k", "?m"], None, ROUNDED),
    // softmax([scores(q, k), sinks])[.., :-1] @ v  =>  attention(q, k, v, sinks)
    attention!("attention_sinks", "(matmul (all_but_last (softmax_last (concat_last ?s:(attention_scores ?q ?k) ?z))) ?v)", &["?q", "?k"], Some(sinks), SINKS),
    attention!("attention_sinks_rounded", "(matmul (cast (all_but_last (softmax_last (cast_f32 (concat_last ?s:(attention_scores ?q ?k) ?z))))) ?v)", &["?q", "?k"], Some(sinks), SINKS, ROUNDED),
    attention!("attention_masked_sinks", "(matmul (all_but_last (softmax_last (concat_last ?s:(attention_scores ?q ?k ?m) ?z))) ?v)", &["?q", "?k", "?m"], Some(sinks), SINKS),
    attention!("attention_masked_sinks_rounded", "(matmul (cast (all_but_last (softmax_last (cast_f32 (concat_last ?s:(attention_scores ?q ?k ?m) ?z))))) ?v)", &["?q", "?k", "?m"], Some(sinks), SINKS, ROUNDED),
    // attention(q, repeat(k), repeat(v))  =>  attention(q, k, v)
    grouped!("attention_grouped", "(scaled_dot_product_attention ?q ?a:(reshape ?n:(broadcast (reshape ?k))) ?e:(reshape ?w:(broadcast (reshape ?v))))", &[]),
    grouped!("attention_grouped_masked", "(scaled_dot_product_attention ?q ?a:(reshape ?n:(broadcast (reshape ?k))) ?e:(reshape ?w:(broadcast (reshape ?v))) ?m)", &["?m"]),
    grouped!("attention_grouped_masked_sinks", "(scaled_dot_product_attention ?q ?a:(reshape ?n:(broadcast (reshape ?k))) ?e:(reshape ?w:(broadcast (reshape ?v))) ?m ?z)", &["?m", "?z"]),
];

#[cfg(test)]
pub(super) mod tests {
    use crate::rules::notation::Case;
    use crate::rules::notation::Expect::*;

    const ATTENTION: &str = "scaled_dot_product_attention";

    #[rustfmt::skip]
    pub const CASES: &[Case] = &[
        ("matmul_of_split_batches", Fuses("matmul"), "(reshape:2,3,t,t (matmul (reshape:6,t,4 q:f32[2,3,t,4]) (reshape:6,4,t k:f32[2,3,4,t])))"),
        ("matmul_of_split_batches", Refuses("the reshape splits the batch of matrices only"), "(reshape:2,t,12 (matmul x:f32[2,t,4] y:f32[2,4,12]))"),
        ("matmul_of_split_batches", Refuses("the reshape splits the batch of matrices only"), "(reshape:2,3,5,7 (matmul x:f32[6,7,4] y:f32[6,4,5]))"),
        ("attention_scores", Fuses(ATTENTION), "(matmul (softmax_last (matmul q:f32[2,3,t,4] (transpose:0,1,3,2 k:f32[2,3,t,4]))) v:f32[2,3,t,4])"),
        ("attention_scores", Refuses("both operands are batches of matrices of the same sizes"), "(matmul x:f32[2,3,t,4] w:f32[4,6])"),
        ("attention_scores", Refuses("both operands are batches of matrices of the same sizes"), "(matmul x:f32[2,3,t,4] w:f32[1,3,4,6])"),
        ("scores_multiplied", Fuses("attention_scores"), "(mul (attention_scores:1 q:f32[2,3,t,4] k:f32[2,3,t,4]) 0.5)"),
        ("scores_multiplied", Refuses("the factor is a constant"), "(mul (attention_scores:1 q:f32[2,3,t,4] k:f32[2,3,t,4]) c:f32[1])"),
        ("scores_multiplied", Refuses("the scores are neither capped nor masked"), "(mul (attention_scores:1,cap:5 q:f32[2,3,t,4] k:f32[2,3,t,4]) 0.5)"),
        ("scores_multiplied_rounded", Fuses("attention_scores"), "(cast:bf16 (mul (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 0.3))"),
        ("scores_multiplied_rounded", Refuses("the factor is a constant"), "(cast:bf16 (mul (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) c:f32[1]))"),
        ("scores_multiplied_rounded", Refuses("the scores are neither capped nor masked"), "(cast:bf16 (mul (cast:f32 (attention_scores:1,cap:5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 0.3))"),
        ("scores_multiplied_rounded", Refuses("the result has the scores' type"), "(cast:f16 (mul (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 0.3))"),
        ("scores_divided", Fuses("attention_scores"), "(div (attention_scores:1 q:f32[2,3,t,4] k:f32[2,3,t,4]) 8)"),
        ("scores_divided", Differs, "(div 8 (attention_scores:1 q:f32[2,3,t,4] k:f32[2,3,t,4]))"),
        ("scores_divided", Refuses("the factor is a constant"), "(div (attention_scores:1 q:f32[2,3,t,4] k:f32[2,3,t,4]) c:f32[1])"),
        ("scores_divided", Refuses("the scores are neither capped nor masked"), "(div (attention_scores:1,cap:5 q:f32[2,3,t,4] k:f32[2,3,t,4]) 8)"),
        ("scores_divided_rounded", Fuses("attention_scores"), "(cast:bf16 (div (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 11.3))"),
        ("scores_divided_rounded", Refuses("the factor is a constant"), "(cast:bf16 (div (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) c:f32[1]))"),
        ("scores_divided_rounded", Refuses("the scores are neither capped nor masked"), "(cast:bf16 (div (cast:f32 (attention_scores:1,cap:5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 11.3))"),
        ("scores_divided_rounded", Refuses("the result has the scores' type"), "(cast:f16 (div (cast:f32 (attention_scores:1 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 11.3))"),
        ("queries_multiplied", Fuses("attention_scores"), "(attention_scores:1 (mul q:f32[2,3,t,4] 0.5) k:f32[2,3,t,4])"),
        ("queries_multiplied", Refuses("the factor is a constant"), "(attention_scores:1 (mul q:f32[2,3,t,4] c:f32[1]) k:f32[2,3,t,4])"),
        ("queries_multiplied_rounded", Fuses("attention_scores"), "(attention_scores:1 (cast:bf16 (mul (cast:f32 q:bf16[2,3,t,4]) 0.3)) k:bf16[2,3,t,4])"),
        ("queries_multiplied_rounded", Refuses("the factor is a constant"), "(attention_scores:1 (cast:bf16 (mul (cast:f32 q:bf16[2,3,t,4]) c:f32[1])) k:bf16[2,3,t,4])"),
        ("queries_multiplied_rounded", Refuses("the scaled operand keeps its dtype"), "(attention_scores:1 (cast:f16 (mul (cast:f32 q:bf16[2,3,t,4]) 0.3)) k:f16[2,3,t,4])"),
        ("queries_divided", Fuses("attention_scores"), "(attention_scores:1 (div q:f32[2,3,t,4] 8) k:f32[2,3,t,4])"),
        ("queries_divided", Refuses("the factor is a constant"), "(attention_scores:1 (div q:f32[2,3,t,4] c:f32[1]) k:f32[2,3,t,4])"),
        ("queries_divided_rounded", Fuses("attention_scores"), "(attention_scores:1 (cast:bf16 (div (cast:f32 q:bf16[2,3,t,4]) 11.3)) k:bf16[2,3,t,4])"),
        ("queries_divided_rounded", Refuses("the factor is a constant"), "(attention_scores:1 (cast:bf16 (div (cast:f32 q:bf16[2,3,t,4]) c:f32[1])) k:bf16[2,3,t,4])"),
        ("queries_divided_rounded", Refuses("the scaled operand keeps its dtype"), "(attention_scores:1 (cast:f16 (div (cast:f32 q:bf16[2,3,t,4]) 11.3)) k:f16[2,3,t,4])"),
        ("keys_multiplied", Fuses("attention_scores"), "(attention_scores:1 q:f32[2,3,t,4] (mul k:f32[2,3,t,4] 0.5))"),
        ("keys_multiplied", Refuses("the factor is a constant"), "(attention_scores:1 q:f32[2,3,t,4] (mul k:f32[2,3,t,4] c:f32[1]))"),
        ("keys_multiplied_rounded", Fuses("attention_scores"), "(attention_scores:1 q:bf16[2,3,t,4] (cast:bf16 (mul (cast:f32 k:bf16[2,3,t,4]) 0.3)))"),
        ("keys_multiplied_rounded", Refuses("the factor is a constant"), "(attention_scores:1 q:bf16[2,3,t,4] (cast:bf16 (mul (cast:f32 k:bf16[2,3,t,4]) c:f32[1])))"),
        ("keys_multiplied_rounded", Refuses("the scaled operand keeps its dtype"), "(attention_scores:1 q:f16[2,3,t,4] (cast:f16 (mul (cast:f32 k:bf16[2,3,t,4]) 0.3)))"),
        ("transposed_keys_multiplied", Fuses("attention_scores"), "(attention_scores:1 q:f32[2,3,t,4] (transpose:0,1,3,2 (mul k:f32[2,3,4,t] 0.5)))"),
        ("transposed_keys_multiplied", Refuses("the factor is a constant"), "(attention_scores:1 q:f32[2,3,t,4] (transpose:0,1,3,2 (mul k:f32[2,3,4,t] c:f32[1])))"),
        ("transposed_keys_multiplied_rounded", Fuses("attention_scores"), "(attention_scores:1 q:bf16[2,3,t,4] (transpose:0,1,3,2 (cast:bf16 (mul (cast:f32 k:bf16[2,3,4,t]) 0.3))))"),
        ("transposed_keys_multiplied_rounded", Refuses("the factor is a constant"), "(attention_scores:1 q:bf16[2,3,t,4] (transpose:0,1,3,2 (cast:bf16 (mul (cast:f32 k:bf16[2,3,4,t]) c:f32[1]))))"),
        ("transposed_keys_multiplied_rounded", Refuses("the scaled operand keeps its dtype"), "(attention_scores:1 q:f16[2,3,t,4] (transpose:0,1,3,2 (cast:f16 (mul (cast:f32 k:bf16[2,3,4,t]) 0.3))))"),
        ("scores_capped", Fuses("attention_scores"), "(mul (tanh (div (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) 50)) 50)"),
        ("scores_capped", Refuses("scores are divided and multiplied by one constant"), "(mul (tanh (div (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) 50)) 30)"),
        ("scores_capped", Refuses("the scores are neither capped nor masked"), "(mul (tanh (div (attention_scores:0.5,causal q:f32[2,3,t,4] k:f32[2,3,t,4]) 50)) 50)"),
        ("scores_capped_rounded", Fuses("attention_scores"), "(cast:bf16 (mul (cast:f32 (tanh (cast:bf16 (div (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 30.3)))) 30.3))"),
        ("scores_capped_rounded", Refuses("scores are divided and multiplied by one constant"), "(cast:bf16 (mul (cast:f32 (tanh (cast:bf16 (div (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 30.3)))) 30.2))"),
        ("scores_capped_rounded", Refuses("the scores are neither capped nor masked"), "(cast:bf16 (mul (cast:f32 (tanh (cast:bf16 (div (cast:f32 (attention_scores:0.5,cap:2 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 30.3)))) 30.3))"),
        ("scores_capped_rounded", Refuses("the result has the scores' type"), "(cast:f16 (mul (cast:f32 (tanh (cast:bf16 (div (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])) 30.3)))) 30.3))"),
        ("scores_masked", Fuses("attention_scores"), "(add (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) m:f32[2,1,t,t])"),
        ("scores_masked", Refuses("the scores are not masked"), "(add (attention_scores:0.5,causal q:f32[2,3,t,4] k:f32[2,3,t,4]) m:f32[2,1,t,t])"),
        ("scores_masked", Refuses("the result has the scores' type"), "(add (attention_scores:0.5 q:f32[1,3,t,4] k:f32[1,3,t,4]) m:f32[2,3,t,t])"),
        ("scores_shown", Fuses("attention_scores"), "(where b:bool[t,t] (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) -1e9)"),
        ("scores_shown", Refuses("the scores are not masked"), "(where b:bool[t,t] (attention_scores:0.5,causal q:f32[2,3,t,4] k:f32[2,3,t,4]) -1e9)"),
        ("scores_shown", Refuses("hidden scores are replaced by a constant"), "(where b:bool[t,t] (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) f:f32[t,t])"),
        ("scores_shown", Refuses("the result has the scores' type"), "(where b:bool[2,1,t,t] (attention_scores:0.5 q:f32[1,3,t,4] k:f32[1,3,t,4]) -1e9)"),
        ("scores_hidden", Fuses("attention_scores"), "(where b:bool[t,t] -1e9 (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]))"),
        ("scores_hidden", Refuses("the scores are not masked"), "(where b:bool[t,t] -1e9 (attention_scores:0.5,causal q:f32[2,3,t,4] k:f32[2,3,t,4]))"),
        ("scores_hidden", Refuses("hidden scores are replaced by a constant"), "(where b:bool[t,t] f:f32[t,t] (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]))"),
        ("scores_hidden", Refuses("the result has the scores' type"), "(where b:bool[2,1,t,t] -1e9 (attention_scores:0.5 q:f32[1,3,t,4] k:f32[1,3,t,4]))"),
        ("softmax_shifted", Fuses("softmax"), "(softmax_last (sub x:bf16[t,4] (max_last x)))"),
        ("softmax_shifted", Differs, "(softmax_last (sub x:bf16[t,4] (max_last y:bf16[t,4])))"),
        ("attention", Fuses(ATTENTION), "(matmul (softmax_last (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4])) v:f32[2,3,t,6])"),
        ("attention", Fuses(ATTENTION), "(matmul (softmax_last (attention_scores:0.5 q:f32[6,t,4] k:f32[6,t,4])) v:f32[6,t,6])"),
        ("attention", Refuses("values are of the keys' batch, heads and number"), "(matmul (softmax_last (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4])) v:f32[t,6])"),
        ("attention", Differs, "(matmul v:f32[2,3,6,t] (softmax_last (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4])))"),
        ("attention_rounded", Fuses(ATTENTION), "(matmul (cast:bf16 (softmax_last (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])))) v:bf16[2,3,t,6])"),
        ("attention_rounded", Refuses("values are of the keys' batch, heads and number"), "(matmul (cast:bf16 (softmax_last (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])))) v:bf16[1,3,t,6])"),
        ("attention_rounded", Refuses("the weights are rounded to the values' dtype"), "(matmul (cast:f16 (softmax_last (cast:f32 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4])))) v:f16[2,3,t,6])"),
        ("attention_masked", Fuses(ATTENTION), "(matmul (softmax_last (attention_scores:0.5,added q:f32[2,3,t,4] k:f32[2,3,t,4] m:f32[2,1,t,t])) v:f32[2,3,t,6])"),
        ("attention_masked", Refuses("values are of the keys' batch, heads and number"), "(matmul (softmax_last (attention_scores:0.5,added q:f32[2,3,t,4] k:f32[2,3,t,4] m:f32[2,1,t,t])) v:f32[t,6])"),
        ("attention_masked_rounded", Fuses(ATTENTION), "(matmul (cast:bf16 (softmax_last (cast:f32 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t])))) v:bf16[2,3,t,6])"),
        ("attention_masked_rounded", Refuses("values are of the keys' batch, heads and number"), "(matmul (cast:bf16 (softmax_last (cast:f32 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t])))) v:bf16[1,3,t,6])"),
        ("attention_masked_rounded", Refuses("the weights are rounded to the values' dtype"), "(matmul (cast:f16 (softmax_last (cast:f32 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t])))) v:f16[2,3,t,6])"),
        ("attention_sinks", Fuses(ATTENTION), "z = (broadcast:2,3,t,1 (reshape:1,3,1,1 s:f32[3])); (matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) z))) v:f32[2,3,t,6])"),
        ("attention_sinks", Refuses("the last score is one number for each head"), "(matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) z:f32[2,3,t,1]))) v:f32[2,3,t,6])"),
        ("attention_sinks", Refuses("values are of the keys' batch, heads and number"), "z = (broadcast:2,3,t,1 s:f32[1,3,1,1]); (matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5 q:f32[2,3,t,4] k:f32[2,3,t,4]) z))) v:f32[1,3,t,6])"),
        ("attention_sinks_rounded", Fuses(ATTENTION), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4]) z))))) v:bf16[2,3,t,6])"),
        ("attention_sinks_rounded", Refuses("values are of the keys' batch, heads and number"), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4]) z))))) v:bf16[1,3,t,6])"),
        ("attention_sinks_rounded", Refuses("the last score is one number for each head"), "(matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4]) z:bf16[2,3,t,1]))))) v:bf16[2,3,t,6])"),
        ("attention_sinks_rounded", Refuses("the weights are rounded to the values' dtype"), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:f16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5 q:bf16[2,3,t,4] k:bf16[2,3,t,4]) z))))) v:f16[2,3,t,6])"),
        ("attention_masked_sinks", Fuses(ATTENTION), "z = (broadcast:2,3,t,1 s:f32[1,3,1,1]); (matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5,added q:f32[2,3,t,4] k:f32[2,3,t,4] m:f32[t,t]) z))) v:f32[2,3,t,6])"),
        ("attention_masked_sinks", Refuses("the last score is one number for each head"), "(matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5,added q:f32[2,3,t,4] k:f32[2,3,t,4] m:f32[t,t]) z:f32[2,3,t,1]))) v:f32[2,3,t,6])"),
        ("attention_masked_sinks", Refuses("values are of the keys' batch, heads and number"), "z = (broadcast:2,3,t,1 s:f32[1,3,1,1]); (matmul (slice:3:0:t (softmax_last (concat:3 (attention_scores:0.5,added q:f32[2,3,t,4] k:f32[2,3,t,4] m:f32[t,t]) z))) v:f32[1,3,t,6])"),
        ("attention_masked_sinks_rounded", Fuses(ATTENTION), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t]) z))))) v:bf16[2,3,t,6])"),
        ("attention_masked_sinks_rounded", Refuses("values are of the keys' batch, heads and number"), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t]) z))))) v:bf16[1,3,t,6])"),
        ("attention_masked_sinks_rounded", Refuses("the last score is one number for each head"), "(matmul (cast:bf16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t]) z:bf16[2,3,t,1]))))) v:bf16[2,3,t,6])"),
        ("attention_masked_sinks_rounded", Refuses("the weights are rounded to the values' dtype"), "z = (broadcast:2,3,t,1 s:bf16[1,3,1,1]); (matmul (cast:f16 (slice:3:0:t (softmax_last (cast:f32 (concat:3 (attention_scores:0.5,added q:bf16[2,3,t,4] k:bf16[2,3,t,4] m:bf16[t,t]) z))))) v:f16[2,3,t,6])"),
        ("attention_grouped", Fuses(ATTENTION), "a = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5 q:f32[2,6,t,4] a e)"),
        // Heads that lie apart share keys.
        ("attention_grouped", Refuses("neighbouring heads share keys and values"), "a = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5 q:f32[2,6,t,4] a e)"),
        ("attention_grouped_masked", Fuses(ATTENTION), "a = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5,added q:f32[2,6,t,4] a e m:f32[t,t])"),
        ("attention_grouped_masked", Refuses("neighbouring heads share keys and values"), "a = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5,added q:f32[2,6,t,4] a e m:f32[t,t])"),
        ("attention_grouped_masked_sinks", Fuses(ATTENTION), "a = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,3,2,t,4 (reshape:2,3,1,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5,added,sinks q:f32[2,6,t,4] a e m:f32[t,t] s:f32[6])"),
        ("attention_grouped_masked_sinks", Refuses("neighbouring heads share keys and values"), "a = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 k:f32[2,3,t,4]))); e = (reshape:2,6,t,4 (broadcast:2,2,3,t,4 (reshape:2,1,3,t,4 v:f32[2,3,t,4]))); (scaled_dot_product_attention:0.5,added,sinks q:f32[2,6,t,4] a e m:f32[t,t] s:f32[6])"),
    ];
}
