// SPDX-License-Identifier: Apache-2.0
//! Keys that an index selects, and attention to them: from a document to effects of a plan.

use lowering::ir::{DType, Dim, Op};
use lowering::lower::{Options, lower};
use lowering::plan::{Plan, Step};
use serde_json::{Value, json};

/// An index of 3 heads of 8 and latent attention of 4 heads to the `count` keys it selects, on
/// inputs of these sizes.
fn document(count: i64, index_size: i64, selected: &str) -> Vec<u8> {
    let input = |name: &str, shape: &[i64]| {
        let mut sizes: Vec<Value> = vec![json!("s0")];
        sizes.extend(shape.iter().map(|size| json!(size)));
        json!({
            "name": name, "op": "placeholder", "role": "input",
            "value": {"dtype": "float32", "shape": sizes},
        })
    };
    let call = |name: &str, target: &str, args: Value, dtype: &str, shape: Value| {
        json!({
            "name": name, "op": "call", "target": target, "args": args, "kwargs": {},
            "value": {"dtype": dtype, "shape": shape}, "module": "model", "source": "model.py:1",
        })
    };
    let node = |name: &str| json!({"node": name});
    let nodes = vec![
        input("index_q", &[3, index_size]),
        input("index_k", &[1, index_size]),
        input("weights", &[3]),
        input("q", &[4, 12]),
        input("k", &[1, 12]),
        input("v", &[1, 8]),
        call(
            "selected",
            "vllm_metal.select_keys.default",
            json!([
                node("index_q"),
                node("index_k"),
                node("weights"),
                count,
                {"layer": "index"},
            ]),
            "int32",
            json!(["s0", count]),
        ),
        call(
            "attended",
            "vllm_metal.sparse_attention.default",
            json!([node("q"), node(selected), node("k"), node("v"), {"layer": "attn"}]),
            "float32",
            json!(["s0", 4, 8]),
        ),
        json!({"name": "output", "op": "output", "args": [node("attended")]}),
    ];
    let attention = json!({
        "kind": "attention", "num_heads": 4, "num_kv_heads": 1, "head_size": 12, "head_size_v": 8,
        "value_in_key": true, "scale": {"float": "0.25"}, "sliding_window": null,
        "logits_soft_cap": null, "alibi_slopes": null, "sinks": null, "attn_type": "decoder",
        "kv_sharing_target": null,
    });
    let document = json!({
        "format": "vllm-metal/fx", "version": 1, "architecture": "Model", "dtype": "float32",
        "producer": {}, "aliases": {},
        "layers": {
            "index": {"kind": "index", "num_heads": 3, "head_size": 8},
            "attn": attention,
        },
        "graphs": [{"name": "backbone", "symbols": [{"name": "s0", "role": "num_tokens"}], "nodes": nodes}],
    });
    serde_json::to_vec(&document).expect("JSON")
}

fn plan(document: &[u8]) -> Plan {
    let options = Options {
        refuse_fallback: true,
    };
    lower(document, &options).expect("a plan").plan
}

#[test]
fn a_selection_and_its_attention_are_effects_on_caches_of_their_own() {
    let plan = plan(&document(5, 8, "selected"));
    let index = &plan.layers[0];
    assert_eq!((index.name.as_str(), index.num_kv_heads), ("index", 1));
    assert_eq!((index.head_size, index.value_in_key), (8, true));
    let effects: Vec<_> = plan.graphs[0]
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Effect {
                op, inputs, types, ..
            } => Some((op.clone(), inputs.len(), types[0].clone())),
            Step::Call { .. } => None,
        })
        .collect();
    let [(select, 3, names), (attend, 3, result)] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_eq!(*select, Op::SelectKeys { layer: 0, count: 5 });
    assert_eq!(*attend, Op::SparseAttention { layer: 1, count: 5 });
    assert_eq!(names.dtype, DType::Int32);
    assert_eq!(names.shape[1..], [Dim::Fixed(5)]);
    assert_eq!(result.shape[1..], [Dim::Fixed(4), Dim::Fixed(8)]);
}

#[test]
fn what_does_not_fit_is_not_lowered() {
    let refused = |document: Vec<u8>| {
        let options = Options {
            refuse_fallback: true,
        };
        lower(&document, &options)
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(refused(document(0, 8, "selected")).contains("select_keys"));
    assert!(refused(document(5, 6, "selected")).contains("select_keys"));
    assert!(refused(document(5, 8, "weights")).contains("sparse_attention"));
}

#[test]
fn a_plan_with_other_operands_is_refused() {
    let plan = plan(&document(5, 8, "selected"));
    let bytes = plan.to_bytes().expect("a plan");
    assert_eq!(Plan::from_bytes(&bytes).expect("as written"), plan);
    for (kind, field) in [("select_keys", "count"), ("sparse_attention", "layer")] {
        let mut value: Value = serde_json::from_slice(&bytes).expect("JSON");
        let steps = value["graphs"][0]["steps"].as_array_mut().expect("steps");
        let op = steps
            .iter_mut()
            .find_map(|step| step["effect"]["op"].get_mut(kind))
            .expect("the effect");
        op[field] = json!(if field == "count" { 0 } else { 9 });
        let bytes = serde_json::to_vec(&value).expect("JSON");
        assert!(
            Plan::from_bytes(&bytes).is_err(),
            "{kind} of another {field}"
        );
    }
}
