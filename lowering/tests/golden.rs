// SPDX-License-Identifier: Apache-2.0
//! What a layer becomes, as text to review by eye: `tests/golden/*.txt`.
//!
//! `LOWERING_UPDATE_GOLDEN=1 cargo test -p lowering --test golden` writes the files anew.

mod common;

use common::document;
use lowering::dump::{Format, Stage};
use lowering::lower::{Options, lower};
use std::path::PathBuf;

fn golden(name: &str, model: &str, has: &[&str]) {
    let lowered = lower(&document(model), &Options::default()).expect("a model that lowers");
    let text = lowered
        .dump(Stage::Fused, Format::Text)
        .expect("a dump that is text");
    for operator in has {
        assert!(text.contains(operator), "{name}: no {operator}");
    }
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("LOWERING_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("a folder that can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} is not as in {}; LOWERING_UPDATE_GOLDEN=1 writes it anew:\n{text}",
        path.display()
    );
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
