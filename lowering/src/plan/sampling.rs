// SPDX-License-Identifier: Apache-2.0
//! The kernel that draws tokens from a plan's logits. Sampling is no part of a graph: the plan names
//! what may be launched behind it.

use super::{GraphPlan, KernelChoice, Slot, Step};
use crate::ir::TensorType;

/// The kernel's name.
pub const SAMPLE: &str = "sample";

/// Name of the graph whose result it reads.
const LOGITS: &str = "logits";

impl GraphPlan {
    /// The type of a slot that a step writes.
    fn type_of(&self, slot: Slot) -> Option<&TensorType> {
        let at = |outputs: &[Slot]| outputs.iter().position(|output| *output == slot);
        self.steps.iter().rev().find_map(|step| match step {
            Step::Call {
                region, outputs, ..
            } => {
                let place = at(outputs)?;
                let region = self.regions.get(*region as usize)?;
                let register = region.outputs.get(place)?;
                region.instructions.iter().find_map(|instruction| {
                    let mut outputs = instruction.outputs.iter();
                    instruction
                        .types
                        .get(outputs.position(|output| output == register)?)
                })
            }
            Step::Effect { outputs, types, .. } => types.get(at(outputs)?),
        })
    }
}

/// The kernel for logits of a known number of tokens, where its contract takes them.
pub fn choose_sample(graphs: &[GraphPlan]) -> Option<KernelChoice> {
    let graph = graphs.iter().find(|graph| graph.name == LOGITS)?;
    let [output] = graph.outputs.as_slice() else {
        return None;
    };
    let logits = graph.type_of(*output)?;
    let [_, vocab] = logits.shape.as_slice() else {
        return None;
    };
    let sizes = [("vocab_size", vocab.fixed()?)];
    let choice = KernelChoice::new(SAMPLE, &sizes, &[("T", logits.dtype)]);
    choice
        .launch(&[("num_requests", 1)])
        .is_ok()
        .then_some(choice)
}
