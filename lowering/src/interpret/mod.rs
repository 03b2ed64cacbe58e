// SPDX-License-Identifier: Apache-2.0
//! A slow, plain interpreter of the IR and of plans: the oracle that rules are tested against.
//!
//! Values are float64; every operator's result is rounded to its dtype, sixteen-bit floats through
//! float32. Transcendental functions are `libm`'s, so that results are the same on every machine.

mod attention;
mod convolution;
mod fused;
mod movement;
mod pointwise;
mod product;
mod reduce;
mod round;
mod run;
mod tensor;

pub use round::{Precision, round_float, ulp, wrap};
pub use tensor::{Data, Number, Tensor};

use crate::ir::{Graph, Op, TensorType, Value};
use crate::plan::{GraphPlan, Region, Step};
use std::collections::HashMap;
use thiserror::Error;

/// Why something could not be interpreted.
#[derive(Debug, Error)]
pub enum InterpretError {
    /// An operator that has no meaning here, or operands that do not fit it.
    #[error("{op}: {reason}")]
    Op { op: &'static str, reason: String },

    /// A leaf, register or slot without a value.
    #[error("{what} {index} has no value")]
    Missing { what: &'static str, index: u32 },
}

/// An effect as a function of its operands and result types.
pub type Effect = fn(&Op, &[&Tensor], &[TensorType], &[i64]) -> Result<Vec<Tensor>, String>;

/// What a run is given besides its operands.
#[derive(Clone, Copy, Default)]
pub struct Interpreter<'a> {
    pub precision: Precision,
    /// Sizes of the symbols.
    pub symbols: &'a [i64],
    /// What effects yield; without it they are errors.
    pub effect: Option<Effect>,
}

type Results = Result<Vec<Tensor>, InterpretError>;

impl Interpreter<'_> {
    fn op(&self, op: &Op, operands: &[&Tensor], types: &[TensorType]) -> Results {
        let results = match self.effect {
            Some(effect) if op.is_effect() => effect(op, operands, types, self.symbols),
            _ => run::run(self.precision, self.symbols, op, operands, types),
        };
        results.map_err(|reason| InterpretError::Op {
            op: op.name(),
            reason,
        })
    }

    /// Outputs of a graph.
    pub fn graph(&self, graph: &Graph, inputs: &[Tensor], parameters: &[Tensor]) -> Results {
        let mut values: HashMap<Value, Tensor> = HashMap::new();
        for id in graph.topological() {
            let node = graph.node(id);
            let results = match node.op {
                Op::Input(index) => vec![leaf(inputs, index, "input")?.clone()],
                Op::Parameter(index) => vec![leaf(parameters, index, "parameter")?.clone()],
                _ => {
                    let operands = graph.operands(id);
                    let operands: Result<Vec<&Tensor>, InterpretError> =
                        operands.iter().map(|value| find(&values, *value)).collect();
                    self.op(&node.op, &operands?, &node.types)?
                }
            };
            for (output, result) in (0..).zip(results) {
                values.insert(Value { node: id, output }, result);
            }
        }
        graph
            .outputs
            .iter()
            .map(|value| find(&values, *value).cloned())
            .collect()
    }

    /// Outputs of a region.
    pub fn region(&self, region: &Region, inputs: &[Tensor], parameters: &[Tensor]) -> Results {
        let mut registers = Places::new("register");
        let given = region.num_inputs as usize;
        for (place, value) in (0..).zip(inputs.iter().take(given).chain(parameters)) {
            registers.set(place, value.clone());
        }
        for instruction in &region.instructions {
            let operands = registers.all(&instruction.inputs)?;
            let results = self.op(&instruction.op, &operands, &instruction.types)?;
            for (place, result) in instruction.outputs.iter().zip(results) {
                registers.set(*place, result);
            }
            for place in &instruction.release {
                registers.0.remove(place);
            }
        }
        registers.owned(&region.outputs)
    }

    /// Outputs of a planned graph; `parameters` are those that the checkpoint provides.
    pub fn plan(&self, plan: &GraphPlan, inputs: &[Tensor], parameters: &[Tensor]) -> Results {
        let mut constants = Places::new("parameter");
        for (place, value) in (0..).zip(parameters) {
            constants.set(place, value.clone());
        }
        for fold in &plan.folds {
            let operands = constants.all(&fold.inputs)?;
            let types: Vec<TensorType> = fold
                .outputs
                .iter()
                .filter_map(|place| plan.parameters.get(*place as usize))
                .map(|binding| binding.value.clone())
                .collect();
            let results = self.op(&fold.op, &operands, &types)?;
            for (place, result) in fold.outputs.iter().zip(results) {
                constants.set(*place, result);
            }
        }
        let mut slots = Places::new("slot");
        for (place, value) in (0..).zip(inputs) {
            slots.set(place, value.clone());
        }
        for step in &plan.steps {
            let (results, outputs, release) = match step {
                Step::Call {
                    region,
                    inputs,
                    parameters,
                    outputs,
                    release,
                } => {
                    let called = leaf(&plan.regions, *region, "region")?;
                    let inputs = slots.owned(inputs)?;
                    let parameters = constants.owned(parameters)?;
                    (self.region(called, &inputs, &parameters)?, outputs, release)
                }
                Step::Effect {
                    op,
                    inputs,
                    outputs,
                    types,
                    release,
                } => (self.op(op, &slots.all(inputs)?, types)?, outputs, release),
            };
            for (place, result) in outputs.iter().zip(results) {
                slots.set(*place, result);
            }
            for place in release {
                slots.0.remove(place);
            }
        }
        slots.owned(&plan.outputs)
    }
}

fn leaf<'a, T>(given: &'a [T], index: u32, what: &'static str) -> Result<&'a T, InterpretError> {
    given
        .get(index as usize)
        .ok_or(InterpretError::Missing { what, index })
}

fn find(values: &HashMap<Value, Tensor>, value: Value) -> Result<&Tensor, InterpretError> {
    values.get(&value).ok_or(InterpretError::Missing {
        what: "node",
        index: value.node.index() as u32,
    })
}

/// Numbered places that hold values.
struct Places(HashMap<u32, Tensor>, &'static str);

impl Places {
    fn new(what: &'static str) -> Places {
        Places(HashMap::new(), what)
    }

    fn set(&mut self, place: u32, value: Tensor) {
        self.0.insert(place, value);
    }

    fn all(&self, places: &[u32]) -> Result<Vec<&Tensor>, InterpretError> {
        let value = |index: &u32| {
            self.0.get(index).ok_or(InterpretError::Missing {
                what: self.1,
                index: *index,
            })
        };
        places.iter().map(value).collect()
    }

    fn owned(&self, places: &[u32]) -> Results {
        Ok(self.all(places)?.into_iter().cloned().collect())
    }
}
