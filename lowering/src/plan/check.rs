// SPDX-License-Identifier: Apache-2.0
//! Checks a plan that came from outside: every index lies inside what it points into, and every
//! register is written before it is read.

use super::paged::{choose_paged, choose_prefill};
use super::sampling::choose_sample;
use super::{AttentionLayer, GraphPlan, KernelChoice, Plan, Region, Step};
use crate::ir::{DType, Op};

type Checked = Result<(), String>;

impl Plan {
    /// `Err` names the first thing that is wrong.
    pub(super) fn check(&self) -> Checked {
        for layer in &self.layers {
            layer
                .check()
                .map_err(|reason| format!("layer {:?}: {reason}", layer.name))?;
        }
        for graph in &self.graphs {
            graph
                .check(self)
                .map_err(|reason| format!("graph {:?}: {reason}", graph.name))?;
        }
        if let Some(kernel) = &self.sample
            && choose_sample(&self.graphs).as_ref() != Some(kernel)
        {
            return Err(format!("kernel {:?} does not draw its tokens", kernel.name));
        }
        Ok(())
    }
}

impl AttentionLayer {
    fn check(&self) -> Checked {
        type Choose = fn(&AttentionLayer, DType) -> Option<KernelChoice>;
        let kernels: [(_, Choose); 2] = [
            (&self.kernel, choose_paged),
            (&self.prefill, choose_prefill),
        ];
        for (kernel, choose) in kernels {
            let Some(kernel) = kernel else { continue };
            let own = kernel.dtypes.get("T");
            let own = own.and_then(|dtype| choose(self, *dtype));
            if own.as_ref() != Some(kernel) {
                return Err(format!("kernel {:?} does not compute it", kernel.name));
            }
        }
        Ok(())
    }
}

fn inside(index: u32, length: usize, what: &str) -> Checked {
    if (index as usize) < length {
        Ok(())
    } else {
        Err(format!("{what} {index} of {length}"))
    }
}

/// Reads need a written place, writes make one.
struct Written(Vec<bool>);

impl Written {
    fn new(total: u32, given: u32, limit: usize) -> Result<Written, String> {
        if total as usize > limit || given > total {
            return Err(format!("{given} given values of {total}"));
        }
        Ok(Written((0..total).map(|index| index < given).collect()))
    }

    fn read(&self, indices: &[u32], what: &str) -> Checked {
        for index in indices {
            inside(*index, self.0.len(), what)?;
            if !self.0[*index as usize] {
                return Err(format!("{what} {index} is read before it is written"));
            }
        }
        Ok(())
    }

    fn write(&mut self, indices: &[u32], what: &str) -> Checked {
        for index in indices {
            inside(*index, self.0.len(), what)?;
            self.0[*index as usize] = true;
        }
        Ok(())
    }

    fn release(&mut self, indices: &[u32], what: &str) -> Checked {
        self.read(indices, what)?;
        for index in indices {
            self.0[*index as usize] = false;
        }
        Ok(())
    }
}

/// More values than any model has; a larger count is a malformed file, not a reason to allocate.
const MAX_VALUES: usize = 1 << 22;

impl GraphPlan {
    fn check(&self, plan: &Plan) -> Checked {
        let mut constants = Written::new(
            self.parameters.len() as u32,
            self.parameters.len() as u32,
            MAX_VALUES,
        )?;
        for fold in &self.folds {
            for output in &fold.outputs {
                inside(*output, self.parameters.len(), "parameter")?;
                constants.0[*output as usize] = false;
            }
        }
        for fold in &self.folds {
            constants.read(&fold.inputs, "parameter")?;
            constants.write(&fold.outputs, "parameter")?;
        }
        for (index, region) in self.regions.iter().enumerate() {
            region
                .check()
                .map_err(|reason| format!("region {index}: {reason}"))?;
        }
        let mut slots = Written::new(self.num_slots, self.inputs.len() as u32, MAX_VALUES)?;
        for (index, step) in self.steps.iter().enumerate() {
            self.check_step(step, &mut slots, plan)
                .map_err(|reason| format!("step {index}: {reason}"))?;
        }
        slots.read(&self.outputs, "slot")
    }

    fn check_step(&self, step: &Step, slots: &mut Written, plan: &Plan) -> Checked {
        match step {
            Step::Call {
                region,
                inputs,
                parameters,
                outputs,
                release,
            } => {
                inside(*region, self.regions.len(), "region")?;
                let called = &self.regions[*region as usize];
                let fits = called.num_inputs as usize == inputs.len()
                    && called.num_parameters as usize == parameters.len()
                    && called.outputs.len() == outputs.len();
                if !fits {
                    return Err(format!("a call that does not fit region {region}"));
                }
                for parameter in parameters {
                    inside(*parameter, self.parameters.len(), "parameter")?;
                }
                slots.read(inputs, "slot")?;
                slots.write(outputs, "slot")?;
                slots.release(release, "slot")
            }
            Step::Effect {
                op,
                inputs,
                outputs,
                types,
                release,
            } => {
                match op {
                    Op::Attention { layer } => {
                        inside(*layer, plan.layers.len(), "layer")?;
                        let layer = &plan.layers[*layer as usize];
                        // Queries alone where the layer reads what another wrote; keys and values
                        // as one, or apart.
                        let most = if layer.value_in_key { 2 } else { 3 };
                        if !(1..=most).contains(&inputs.len()) {
                            return Err(format!(
                                "attention of layer {:?} on {} operands",
                                layer.name,
                                inputs.len()
                            ));
                        }
                    }
                    Op::SparseAttention { layer, count } => {
                        inside(*layer, plan.layers.len(), "layer")?;
                        let layer = &plan.layers[*layer as usize];
                        let operands = if layer.value_in_key { 3 } else { 4 };
                        if inputs.len() != operands || outputs.len() != 1 || *count < 1 {
                            return Err(format!(
                                "attention of layer {:?} to {count} keys on {} operands",
                                layer.name,
                                inputs.len()
                            ));
                        }
                    }
                    Op::SelectKeys { layer, count } => {
                        inside(*layer, plan.layers.len(), "layer")?;
                        if inputs.len() != 3 || outputs.len() != 1 || *count < 1 {
                            return Err(format!(
                                "a selection of {count} keys on {} operands",
                                inputs.len()
                            ));
                        }
                    }
                    Op::Recurrence {
                        function,
                        layer,
                        state,
                    } => {
                        inside(*layer, plan.state_layers.len(), "state layer")?;
                        let states = &plan.state_layers[*layer as usize].states;
                        inside(*state, states.len(), "state")?;
                        if inputs.len() != function.num_operands() || outputs.len() != 1 {
                            return Err(format!(
                                "{} on {} operands",
                                function.name(),
                                inputs.len()
                            ));
                        }
                    }
                    other => return Err(format!("{} is no effect", other.name())),
                }
                if types.len() != outputs.len() {
                    return Err(format!(
                        "{} types for {} results",
                        types.len(),
                        outputs.len()
                    ));
                }
                slots.read(inputs, "slot")?;
                slots.write(outputs, "slot")?;
                slots.release(release, "slot")
            }
        }
    }
}

impl Region {
    fn check(&self) -> Checked {
        let given = self
            .num_inputs
            .checked_add(self.num_parameters)
            .ok_or("too many registers")?;
        let mut registers = Written::new(self.num_registers, given, MAX_VALUES)?;
        for (index, instruction) in self.instructions.iter().enumerate() {
            let place = |reason: String| {
                format!("instruction {index} ({}): {reason}", instruction.op.name())
            };
            if instruction.op.is_effect()
                || matches!(
                    instruction.op,
                    Op::Input(_) | Op::Parameter(_) | Op::Project(_)
                )
            {
                return Err(place("it does not stand in a region".into()));
            }
            if let Some(kernel) = &instruction.kernel
                && !kernel.fits(&instruction.op)
            {
                return Err(place(format!(
                    "kernel {:?} does not compute it",
                    kernel.name
                )));
            }
            if instruction.types.len() != instruction.outputs.len() {
                return Err(place(format!(
                    "{} types for {} results",
                    instruction.types.len(),
                    instruction.outputs.len()
                )));
            }
            registers
                .read(&instruction.inputs, "register")
                .map_err(place)?;
            registers
                .write(&instruction.outputs, "register")
                .map_err(place)?;
            registers
                .release(&instruction.release, "register")
                .map_err(place)?;
        }
        for fusion in &self.fusions {
            fusion.check(&self.instructions)?;
            for register in &fusion.inputs {
                inside(*register, self.num_registers as usize, "register")?;
            }
        }
        registers.read(&self.outputs, "register")
    }
}
