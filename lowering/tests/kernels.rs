// SPDX-License-Identifier: Apache-2.0
//! Kernels in the plans of whole models: what they leave of a layer's launches, and what is refused of
//! a plan that came from outside.

mod common;

use common::document;
use lowering::lower::{Lowered, Options, lower};
use lowering::plan::{Fusion, Plan};
use std::collections::BTreeSet;

const MODELS: [&str; 3] = ["llama.whole", "llama.decomposed", "qwen3.bf16.whole"];

fn lowered(name: &str) -> Lowered {
    lower(&document(name), &Options::default()).unwrap()
}

fn fusions(plan: &mut Plan) -> impl Iterator<Item = &mut Fusion> {
    let regions = plan.graphs.iter_mut().flat_map(|graph| &mut graph.regions);
    regions.flat_map(|region| &mut region.fusions)
}

#[test]
fn a_layer_that_decodes_is_ten_launches_with_kernels() {
    for model in MODELS {
        let decode = lowered(model).report.decode;
        let found = &decode.kernels;
        assert_eq!(found.launches_per_layer, 10.0, "{model}: {found:?}");
        assert_eq!(found.layer["matmul"], 4.0);
        for once in ["cache_write", "paged_attention_decode", "qk_norm_rope"] {
            assert_eq!(found.layer[once], 1.0, "{model}: {once}");
        }
        assert_eq!(found.layer.values().sum::<f64>(), 10.0);
        let reference = &decode.reference;
        assert!(reference.launches_per_layer > 16.0, "{reference:?}");
        // The weights are read either way; nothing that kernels save is read again.
        assert!(found.bytes_read < reference.bytes_read);
        assert!(found.bytes_written < reference.bytes_written);
    }
}

#[test]
fn what_is_not_usable_is_dropped_and_the_reference_stays() {
    for model in MODELS {
        let mut plan = lowered(model).plan;
        let instructions = |plan: &Plan| -> usize {
            let regions = plan.graphs.iter().flat_map(|graph| &graph.regions);
            regions.map(|region| region.instructions.len()).sum()
        };
        let before = instructions(&plan);
        let mut usable = plan.kernels();
        usable.retain(|choice| choice.name != "qk_norm_rope");
        plan.keep_kernels(&usable);
        assert_eq!(fusions(&mut plan).count(), 0);
        assert!(plan.layers.iter().all(|layer| layer.kernel.is_some()));
        assert!(plan.layers.iter().all(|layer| layer.prefill.is_some()));
        assert!(plan.sample.is_some());
        plan.keep_kernels(&BTreeSet::new());
        assert!(plan.kernels().is_empty());
        assert_eq!(instructions(&plan), before);
    }
}

fn refusal(change: impl FnOnce(&mut Plan)) -> String {
    let mut plan = lowered("qwen3.bf16.whole").plan;
    change(&mut plan);
    let error = Plan::from_bytes(&plan.to_bytes().unwrap()).unwrap_err();
    error.to_string()
}

#[test]
fn kernels_that_do_not_fit_are_refused() {
    let with_fusion = |change: fn(&mut Fusion)| {
        refusal(|plan| change(fusions(plan).next().expect("there is one")))
    };
    let expected = "qk_norm_rope";
    for error in [
        with_fusion(|fusion| fusion.inputs.truncate(3)),
        with_fusion(|fusion| fusion.outputs[0] = 0),
        with_fusion(|fusion| {
            fusion.kernel.sizes.insert("rotary_dim".into(), 3);
        }),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    let order = with_fusion(|fusion| fusion.instructions.reverse());
    assert!(order.contains("of a fusion"), "{order}");
    let outside = with_fusion(|fusion| fusion.instructions.push(10_000));
    assert!(outside.contains("of a fusion"), "{outside}");
    let register = with_fusion(|fusion| fusion.inputs[1] = 10_000);
    assert!(register.contains("register 10000"), "{register}");

    let layer = refusal(|plan| {
        let kernel = plan.layers[0].kernel.as_mut().expect("there is one");
        kernel.sizes.insert("num_heads".into(), 8);
    });
    assert!(layer.contains("paged_attention_decode"), "{layer}");
}
