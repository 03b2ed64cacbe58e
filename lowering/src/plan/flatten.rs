// SPDX-License-Identifier: Apache-2.0
//! A rewritten piece as instructions on registers, and what each of them may drop.

use super::fusion::{Flat, find};
use super::partition::Piece;
use super::{GraphPlan, Instruction, Region, Register, Step, choose};
use crate::ir::{Graph, Op, Value};
use crate::rewrite::Origin;
use rustc_hash::{FxHashMap, FxHashSet};

/// A region's instructions in order, with the origin of each.
pub(super) fn flatten(graph: &Graph, origins: Vec<Origin>, piece: &Piece) -> (Region, Vec<Origin>) {
    let num_inputs = piece.inputs.len() as u32;
    let num_parameters = piece.parameters.len() as u32;
    let mut registers: FxHashMap<Value, Register> = FxHashMap::default();
    let mut next = num_inputs + num_parameters;
    let mut instructions: Vec<Instruction> = Vec::new();
    let mut kept = Vec::new();
    for (id, origin) in graph.topological().zip(origins) {
        let node = graph.node(id);
        match node.op {
            Op::Input(index) => {
                registers.insert(
                    Value {
                        node: id,
                        output: 0,
                    },
                    index,
                );
                continue;
            }
            Op::Parameter(index) => {
                registers.insert(
                    Value {
                        node: id,
                        output: 0,
                    },
                    num_inputs + index,
                );
                continue;
            }
            _ => {}
        }
        let inputs = graph
            .operands(id)
            .iter()
            .map(|operand| registers[operand])
            .collect();
        let outputs: Vec<Register> = (0..node.types.len() as u32)
            .map(|output| {
                registers.insert(Value { node: id, output }, next);
                next += 1;
                next - 1
            })
            .collect();
        let (op, types) = (node.op.clone(), node.types.clone());
        let operands = graph.operands(id);
        let operands = operands.iter().map(|operand| graph.value_type(*operand));
        instructions.push(Instruction {
            kernel: choose(&op, &operands.collect::<Vec<_>>(), &types),
            op,
            inputs,
            outputs,
            types,
            release: Vec::new(),
        });
        kept.push(origin);
    }
    let outputs: Vec<Register> = graph
        .outputs
        .iter()
        .map(|output| registers[output])
        .collect();
    release(
        instructions
            .iter_mut()
            .map(|i| (i.inputs.clone(), i.outputs.clone(), &mut i.release)),
        &outputs,
    );
    let types = registers.iter();
    let types = types.map(|(value, register)| (*register, graph.value_type(*value).clone()));
    let fusions = find(&Flat {
        instructions: &instructions,
        outputs: &outputs,
        types: &types.collect(),
    });
    let region = Region {
        num_inputs,
        num_parameters,
        num_registers: next,
        instructions,
        fusions,
        outputs,
    };
    (region, kept)
}

/// Fills in what each instruction may drop: registers that nothing after it reads and that are not kept.
fn release<'a>(
    instructions: impl DoubleEndedIterator<Item = (Vec<u32>, Vec<u32>, &'a mut Vec<u32>)>,
    kept: &[u32],
) {
    let mut needed: FxHashSet<u32> = kept.iter().copied().collect();
    for (inputs, outputs, release) in instructions.rev() {
        for register in inputs.into_iter().chain(outputs) {
            if needed.insert(register) {
                release.push(register);
            }
        }
    }
}

pub(super) fn release_slots(plan: &mut GraphPlan) {
    let kept = plan.outputs.clone();
    release(
        plan.steps.iter_mut().map(|step| match step {
            Step::Call {
                inputs,
                outputs,
                release,
                ..
            }
            | Step::Effect {
                inputs,
                outputs,
                release,
                ..
            } => (inputs.clone(), outputs.clone(), release),
        }),
        &kept,
    );
}
