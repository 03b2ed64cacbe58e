// SPDX-License-Identifier: Apache-2.0
//! Damaged documents and plans are errors with a reason, or still mean something: never a panic.
//!
//! `LOWERING_FUZZ_CASES` is the number of cases for each property, 200 when unset. The folder
//! `fuzz` holds the same properties as cargo-fuzz targets.

mod common;

use common::{Choices, MODELS, cases, document};
use lowering::lower::{Options, lower};
use lowering::plan::Plan;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

static DOCUMENTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    MODELS
        .iter()
        .map(|model| serde_json::from_slice(&document(&format!("{model}.whole"))).expect("JSON"))
        .collect()
});

static PLANS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let plan = |document: &Value| {
        let bytes = serde_json::to_vec(document).expect("JSON");
        let lowered = lower(&bytes, &Options::default()).expect("a model that lowers");
        serde_json::from_slice(&lowered.plan.to_bytes().expect("a plan")).expect("JSON")
    };
    DOCUMENTS.iter().map(plan).collect()
});

/// Numbers at which arithmetic on sizes breaks.
const EDGES: [i64; 12] = [
    0,
    1,
    -1,
    2,
    3,
    7,
    1 << 20,
    1 << 31,
    1 << 40,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];

/// Values in the tree.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The value of that number, counted in the tree's order.
fn at<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| at(item, index)),
        Value::Object(fields) => fields.values_mut().find_map(|item| at(item, index)),
        _ => None,
    }
}

fn pick(tree: &Value, choices: &mut Choices) -> Value {
    let mut copy = tree.clone();
    let mut index = choices.below(count(tree));
    at(&mut copy, &mut index).cloned().unwrap_or(Value::Null)
}

/// Damages one value of the tree: a number, a list, a field, or by a value from elsewhere.
fn mutate(tree: &mut Value, choices: &mut Choices) {
    let other = pick(tree, choices);
    let mut index = choices.below(count(tree));
    let Some(target) = at(tree, &mut index) else {
        return;
    };
    match target {
        Value::Number(_) => *target = json!(EDGES[choices.below(EDGES.len())]),
        Value::Array(items) if !items.is_empty() => {
            let place = choices.below(items.len());
            match choices.below(4) {
                0 => drop(items.remove(place)),
                1 => items.insert(place, other),
                2 => items.insert(place, items[place].clone()),
                _ => {
                    let second = choices.below(items.len());
                    items.swap(place, second);
                }
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let place = choices.below(fields.len());
            let key = fields.keys().nth(place).cloned().unwrap_or_default();
            match choices.below(3) {
                0 => drop(fields.remove(&key)),
                1 => drop(fields.insert(key, other)),
                _ => drop(fields.insert("surprise".into(), other)),
            }
        }
        Value::String(_) => {
            *target = match choices.below(4) {
                0 => json!(format!(
                    "{}*s0 - {}",
                    EDGES[choices.below(12)],
                    EDGES[choices.below(12)]
                )),
                1 => json!(""),
                _ => other,
            };
        }
        _ => *target = other,
    }
}

/// Numbers of a shape or an argument list, where most damage is arithmetic.
fn mutate_number(tree: &mut Value, choices: &mut Choices) {
    for _ in 0..200 {
        let mut index = choices.below(count(tree));
        if let Some(target @ Value::Number(_)) = at(tree, &mut index) {
            *target = json!(EDGES[choices.below(EDGES.len())]);
            return;
        }
    }
}

fn damaged(trees: &[Value], seed: u64) -> Vec<u8> {
    let mut choices = Choices(seed);
    let mut tree = trees[choices.below(trees.len())].clone();
    for _ in 0..=choices.below(4) {
        match choices.below(2) {
            0 => mutate(&mut tree, &mut choices),
            _ => mutate_number(&mut tree, &mut choices),
        }
    }
    let mut bytes = serde_json::to_vec(&tree).expect("JSON");
    if choices.below(8) == 0 {
        let place = choices.below(bytes.len());
        match choices.below(2) {
            0 => bytes.truncate(place),
            _ => bytes[place] = choices.bits() as u8,
        }
    }
    bytes
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn damaged_documents_do_not_panic(seed in any::<u64>(), refuse_fallback in any::<bool>()) {
        let options = Options { refuse_fallback };
        match lower(&damaged(&DOCUMENTS, seed), &options) {
            Ok(lowered) => {
                let bytes = lowered.plan.to_bytes().expect("a plan");
                let back = Plan::from_bytes(&bytes).expect("a plan that reads back");
                prop_assert!(back == lowered.plan);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn damaged_plans_do_not_panic(seed in any::<u64>()) {
        match Plan::from_bytes(&damaged(&PLANS, seed)) {
            Ok(plan) => {
                plan.checkpoint_parameters();
                let bytes = plan.to_bytes().expect("a plan");
                prop_assert!(Plan::from_bytes(&bytes).expect("a plan that reads back") == plan);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(lower(&bytes, &Options::default()).is_err());
        prop_assert!(Plan::from_bytes(&bytes).is_err());
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let deep = "[".repeat(100_000);
    assert!(lower(deep.as_bytes(), &Options::default()).is_err());
    assert!(Plan::from_bytes(deep.as_bytes()).is_err());
}
