// SPDX-License-Identifier: Apache-2.0
//! What a layer becomes, as text to review by eye: `tests/snapshots`.
//!
//! `INSTA_UPDATE=always cargo test -p lowering --test golden` writes the snapshots anew. Small ones,
//! one of each family of rules, stand in `src/rules/golden.rs`.

mod common;

use common::document;
use lowering::dump::{self, Format, Stage};
use lowering::lower::{Options, lower};

fn golden(name: &str, model: &str, has: &[&str]) {
    let lowered = lower(&document(model), &Options::default()).expect("a model that lowers");
    let text = lowered
        .dump(Stage::Fused, Format::Text)
        .expect("a dump that is text");
    for operator in has {
        assert!(text.contains(operator), "{name}: no {operator}");
    }
    snapshot(name, &text);
}

fn snapshot(name: &str, text: &str) {
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(name, text);
    });
}

/// What strings the regions together, with attention over the KV cache between them.
#[test]
fn steps() {
    let lowered = lower(&document("gemma3.whole"), &Options::default()).expect("a model");
    let steps = lowered
        .plan
        .graphs
        .iter()
        .map(|graph| dump::steps(graph, &lowered.plan));
    let text = dump::write(&steps.collect::<Vec<_>>(), Format::Text).expect("text");
    snapshot("steps", &text);
}

#[test]
fn llama() {
    golden(
        "llama",
        "llama.whole",
        &["add_rms_norm", "rope {neox", "gated_activation {silu}"],
    );
}

#[test]
fn qwen3() {
    golden("qwen3", "qwen3.bf16.whole", &["rms_norm", "rope {neox"]);
}

#[test]
fn gemma3() {
    golden(
        "gemma3",
        "gemma3.whole",
        &["gated_activation {gelu", "rms_norm", "rope {neox"],
    );
}

#[test]
fn gptj() {
    golden("gptj", "gptj.whole", &["rope {gptj", "layer_norm", "addmm"]);
}
