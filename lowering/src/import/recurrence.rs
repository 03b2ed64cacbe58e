// SPDX-License-Identifier: Apache-2.0
//! `vllm_metal.*`: the recurrences of state layers, which the plugin's layers call by these names.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::document::FxValue;
use super::graph::Importer;
use crate::ir::{Op, Recurrence, TensorType};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("vllm_metal.causal_conv.default", |importer, call| {
        let names = ["x", "weight", "layer", "state"];
        recurrence(importer, call, Recurrence::CausalConv, names)
    }),
    ("vllm_metal.linear_scan.default", |importer, call| {
        let names = ["q", "k", "v", "decay", "layer", "state"];
        recurrence(importer, call, Recurrence::LinearScan, names)
    }),
    ("vllm_metal.delta_scan.default", |importer, call| {
        let names = ["q", "k", "v", "decay", "beta", "layer", "state"];
        recurrence(importer, call, Recurrence::DeltaScan, names)
    }),
    ("vllm_metal.selective_scan.default", |importer, call| {
        let names = ["x", "dt", "a", "b", "c", "layer", "state"];
        recurrence(importer, call, Recurrence::SelectiveScan, names)
    }),
];

/// `names` are the operands, then the layer and the index of its state.
fn recurrence<const N: usize>(
    importer: &mut Importer,
    call: &Call,
    function: Recurrence,
    names: [&str; N],
) -> Result<Item, String> {
    let bound = call.bind(names)?;
    let (operands, place) = bound.split_at(function.num_operands());
    let [Item::Layer(name), state] = place else {
        return Err("a recurrence without a layer".into());
    };
    let layer = importer.state_layers.iter();
    let layer = layer
        .enumerate()
        .find(|(_, layer)| layer.name == *name)
        .ok_or_else(|| format!("the lowering does not know the states of layer {name}"))?;
    let (layer, states) = (layer.0, layer.1.states.len());
    let state = state.int()?;
    if !(0..states as i64).contains(&state) {
        return Err(format!("state {state} of layer {name}, which has {states}"));
    }
    let operands = operands
        .iter()
        .map(|item| importer.value(item))
        .collect::<Result<Vec<_>, String>>()?;
    let Some(FxValue::Tensor { dtype, shape }) = &call.node.value else {
        return Err("its result's type is not recorded".into());
    };
    let types: Vec<TensorType> = vec![importer.tensor_type(dtype, shape)?];
    let op = Op::Recurrence {
        function,
        layer: layer as u32,
        state: state as u32,
    };
    let node = importer.builder.node(op, &operands, types);
    Ok(importer.fresh(crate::ir::Value { node, output: 0 }))
}
