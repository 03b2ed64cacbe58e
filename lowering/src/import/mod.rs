// SPDX-License-Identifier: Apache-2.0
//! FX document to IR: every ATen and vLLM operator becomes IR operators, mutations become values,
//! effects keep their order, and what the lowering does not know becomes an island.

mod activation;
mod attention;
mod call;
mod convolution;
mod create;
mod diagonal;
mod dispatch;
mod document;
mod expression;
mod formula;
mod graph;
mod index;
mod join;
mod loss;
mod moments;
mod movement;
mod norm;
mod order;
mod pad;
mod pointwise;
mod pool;
mod product;
mod promote;
mod put;
mod recurrence;
mod reduce;
mod resample;
mod scan;
mod scatter;
mod select;
mod shape;
mod slice;
mod special;
mod storage;
mod vllm;

pub use dispatch::claimed_targets;
pub use document::{Arg, Document, FORMAT, FxGraph, FxNode, FxValue, NodeOp, VERSION};
pub use graph::{Fallback, ImportedGraph};

use crate::error::{Error, Result};
use crate::ir::Float;
use crate::lower::Options;
use crate::plan::{AttentionLayer, StateLayer};
use std::collections::HashSet;

/// A whole imported model.
pub struct Program {
    pub architecture: String,
    pub dtype: String,
    pub layers: Vec<AttentionLayer>,
    pub state_layers: Vec<StateLayer>,
    pub graphs: Vec<ImportedGraph>,
}

/// Imports every graph of the document.
pub fn import(document: &Document<'_>, options: &Options) -> Result<Program> {
    let used = layers(document)?;
    let layers: Vec<AttentionLayer> = used
        .iter()
        .filter_map(|(name, layer)| attention_layer(name, layer))
        .collect();
    let state_layers: Vec<StateLayer> = used
        .iter()
        .filter_map(|(name, layer)| state_layer(name, layer))
        .collect();
    let graphs: Result<Vec<ImportedGraph>> = document
        .graphs
        .iter()
        .map(|fx| graph::import_graph(fx, &layers, &state_layers, options))
        .collect();
    Ok(Program {
        architecture: document.architecture.clone(),
        dtype: document.dtype.clone(),
        layers,
        state_layers,
        graphs: graphs?,
    })
}

/// The layers in the order of their first use, so that renaming layers does not change a plan's shape.
fn layers<'a>(document: &'a Document<'a>) -> Result<Vec<(&'a str, &'a document::Layer)>> {
    let mut names: Vec<&str> = Vec::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let calls = document.graphs.iter().flat_map(|graph| &graph.nodes);
    for arg in calls.flat_map(|node| node.args.iter().chain(node.kwargs.values())) {
        if let document::Arg::Layer(name) = arg
            && seen.insert(name)
        {
            names.push(name);
        }
    }
    names
        .into_iter()
        .map(|name| {
            let layer = document.layers.get(name).ok_or_else(|| Error::Malformed {
                what: "FX document",
                reason: format!("layer {name} is used and not described"),
            })?;
            Ok((name, layer))
        })
        .collect()
}

/// The layer, if it is one that recurrences may name.
fn state_layer(name: &str, layer: &document::Layer) -> Option<StateLayer> {
    let document::Layer::State(fields) = layer else {
        return None;
    };
    Some(StateLayer {
        name: name.to_owned(),
        states: fields.states.clone(),
    })
}

/// The layer of a selection of keys: a cache of keys alone.
fn index_layer(name: &str, fields: &document::IndexFields) -> AttentionLayer {
    AttentionLayer {
        value_in_key: true,
        ..AttentionLayer::decoder(name, [fields.num_heads, 1], fields.head_size)
    }
}

/// The layer, if it is one that attention operators may name.
fn attention_layer(name: &str, layer: &document::Layer) -> Option<AttentionLayer> {
    let fields = match layer {
        document::Layer::Attention(fields) => fields,
        document::Layer::Index(fields) => return Some(index_layer(name, fields)),
        _ => return None,
    };
    let float = |arg: &document::FloatArg| -> Float { arg.value };
    Some(AttentionLayer {
        alibi_sqrt: fields.use_alibi_sqrt && fields.alibi_slopes.is_some(),
        name: name.to_owned(),
        num_heads: fields.num_heads,
        num_kv_heads: fields.num_kv_heads,
        head_size: fields.head_size,
        head_size_v: fields.head_size_v,
        scale: fields.scale.value,
        sliding_window: fields.sliding_window,
        logits_soft_cap: fields.logits_soft_cap.as_ref().map(float),
        alibi_slopes: fields
            .alibi_slopes
            .as_ref()
            .map(|slopes| slopes.iter().map(float).collect()),
        sinks: fields.sinks.clone(),
        attn_type: fields.attn_type.clone(),
        kv_sharing_target: fields.kv_sharing_target.clone(),
        value_in_key: fields.value_in_key,
        kernel: None,
        prefill: None,
    })
}
