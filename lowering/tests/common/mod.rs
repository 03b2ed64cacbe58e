// SPDX-License-Identifier: Apache-2.0
//! Captured models of `tests/data`, and a source of choices.
#![allow(dead_code, reason = "each test program uses a part")]

use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

/// FX documents of small models, as capture wrote them.
pub const MODELS: [&str; 4] = ["llama", "qwen3.bf16", "gemma3", "gptj"];

/// Bytes of a captured model.
pub fn document(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.json"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Cases of a property: `LOWERING_FUZZ_CASES`, 200 when unset.
pub fn cases() -> u32 {
    let given = std::env::var("LOWERING_FUZZ_CASES").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// SplitMix64: choices from a seed.
pub struct Choices(pub u64);

impl Choices {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, 0 where there is none.
    pub fn below(&mut self, count: usize) -> usize {
        (self.bits() % count.max(1) as u64) as usize
    }
}

/// A captured model with more layers: its last `group` layers are repeated until there are at least
/// `layers`. The repeated ones differ in names alone, as those of a real model do.
pub fn deepened(document: &[u8], group: usize, layers: usize) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(document).expect("JSON");
    let captured = document["layers"].as_object().expect("layers").len();
    let table = document["layers"].clone();
    let nodes = document["graphs"][0]["nodes"].as_array().expect("nodes");
    let first_of = |layer: usize| {
        let prefix = format!("model.layers.{layer}.");
        nodes
            .iter()
            .position(|node| node["module"].as_str().unwrap_or("").starts_with(&prefix))
            .expect("a layer's first node")
    };
    // A layer's nodes follow each other; what modules they share stands at the first layer's name.
    let end = first_after(nodes, first_of(captured - 1));
    let start = first_of(captured - group);
    let before = &nodes[first_of(captured - group - 1)..start];
    let calls: Vec<Value> = nodes[start..end].to_vec();
    let is_own = |node: &&Value| {
        let path = node["path"].as_str().unwrap_or("");
        (captured - group..captured).any(|n| path.starts_with(&format!("model.layers.{n}.")))
    };
    let weights: Vec<Value> = nodes.iter().filter(is_own).cloned().collect();
    let name = |node: &Value| node["name"].as_str().unwrap_or("").to_owned();

    // Names of the group before the repeated one, by names of the group that reads them.
    let mut previous: HashMap<String, String> = HashMap::new();
    for (old, new) in before.iter().rev().zip(calls.iter().rev()) {
        previous.insert(name(old), name(new));
    }
    let mut added: Vec<Value> = Vec::new();
    let mut placeholders: Vec<Value> = Vec::new();
    let mut described = table.as_object().expect("layers").clone();
    let mut last: HashMap<String, String> = HashMap::new();
    for copy in 0.. {
        let depth = captured + copy * group;
        if depth >= layers {
            break;
        }
        let renumber = |text: &str| {
            let old = (captured - group..captured)
                .find(|old| text.starts_with(&format!("model.layers.{old}.")));
            match old {
                Some(old) => text.replacen(
                    &format!("model.layers.{old}."),
                    &format!("model.layers.{}.", depth + old + group - captured),
                    1,
                ),
                None => text.to_owned(),
            }
        };
        let own: HashMap<String, String> = weights
            .iter()
            .chain(&calls)
            .map(|node| (name(node), format!("{}+{copy}", name(node))))
            .collect();
        let map = |text: &str| match (own.get(text), previous.get(text)) {
            (Some(new), _) => new.clone(),
            (_, Some(before)) => last.get(before).unwrap_or(before).clone(),
            _ => text.to_owned(),
        };
        for (nodes, to) in [(&weights, &mut placeholders), (&calls, &mut added)] {
            for node in nodes {
                let mut node = node.clone();
                rename(&mut node, &map, &renumber);
                to.push(node);
            }
        }
        for (layer, fields) in table.as_object().expect("layers") {
            let new = renumber(layer);
            if new != *layer {
                described.insert(new, fields.clone());
            }
        }
        last = own;
    }
    let nodes = document["graphs"][0]["nodes"]
        .as_array_mut()
        .expect("nodes");
    let mut tail = nodes.split_off(end);
    let map = |text: &str| last.get(text).cloned().unwrap_or_else(|| text.to_owned());
    tail.iter_mut()
        .for_each(|node| rename(node, &map, &str::to_owned));
    placeholders.append(nodes);
    placeholders.extend(added);
    placeholders.extend(tail);
    *nodes = placeholders;
    document["layers"] = Value::Object(described);
    serde_json::to_vec(&document).expect("JSON")
}

/// Where the layers end: the first node of the model's last norm.
fn first_after(nodes: &[Value], start: usize) -> usize {
    let is_outside = |node: &Value| {
        let module = node["module"].as_str().unwrap_or("");
        !module.is_empty() && !module.starts_with("model.layers.")
    };
    let found = nodes[start..].iter().position(is_outside);
    start + found.expect("a norm after the layers")
}

/// Renames a node, what it reads, its parameter and its layer.
fn rename(value: &mut Value, node: &dyn Fn(&str) -> String, path: &dyn Fn(&str) -> String) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, node, path)),
        Value::Object(fields) => {
            for (key, field) in fields {
                match (key.as_str(), field) {
                    ("name" | "node", Value::String(text)) => *text = node(text),
                    ("path" | "layer" | "module", Value::String(text)) => *text = path(text),
                    (_, field) => rename(field, node, path),
                }
            }
        }
        _ => {}
    }
}
