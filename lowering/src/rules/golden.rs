// SPDX-License-Identifier: Apache-2.0
//! A small region of each family, as captured and as fused, to review by eye: `snapshots`.
//!
//! `INSTA_UPDATE=always cargo test -p lowering golden` writes the snapshots anew.

use super::notation::parse;
use crate::dump::{Format, imported, write};
use crate::rewrite::rewrite;

fn golden(family: &str, text: &str) {
    let captured = parse(text);
    let fused = rewrite(&captured).expect("a region that saturates").graph;
    let listings = [imported("captured", &captured), imported("fused", &fused)];
    let text = write(&listings, Format::Text).expect("text");
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(family, text);
    });
}

/// A residual sum and the norm of it, as vLLM decomposes `fused_add_rms_norm` in bfloat16.
#[test]
fn norm() {
    golden(
        "norm",
        "s = (add (cast:f32 a:bf16[t,8]) (cast:f32 b:bf16[t,8]));
         (mul (cast:bf16 (mul s (rsqrt (add (mean_last (square s)) 1e-6)))) w:bf16[8]);
         (cast:bf16 s)",
    );
}

/// vLLM's NeoX rotation of queries.
#[test]
fn rope() {
    golden(
        "rope",
        "c = (reshape:t,1,2 cos:bf16[t,2]); s = (reshape:t,1,2 sin:bf16[t,2]);
         q = (reshape:t,3,4 h:bf16[t,12]); x1 = (slice:2:0:2 q); x2 = (slice:2:2:4 q);
         (reshape:t,12 (concat:2 (sub (mul x1 c) (mul x2 s)) (add (mul x2 c) (mul x1 s))))",
    );
}

/// Attention written out: scaled scores, a mask that is added, a softmax.
#[test]
fn attention() {
    golden(
        "attention",
        "s = (mul (matmul q:f32[2,4,t,8] (transpose:0,1,3,2 k:f32[2,4,t,8])) 0.5);
         (matmul (softmax_last (add s mask:f32[2,1,t,t])) v:f32[2,4,t,8])",
    );
}

/// A gated MLP with merged gate and up projections.
#[test]
fn mlp() {
    golden(
        "mlp",
        "y = (matmul x:bf16[t,4] gate_up:bf16[4,16]);
         (matmul (mul (silu (slice:1:0:8 y)) (slice:1:8:16 y)) down:bf16[8,4])",
    );
}

/// A projection with a bias.
#[test]
fn linear() {
    golden("linear", "(add (matmul x:bf16[t,4] w:bf16[4,6]) b:bf16[6])");
}

/// Rows of a table by int64 indices, scaled.
#[test]
fn embedding() {
    golden(
        "embedding",
        "(mul (take:0 table:bf16[5,4] (cast:i64 ids:i32[t])) scale:bf16[1])",
    );
}

/// Logits with a soft cap in float32.
#[test]
fn logits() {
    golden(
        "logits",
        "(mul (tanh (div (cast:f32 (matmul x:bf16[t,4] w:bf16[4,6])) 30)) 30)",
    );
}

/// Movements that undo each other.
#[test]
fn shape() {
    golden(
        "shape",
        "(reshape:t,6 (transpose:1,0,2 (transpose:1,0,2 (reshape:t,2,3 (reshape:t,3,2 x:f32[t,6])))))",
    );
}
