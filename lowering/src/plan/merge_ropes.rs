// SPDX-License-Identifier: Apache-2.0
//! Rotations by the same angles become one operator.

use crate::ir::{Graph, NodeId, Op, TensorType, Value};
use crate::rewrite::Origin;
use rustc_hash::{FxHashMap, FxHashSet};

/// Rotations by the same angles become one operator, as vLLM's rotary embedding is one module for
/// queries and keys.
pub(super) fn merge_ropes(graph: &Graph, origins: &[Origin]) -> (Graph, Vec<Origin>) {
    // Neighbours in topological order only, so that no merged operator needs a later one.
    let mut groups: Vec<Vec<NodeId>> = Vec::new();
    let key = |id: NodeId| {
        let operands = graph.operands(id);
        (&graph.node(id).op, operands[0], operands[1])
    };
    for id in graph.topological() {
        if !matches!(graph.node(id).op, Op::Rope { .. }) {
            continue;
        }
        match groups.last_mut() {
            Some(group) if key(group[0]) == key(id) && independent(graph, group, id) => {
                group.push(id);
            }
            _ => groups.push(vec![id]),
        }
    }
    groups.retain(|members| members.len() > 1);
    let mut merged = Graph::default();
    let mut merged_origins: Vec<Origin> = Vec::new();
    let mut renamed: FxHashMap<Value, Value> = FxHashMap::default();
    // A merged operator stands where its last member stood; what lies between moves behind it only
    // if it needs a member, so members are emitted by need.
    let group_of: FxHashMap<NodeId, &Vec<NodeId>> = groups
        .iter()
        .flat_map(|members| members.iter().map(move |member| (*member, members)))
        .collect();
    for root in graph.outputs.iter().map(|output| output.node) {
        let mut stack = vec![root];
        while let Some(id) = stack.last().copied() {
            if renamed.contains_key(&Value {
                node: id,
                output: 0,
            }) {
                stack.pop();
                continue;
            }
            let members: &[NodeId] = group_of
                .get(&id)
                .map_or(std::slice::from_ref(&id), |members| members);
            let mut operands = graph.operands(members[0]);
            operands.extend(members[1..].iter().map(|member| graph.operands(*member)[2]));
            let missing: Vec<NodeId> = operands
                .iter()
                .rev()
                .filter(|operand| !renamed.contains_key(operand))
                .map(|operand| operand.node)
                .collect();
            if !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            stack.pop();
            let node = graph.node(members[0]);
            let types: Vec<TensorType> = members
                .iter()
                .flat_map(|member| graph.node(*member).types.clone())
                .collect();
            let operands: Vec<Value> = operands.iter().map(|operand| renamed[operand]).collect();
            let added = merged.add(node.op.clone(), &operands, types, node.source.clone());
            let mut origin = origins[members[0].index()].clone();
            for member in &members[1..] {
                origin.join(&origins[member.index()]);
            }
            merged_origins.push(origin);
            let mut results = 0;
            for member in members {
                for output in 0..graph.node(*member).types.len() as u32 {
                    let result = Value {
                        node: added,
                        output: results,
                    };
                    renamed.insert(
                        Value {
                            node: *member,
                            output,
                        },
                        result,
                    );
                    results += 1;
                }
            }
        }
    }
    merged.outputs = graph.outputs.iter().map(|output| renamed[output]).collect();
    (merged, merged_origins)
}

/// The node is computed from none of the members.
fn independent(graph: &Graph, members: &[NodeId], id: NodeId) -> bool {
    let mut stack = vec![id];
    let mut seen = FxHashSet::default();
    while let Some(id) = stack.pop() {
        for operand in graph.operands(id) {
            if members.contains(&operand.node) {
                return false;
            }
            if seen.insert(operand.node) {
                stack.push(operand.node);
            }
        }
    }
    true
}
