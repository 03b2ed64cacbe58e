// SPDX-License-Identifier: Apache-2.0
//! How large the elements of a graph's inputs may be, because a table is indexed with them: token
//! ids by the size of the vocabulary, positions by that of the rotary tables. MLX checks no index, so
//! the host does.

use lowering::ir::{Op, TensorType};
use lowering::plan::{GraphPlan, Step};

/// For each input, the number that its elements must be below, and not below 0; `None` where it is
/// no index.
pub fn input_bounds(graph: &GraphPlan) -> Vec<Option<i64>> {
    let mut bounds = vec![None; graph.inputs.len()];
    // For each slot, the input whose elements it holds, and its type.
    let mut slots: Vec<(Option<usize>, Option<&TensorType>)> =
        vec![(None, None); graph.num_slots as usize];
    for (index, input) in graph.inputs.iter().enumerate() {
        slots[index] = (Some(index), Some(&input.value));
    }
    for step in &graph.steps {
        match step {
            Step::Call {
                region,
                inputs,
                parameters,
                outputs,
                ..
            } => {
                let region = &graph.regions[*region as usize];
                let mut registers = vec![(None, None); region.num_registers as usize];
                for (register, slot) in inputs.iter().enumerate() {
                    registers[register] = slots[*slot as usize];
                }
                for (register, index) in parameters.iter().enumerate() {
                    let value = &graph.parameters[*index as usize].value;
                    registers[inputs.len() + register] = (None, Some(value));
                }
                for instruction in &region.instructions {
                    let operand = |index: usize| {
                        instruction
                            .inputs
                            .get(index)
                            .map(|register| registers[*register as usize])
                    };
                    if let (Op::Take { axis }, Some((_, Some(table))), Some((Some(input), _))) =
                        (&instruction.op, operand(0), operand(1))
                        && let Some(size) = table.shape.get(*axis).and_then(|size| size.fixed())
                    {
                        bounds[input] =
                            Some(bounds[input].map_or(size, |bound: i64| bound.min(size)));
                    }
                    let same_elements = matches!(
                        instruction.op,
                        Op::Cast { .. }
                            | Op::Reshape { .. }
                            | Op::Transpose { .. }
                            | Op::Broadcast { .. }
                            | Op::Slice { .. }
                    );
                    let source = operand(0)
                        .and_then(|(input, _)| input)
                        .filter(|_| same_elements);
                    for (register, value) in instruction.outputs.iter().zip(&instruction.types) {
                        registers[*register as usize] = (source, Some(value));
                    }
                }
                for (slot, register) in outputs.iter().zip(&region.outputs) {
                    slots[*slot as usize] = registers[*register as usize];
                }
            }
            Step::Effect { outputs, types, .. } => {
                for (slot, value) in outputs.iter().zip(types) {
                    slots[*slot as usize] = (None, Some(value));
                }
            }
        }
    }
    bounds
}
