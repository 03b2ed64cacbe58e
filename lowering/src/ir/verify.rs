// SPDX-License-Identifier: Apache-2.0
//! The verifier, run between stages: every node's types are what its operator yields.

use super::{Graph, Op, infer::infer};

/// Checks every node of the graph; the message names the first offending node.
pub fn verify(graph: &Graph) -> Result<(), String> {
    for id in graph.topological() {
        let node = graph.node(id);
        let operands = graph.operands(id);
        for operand in &operands {
            if operand.node >= id {
                return Err(format!("{} uses a later node", node.op.name()));
            }
            if operand.output as usize >= graph.node(operand.node).types.len() {
                return Err(format!("{} uses a missing result", node.op.name()));
            }
        }
        let types: Vec<_> = operands
            .iter()
            .map(|value| graph.value_type(*value))
            .collect();
        if matches!(node.op, Op::Project(_)) {
            return Err("a projection outside rewriting".into());
        }
        let Some(inferred) = infer(&node.op, &types) else {
            continue;
        };
        let place = || {
            let source = node.source.as_ref().map(|source| source.to_string());
            format!(
                "{} from {}",
                node.op.name(),
                source.as_deref().unwrap_or("no source")
            )
        };
        match inferred {
            Ok(inferred) if inferred == node.types => {}
            Ok(inferred) => {
                return Err(format!(
                    "{}: recorded {:?}, inferred {inferred:?}",
                    place(),
                    node.types
                ));
            }
            Err(reason) => return Err(format!("{}: {reason}", place())),
        }
    }
    for output in &graph.outputs {
        if output.node.index() >= graph.len()
            || output.output as usize >= graph.node(output.node).types.len()
        {
            return Err("an output that no node yields".into());
        }
    }
    Ok(())
}
