// SPDX-License-Identifier: Apache-2.0
//! One run of a graph: its steps, and in each region its instructions.

use super::experts::{self, Routes};
use super::fusion;
use super::graph::{Effects, Graph};
use super::instruction::{Context, Outputs, execute};
use super::joint_norm::JointNorm;
use super::kernel;
use super::rope::{self, RopeTables};
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{self, Array};
use lowering::ir::{DType, Op, TensorType};
use lowering::plan::{Fusion, Instruction, Region, Step};

/// A value and its identity within a run, which is what derived values are remembered by.
struct Held {
    array: Array,
    id: u64,
}

/// See [`Graph::run`].
pub fn run(
    graph: &Graph,
    context: Context,
    inputs: Vec<Array>,
    effects: &mut dyn Effects,
) -> Result<Vec<Array>> {
    let slots: Vec<Option<Held>> = inputs
        .into_iter()
        .enumerate()
        .map(|(index, array)| {
            Some(Held {
                array,
                id: index as u64,
            })
        })
        .collect();
    let next_id = slots.len() as u64;
    let mut run = Run {
        graph,
        context,
        slots,
        locals: Vec::new(),
        next_id,
        tables: RopeTables::default(),
        routes: Routes::default(),
    };
    run.slots
        .resize_with(graph.plan.num_slots as usize, || None);
    for (index, step) in graph.plan.steps.iter().enumerate() {
        run.step(index, step, effects)?;
    }
    graph
        .plan
        .outputs
        .iter()
        .map(|slot| run.slot(*slot).map(|held| held.array.clone()))
        .collect()
}

/// The state of one run.
struct Run<'a> {
    graph: &'a Graph,
    context: Context<'a>,
    slots: Vec<Option<Held>>,
    /// Registers of the region being run, without its inputs and parameters.
    locals: Vec<Option<Held>>,
    next_id: u64,
    tables: RopeTables,
    routes: Routes,
}

/// One call of a region: where its first registers come from.
struct Call<'a> {
    region: &'a Region,
    inputs: &'a [u32],
    parameters: &'a [u32],
    joint_norms: &'a [JointNorm],
}

/// Where a register's value is.
enum Place {
    Slot(u32),
    Parameter(u32),
    Local(usize),
}

impl Call<'_> {
    fn place(&self, register: u32) -> Place {
        let index = register as usize;
        let (inputs, parameters) = (self.inputs.len(), self.parameters.len());
        if index < inputs {
            Place::Slot(self.inputs[index])
        } else if index < inputs + parameters {
            Place::Parameter(self.parameters[index - inputs])
        } else {
            Place::Local(index - inputs - parameters)
        }
    }
}

impl Run<'_> {
    fn slot(&self, slot: u32) -> Result<&Held> {
        held(&self.slots, slot as usize)
    }

    fn value(&self, call: &Call, register: u32) -> Result<&Array> {
        match call.place(register) {
            Place::Slot(slot) => self.slot(slot).map(|held| &held.array),
            Place::Parameter(index) => self
                .graph
                .parameters
                .get(index as usize)
                .ok_or_else(|| missing("parameter", index)),
            Place::Local(index) => held(&self.locals, index).map(|held| &held.array),
        }
    }

    /// Identity of a register's value in this run.
    fn id(&self, call: &Call, register: u32) -> Result<u64> {
        match call.place(register) {
            Place::Slot(slot) => self.slot(slot).map(|held| held.id),
            Place::Parameter(index) => Ok(u64::MAX - u64::from(index)),
            Place::Local(index) => held(&self.locals, index).map(|held| held.id),
        }
    }

    fn hold(&mut self, array: Array) -> Option<Held> {
        self.next_id += 1;
        Some(Held {
            array,
            id: self.next_id,
        })
    }

    fn step(&mut self, index: usize, step: &Step, effects: &mut dyn Effects) -> Result<()> {
        let release = match step {
            Step::Call {
                region,
                inputs,
                parameters,
                outputs,
                release,
            } => {
                let region_plan = &self.graph.plan.regions[*region as usize];
                let call = Call {
                    region: region_plan,
                    inputs,
                    parameters,
                    joint_norms: &self.graph.joint_norms[index],
                };
                let constants = &self.graph.constants[*region as usize];
                let locals = region_plan.num_registers as usize - inputs.len() - parameters.len();
                self.locals.clear();
                self.locals.resize_with(locals, || None);
                for (position, instruction) in region_plan.instructions.iter().enumerate() {
                    self.instruction(&call, position, constants[position].as_ref(), effects)
                        .map_err(|cause| {
                            let place =
                                format!("step {index}, region {region}, instruction {position}");
                            self.located(place, &instruction.op, cause)
                        })?;
                }
                self.finish(&call, outputs)?;
                release
            }
            Step::Effect {
                op,
                inputs,
                outputs,
                types,
                release,
            } => {
                self.effect(op, inputs, outputs, types, effects)
                    .map_err(|cause| self.located(format!("step {index}"), op, cause))?;
                release
            }
        };
        for slot in release {
            self.slots[*slot as usize] = None;
        }
        Ok(())
    }

    fn located(&self, place: String, op: &Op, cause: Error) -> Error {
        Error::Instruction {
            graph: self.graph.plan.name.clone(),
            place,
            op: op.name().to_owned(),
            cause: Box::new(cause),
        }
    }

    fn instruction(
        &mut self,
        call: &Call,
        position: usize,
        constant: Option<&Array>,
        effects: &mut dyn Effects,
    ) -> Result<()> {
        if let Some(fusion) = self.fusion(call, position)? {
            return match fusion.place() == Some(position) {
                true => self.fused(call, fusion, effects),
                false => Ok(()),
            };
        }
        let joined = |norm: &JointNorm| norm.norms.contains(&position);
        if call.joint_norms.iter().any(joined) {
            return Ok(()); // with its rotation
        }
        let instructions = &call.region.instructions;
        let instruction = &instructions[position];
        let joint = call.joint_norms.iter().find(|norm| norm.rope == position);
        let results = match (&instruction.op, constant) {
            (_, Some(constant)) => Outputs::One(constant.clone()),
            _ if instruction.kernel.is_some() && self.has_rows(call, instruction)? => {
                let operands = self.operands(call, &instruction.inputs)?;
                Outputs::Many(kernel::run(self.context, instruction, &operands, effects)?)
            }
            (Op::Rope { style, rotary_dim }, _) => {
                let [cos, sin, rotated @ ..] = instruction.inputs.as_slice() else {
                    return Err(Error::Unsupported("rope needs cosines and sines".into()));
                };
                let before_norms =
                    joint.map(|joint| joint.norms.map(|at| instructions[at].inputs[0]));
                let rotated = before_norms.as_ref().map_or(rotated, |registers| registers);
                let operands = self.operands(call, rotated)?;
                let (heads, tokens) = (rope::joint_heads(&operands), rope::tokens(&operands));
                let angles = (self.id(call, *cos)?, self.id(call, *sin)?);
                let key = (angles.0, angles.1, *style, heads, tokens);
                if self.tables.get(key).is_none() {
                    let angles = [self.value(call, *cos)?, self.value(call, *sin)?];
                    let x = operands
                        .first()
                        .ok_or_else(|| missing("rotated operand", 0))?;
                    let table = rope::table(self.context.mlx, *style, heads, angles, x)?;
                    self.tables.insert(key, table);
                }
                let table = self
                    .tables
                    .get(key)
                    .ok_or_else(|| missing("rope table", 0))?;
                let rotated = self.operands(call, rotated)?;
                rope::rotate_all(self.context.mlx, *rotary_dim, &rotated, joint, table)?
            }
            (Op::ExpertMatmul, _) => {
                let &[x, weights, chosen] = instruction.inputs.as_slice() else {
                    return Err(Error::Unsupported("experts take three operands".into()));
                };
                let mlx = self.context.mlx;
                let (x, weights) = (
                    self.value(call, x)?.clone(),
                    self.value(call, weights)?.clone(),
                );
                let ids = self.value(call, chosen)?.clone();
                let count = weights.shape().first().copied().unwrap_or(0);
                let key = (self.id(call, chosen)?, count);
                let route = self.routes.get(key, || experts::route(mlx, &ids, count))?;
                Outputs::One(experts::expert_matmul(mlx, &x, &weights, route)?)
            }
            (op, _) => {
                let operands = self.operands(call, &instruction.inputs)?;
                match op {
                    Op::Island { target, arguments } => {
                        let types = &instruction.types;
                        Outputs::Many(effects.island(target, arguments, &operands, types)?)
                    }
                    op => execute(self.context, op, &operands, &instruction.types)?,
                }
            }
        };
        match results {
            Outputs::One(array) => self.store(call, &instruction.outputs, [array])?,
            Outputs::Two(first, second) => {
                self.store(call, &instruction.outputs, [first, second])?;
            }
            Outputs::Many(arrays) => self.store(call, &instruction.outputs, arrays)?,
        }
        self.check_types(call, instruction)?;
        self.release(call, instruction);
        for norm in joint.iter().flat_map(|joint| joint.norms) {
            self.release(call, &instructions[norm]);
        }
        Ok(())
    }

    /// The fusion that computes an instruction, where there are any tokens.
    fn fusion<'b>(&self, call: &Call<'b>, position: usize) -> Result<Option<&'b Fusion>> {
        let mut all = call.region.fusions.iter();
        let found = all.find(|fusion| fusion.covers(position));
        match found.and_then(|fusion| fusion.inputs.first()) {
            Some(first) if self.value(call, *first)?.size() > 0 => Ok(found),
            _ => Ok(None),
        }
    }

    /// Runs a fusion's kernel in the place of all its instructions.
    fn fused(&mut self, call: &Call, fusion: &Fusion, effects: &mut dyn Effects) -> Result<()> {
        let arrays = self.operands(call, &fusion.inputs)?;
        let results = fusion::run(self.context.mlx, fusion, &arrays, effects)?;
        self.store(call, &fusion.outputs, results)?;
        for position in &fusion.instructions {
            self.release(call, &call.region.instructions[*position as usize]);
        }
        Ok(())
    }

    /// Kernels launch nothing for no rows, which MLX refuses.
    fn has_rows(&self, call: &Call, instruction: &Instruction) -> Result<bool> {
        let operands = self.operands(call, &instruction.inputs)?;
        Ok(operands.iter().all(|operand| operand.size() > 0))
    }

    fn operands(&self, call: &Call, registers: &[u32]) -> Result<Vec<&Array>> {
        registers
            .iter()
            .map(|register| self.value(call, *register))
            .collect()
    }

    fn store(
        &mut self,
        call: &Call,
        registers: &[u32],
        arrays: impl IntoIterator<Item = Array>,
    ) -> Result<()> {
        let mut arrays = arrays.into_iter();
        for register in registers {
            let array = arrays.next().ok_or_else(|| missing("result", *register))?;
            match call.place(*register) {
                Place::Local(index) => self.locals[index] = self.hold(array),
                _ => return Err(Error::Unsupported("an instruction writes an input".into())),
            }
        }
        Ok(())
    }

    fn release(&mut self, call: &Call, instruction: &Instruction) {
        for register in &instruction.release {
            if let Place::Local(index) = call.place(*register) {
                self.locals[index] = None;
            }
        }
    }

    /// Results have the types that the plan states. PyTorch's are always checked, MLX's in debug
    /// builds.
    fn check_types(&self, call: &Call, instruction: &Instruction) -> Result<()> {
        if !cfg!(debug_assertions) && !matches!(instruction.op, Op::Island { .. }) {
            return Ok(());
        }
        for (register, expected) in instruction.outputs.iter().zip(&instruction.types) {
            let array = self.value(call, *register)?;
            let (dtype, shape) = (mlx::dtype(array), array.shape());
            if self.context.shape(&expected.shape)? != shape || dtype != Some(expected.dtype) {
                let found = dtype.map_or("?", DType::name);
                let reason = format!("a result is {found}{shape:?} and not {expected}");
                return Err(Error::Unsupported(reason));
            }
        }
        Ok(())
    }

    fn finish(&mut self, call: &Call, outputs: &[u32]) -> Result<()> {
        for (slot, register) in outputs.iter().zip(&call.region.outputs) {
            let value = match call.place(*register) {
                Place::Local(index) => {
                    let held = held(&self.locals, index)?;
                    Some(Held {
                        array: held.array.clone(),
                        id: held.id,
                    })
                }
                _ => {
                    let array = self.value(call, *register)?.clone();
                    Some(Held {
                        array,
                        id: self.id(call, *register)?,
                    })
                }
            };
            self.slots[*slot as usize] = value;
        }
        self.locals.clear();
        Ok(())
    }

    fn effect(
        &mut self,
        op: &Op,
        inputs: &[u32],
        outputs: &[u32],
        types: &[TensorType],
        effects: &mut dyn Effects,
    ) -> Result<()> {
        let operands: Vec<&Array> = inputs
            .iter()
            .map(|slot| Ok(&self.slot(*slot)?.array))
            .collect::<Result<_>>()?;
        let results = match (op, operands.as_slice()) {
            (Op::Attention { layer }, [q, keys_values @ ..]) => {
                vec![effects.attention(*layer, q, keys_values, None)?]
            }
            (Op::SparseAttention { layer, .. }, [q, selected, keys_values @ ..]) => {
                vec![effects.attention(*layer, q, keys_values, Some(selected))?]
            }
            (Op::SelectKeys { layer, count }, &[q, k, weights]) => {
                vec![effects.select_keys(*layer, *count, [q, k, weights])?]
            }
            (
                Op::Recurrence {
                    function,
                    layer,
                    state,
                },
                operands,
            ) => {
                let result = effects.recurrence(*function, *layer, *state, operands)?;
                vec![match types.first() {
                    Some(expected) => self.context.mlx.ensure(result, expected.dtype)?,
                    None => result,
                }]
            }
            (Op::Island { target, arguments }, operands) => {
                effects.island(target, arguments, operands, types)?
            }
            _ => return Err(Error::Unsupported(format!("{} is no effect", op.name()))),
        };
        for (slot, array) in outputs.iter().zip(results) {
            self.slots[*slot as usize] = self.hold(array);
        }
        Ok(())
    }
}

fn held(values: &[Option<Held>], index: usize) -> Result<&Held> {
    values
        .get(index)
        .and_then(Option::as_ref)
        .ok_or_else(|| missing("value", index as u32))
}

fn missing(what: &str, index: u32) -> Error {
    Error::Unsupported(format!(
        "the plan reads {what} {index} where it has no value"
    ))
}
