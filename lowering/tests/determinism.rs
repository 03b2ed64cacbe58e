// SPDX-License-Identifier: Apache-2.0
//! The same model gives the same plan, byte for byte, however it was captured.

mod common;

use common::{Choices, MODELS, document};
use lowering::lower::{Options, lower};
use serde_json::Value;

fn plan(document: &[u8]) -> Vec<u8> {
    let lowered = lower(document, &Options::default()).expect("a model that lowers");
    assert_eq!(lowered.report.fallback.len(), 0);
    lowered.plan.to_bytes().expect("a plan")
}

#[test]
fn lowering_twice_gives_the_same_plan() {
    for model in MODELS {
        let document = document(&format!("{model}.whole"));
        assert!(plan(&document) == plan(&document), "{model}");
    }
}

#[test]
fn whole_and_decomposed_captures_give_the_same_plan() {
    // GPT-J has no vLLM IR operator: its captures are one.
    for model in ["llama", "qwen3.bf16", "gemma3"] {
        let whole = plan(&document(&format!("{model}.whole")));
        let decomposed = plan(&document(&format!("{model}.decomposed")));
        assert!(whole == decomposed, "{model}");
    }
}

/// In a process that this test starts: what it prints there.
const CHILD: &str = "LOWERING_TEST_CHILD";

#[test]
fn fresh_processes_make_the_same_plans() {
    let hashes = || {
        MODELS.map(|model| {
            let lowered = lower(&document(&format!("{model}.whole")), &Options::default());
            lowered.expect("a model that lowers").report.plan_sha256
        })
    };
    let expected = format!("{CHILD}: {:?}", hashes());
    if std::env::var_os(CHILD).is_some() {
        println!("\n{expected}");
        return;
    }
    let program = std::env::current_exe().expect("this program");
    for process in 0..20 {
        let output = std::process::Command::new(&program)
            .args([
                "--exact",
                "fresh_processes_make_the_same_plans",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .expect("a process");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&expected), "process {process}: {text}");
    }
}

/// Names of the nodes that an argument refers to.
fn references(arg: &Value, names: &mut Vec<String>) {
    match arg {
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        Value::Object(fields) => match fields.get("node").and_then(Value::as_str) {
            Some(name) => names.push(name.to_owned()),
            None => fields.values().for_each(|item| references(item, names)),
        },
        _ => {}
    }
}

/// The nodes in another order in which each still follows what it reads. A call that writes to its
/// arguments keeps its place among the others.
fn permuted(nodes: &[Value], choices: &mut Choices) -> Vec<Value> {
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    let writes = |node: &Value| {
        let target = node["target"].as_str().unwrap_or_default();
        let (operator, _) = target.rsplit_once('.').unwrap_or((target, ""));
        node.get("mutates").is_some() || operator.ends_with('_') || target.starts_with("vllm")
    };
    let mut needs: Vec<Vec<String>> = Vec::new();
    let mut barrier: Option<usize> = None;
    for (i, node) in nodes.iter().enumerate() {
        let mut names = Vec::new();
        references(&node["args"], &mut names);
        references(&node["kwargs"], &mut names);
        let call = node["op"] != "placeholder";
        if call {
            names.extend(barrier.map(|barrier| name(&nodes[barrier])));
        }
        if writes(node) || node["op"] == "output" {
            names.extend(nodes[..i].iter().map(name));
            barrier = Some(i);
        }
        needs.push(names);
    }
    let mut placed: std::collections::HashSet<String> = Default::default();
    let mut order = Vec::new();
    let mut left: Vec<usize> = (0..nodes.len()).collect();
    while !left.is_empty() {
        let ready: Vec<usize> = (0..left.len())
            .filter(|i| needs[left[*i]].iter().all(|name| placed.contains(name)))
            .collect();
        let next = left.remove(ready[choices.below(ready.len())]);
        placed.insert(name(&nodes[next]));
        order.push(nodes[next].clone());
    }
    order
}

#[test]
fn the_order_of_nodes_leaves_no_trace() {
    for model in MODELS {
        let bytes = document(&format!("{model}.whole"));
        let expected = plan(&bytes);
        let original: Value = serde_json::from_slice(&bytes).expect("JSON");
        for seed in 0..20 {
            let mut document = original.clone();
            let mut moved = false;
            for graph in document["graphs"].as_array_mut().expect("graphs") {
                let nodes = graph["nodes"].as_array().expect("nodes").clone();
                let order = permuted(&nodes, &mut Choices(seed));
                moved |= order != nodes;
                graph["nodes"] = Value::Array(order);
            }
            assert!(moved);
            let bytes = serde_json::to_vec(&document).expect("JSON");
            assert!(plan(&bytes) == expected, "{model}, permutation {seed}");
        }
    }
}
