// SPDX-License-Identifier: Apache-2.0
//! Explanations, near misses, differences and the figures of a decode step.

mod common;

use common::{MODELS, document};
use lowering::diff::diff;
use lowering::explain::{explain, explain_missing};
use lowering::lower::{Lowered, Options, lower};
use lowering::rules;
use serde_json::{Value, json};

fn lowered(name: &str) -> Lowered {
    lower(&document(name), &Options::default()).expect("a model that lowers")
}

#[test]
fn an_instruction_names_its_rules_and_every_captured_node_it_stands_for() {
    let model = lowered("llama.decomposed");
    let mut fused = 0;
    for (graph, report) in model.planned() {
        for (index, (region, origins)) in graph.regions.iter().zip(&report.origins).enumerate() {
            assert_eq!(region.instructions.len(), origins.len());
            for (instruction, origin) in region.instructions.iter().zip(origins) {
                if instruction.op.name() != "add_rms_norm" {
                    continue;
                }
                fused += 1;
                assert!(origin.rules.iter().any(|rule| rule.name == "rms_norm"));
                // Square, mean, eps, rsqrt, product, weight, sum.
                let targets: Vec<&str> = origin
                    .consumed
                    .iter()
                    .map(|source| source.target.as_str())
                    .collect();
                for target in ["pow", "mean", "rsqrt", "mul", "add"] {
                    assert!(
                        targets.iter().any(|of| of.contains(target)),
                        "no {target} among {targets:?}"
                    );
                }
                let name = format!("{}:{index}:%{}", graph.name, instruction.outputs[0]);
                let text = explain(&model, &name).expect("a known instruction");
                assert!(
                    text.contains("by rms_norm (same rounding points)"),
                    "{text}"
                );
                assert!(text.contains("eps is a constant: ok"), "{text}");
                assert!(text.contains("layernorm.py:"), "{text}");
                let node = &origin.consumed[0].node;
                let by_node = explain(&model, node).expect("a known captured node");
                assert!(by_node.contains(&format!("region {index}: %{}", instruction.outputs[0])));
            }
        }
    }
    assert!(fused > 0);
}

#[test]
fn every_instruction_stands_for_something_captured() {
    for model in MODELS {
        let model = lowered(&format!("{model}.whole"));
        for (graph, report) in model.planned() {
            for (region, origins) in graph.regions.iter().zip(&report.origins) {
                for (instruction, origin) in region.instructions.iter().zip(origins) {
                    assert!(
                        !origin.consumed.is_empty(),
                        "{}: {} stands for nothing",
                        graph.name,
                        instruction.op.name()
                    );
                }
            }
        }
    }
}

#[test]
fn unknown_names_are_errors_with_near_ones() {
    let model = lowered("llama.whole");
    let error = explain_missing(&model, "rms_nrom").expect_err("no such rule");
    assert!(error.to_string().contains("rms_norm"), "{error}");
    let error = explain(&model, "%99999").expect_err("no such instruction");
    assert!(error.to_string().contains("near: %"), "{error}");
    let error = explain(&model, "fused_add_rms_norm.9999").expect_err("no such node");
    assert!(error.to_string().contains("fused_add_rms_norm."), "{error}");
    assert!(explain(&model, "logits:99:%0").is_err());
}

fn call(name: &str, target: &str, args: Value, shape: Value) -> Value {
    json!({
        "name": name, "op": "call", "target": target, "args": args, "kwargs": {},
        "value": {"dtype": "float32", "shape": shape}, "module": "norm", "source": "model.py:7",
    })
}

/// `x * rsqrt(mean(x^2) + e)` with a tensor where eps should be.
fn nearly_a_norm() -> Vec<u8> {
    let input = |name: &str, size: i64| {
        json!({
            "name": name, "op": "placeholder", "role": "input",
            "value": {"dtype": "float32", "shape": ["s0", size]},
        })
    };
    let node = |name: &str| json!({"node": name});
    let nodes = json!([
        input("x", 8),
        input("e", 1),
        call("pow.0", "aten.pow.Tensor_Scalar", json!([node("x"), 2]), json!(["s0", 8])),
        call("mean.0", "aten.mean.dim", json!([node("pow.0"), [-1], true]), json!(["s0", 1])),
        call("add.0", "aten.add.Tensor", json!([node("mean.0"), node("e")]), json!(["s0", 1])),
        call("rsqrt.0", "aten.rsqrt.default", json!([node("add.0")]), json!(["s0", 1])),
        call("mul.0", "aten.mul.Tensor", json!([node("x"), node("rsqrt.0")]), json!(["s0", 8])),
        {"name": "output", "op": "output", "args": [node("mul.0")]},
    ]);
    let document = json!({
        "format": "vllm-metal/fx", "version": 1, "architecture": "Norm", "dtype": "float32",
        "layers": {},
        "graphs": [{
            "name": "backbone", "symbols": [{"name": "s0", "role": "num_tokens"}], "nodes": nodes,
        }],
    });
    serde_json::to_vec(&document).expect("JSON")
}

#[test]
fn a_near_miss_names_the_first_guard_that_refused_and_the_place() {
    let model = lower(&nearly_a_norm(), &Options::default()).expect("a model that lowers");
    let text = explain_missing(&model, "rms_norm").expect("a known rule");
    assert!(
        text.contains("eps is a constant: FAILS, the first to"),
        "{text}"
    );
    assert!(
        text.contains("the normalised operand is float32: ok"),
        "{text}"
    );
    assert!(
        text.contains("mul.0  aten.mul.Tensor  norm  model.py:7"),
        "{text}"
    );
    assert_eq!(model.report.near_misses["rms_norm"]["eps is a constant"], 1);
    assert_eq!(model.report.rules["rms_norm"].applied, 0);
    assert!(model.report.rules["rms_norm"].matches > 0);
    for rule in rules::all() {
        explain_missing(&lowered("gemma3.whole"), rule.name).expect("a known rule");
    }
}

#[test]
fn a_difference_names_operators_and_regions() {
    let same = diff(&lowered("llama.whole"), &lowered("llama.decomposed")).expect("a difference");
    assert!(
        same.same && same.text.contains("byte for byte"),
        "{}",
        same.text
    );
    let other = diff(&lowered("llama.whole"), &lowered("qwen3.bf16.whole")).expect("a difference");
    assert!(!other.same);
    for part in [
        "--- LlamaForCausalLM",
        "+++ Qwen3ForCausalLM",
        "rms_norm: ",
        "backbone region 1: -",
    ] {
        assert!(other.text.contains(part), "no {part:?} in\n{}", other.text);
    }
}

#[test]
fn a_decode_step_reads_every_weight_and_the_cache() {
    for model in MODELS {
        let model = lowered(&format!("{model}.whole"));
        let context = model.report.decode.context_length;
        let decode = &model.report.decode.reference;
        // Rows of the embedding are gathered: all other matrices are read whole.
        let weights: u64 = model
            .plan
            .graphs
            .iter()
            .flat_map(|graph| {
                let is_matrix = |name: &str| name.contains("proj") || name.contains("fc_");
                graph.parameters.iter().filter(move |p| is_matrix(&p.name))
            })
            .filter(|p| !p.name.starts_with("fold."))
            .map(|p| p.value.num_bytes(1))
            .sum();
        assert!(
            decode.bytes_read > weights,
            "{decode:?} with {weights} bytes of weights"
        );
        assert!(decode.bytes_read > decode.bytes_written);
        assert!(decode.launches as f64 > decode.launches_per_layer);
        assert!(decode.launches_per_layer >= 5.0);
        assert_eq!(context, 512);
    }
}
