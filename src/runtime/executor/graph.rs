// SPDX-License-Identifier: Apache-2.0
//! One graph of a plan, with its parameters, ready to run.

use super::instruction::{Context, Outputs, execute};
use super::joint_norm::{self, JointNorm};
use super::run::run;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx};
use lowering::ir::{Op, Recurrence, TensorType};
use lowering::plan::{GraphPlan, Instruction, KernelChoice, Step};

/// What a graph cannot do by itself: attention and recurrences with their caches, and calls into
/// PyTorch.
pub trait Effects {
    /// `q [t, heads, d], k [t, kv_heads, d], v [t, kv_heads, d_v] -> [t, heads, d_v]` of the plan's
    /// layer; keys and values may come as one array, side by side, `v` only comes where it is not part
    /// of `k`, and neither where the layer reads what another wrote. With `selected`, `[t, count]`, of
    /// those keys alone, as `Op::SparseAttention` says.
    fn attention(
        &mut self,
        layer: u32,
        q: &Array,
        keys_values: &[&Array],
        selected: Option<&Array>,
    ) -> Result<Array>;

    /// `Op::SelectKeys` of that many keys.
    fn select_keys(&mut self, layer: u32, count: i64, operands: [&Array; 3]) -> Result<Array>;

    /// A recurrence on a state of the plan's state layer, with operands and result as
    /// [`Recurrence`] says; the result is float32.
    fn recurrence(
        &mut self,
        function: Recurrence,
        layer: u32,
        state: u32,
        operands: &[&Array],
    ) -> Result<Array>;

    /// One launch of a kernel in a step of such sizes, with the inputs of its contract.
    fn kernel(
        &mut self,
        choice: &KernelChoice,
        step: &[(&'static str, i64)],
        inputs: &[&Array],
    ) -> Result<Vec<Array>>;

    /// Runs `Op::Island` and returns its results.
    fn island(
        &mut self,
        target: &str,
        arguments: &str,
        operands: &[&Array],
        types: &[TensorType],
    ) -> Result<Vec<Array>>;
}

/// A graph with everything that does not change between runs.
pub struct Graph {
    pub plan: GraphPlan,
    /// Parameters of the checkpoint, then those that folds computed.
    pub parameters: Vec<Array>,
    /// Per region and instruction, the value of one that depends on nothing.
    pub(super) constants: Vec<Vec<Option<Array>>>,
    /// Per step, the norms that are computed with the rotation that reads them.
    pub(super) joint_norms: Vec<Vec<JointNorm>>,
}

impl Graph {
    /// Prepares a graph: constants are made once.
    pub fn new(mlx: &Mlx, plan: GraphPlan, parameters: Vec<Array>) -> Result<Graph> {
        let context = Context { mlx, symbols: &[] };
        let constant = |instruction: &Instruction| match instruction.op {
            Op::Scalar(value) if value.as_f64().is_some() => {
                match execute(context, &instruction.op, &[], &instruction.types)? {
                    Outputs::One(array) => Ok(Some(array)),
                    Outputs::Two(..) | Outputs::Many(_) => Ok(None),
                }
            }
            _ => Ok(None),
        };
        let constants = plan
            .regions
            .iter()
            .map(|region| region.instructions.iter().map(constant).collect())
            .collect::<Result<Vec<Vec<Option<Array>>>>>()?;
        let joint_norms = plan
            .steps
            .iter()
            .map(|step| match step {
                Step::Call {
                    region,
                    parameters: given,
                    ..
                } => joint_norm::find(mlx, &plan.regions[*region as usize], |index| {
                    parameters.get(*given.get(index as usize)? as usize)
                }),
                Step::Effect { .. } => Ok(Vec::new()),
            })
            .collect::<Result<Vec<Vec<JointNorm>>>>()?;
        let weights = joint_norms.iter().flatten().map(|norm| &norm.weight);
        mlx.eval(constants.iter().flatten().flatten().chain(weights))?;
        Ok(Graph {
            plan,
            parameters,
            constants,
            joint_norms,
        })
    }

    /// Builds the graph of one run, lazily. `inputs` are in the order of the plan's inputs and of
    /// their types; `symbols` are the values of the plan's symbols.
    ///
    /// # Errors
    /// Names the step, the instruction and the operator that failed.
    pub fn run(
        &self,
        mlx: &Mlx,
        symbols: &[i64],
        inputs: Vec<Array>,
        effects: &mut dyn Effects,
    ) -> Result<Vec<Array>> {
        run(self, Context { mlx, symbols }, inputs, effects)
    }
}
