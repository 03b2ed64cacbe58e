// SPDX-License-Identifier: Apache-2.0
//! Binds a plan's parameters and runs its folds.

use super::load::{LoadReport, Source, take_over};
use crate::runtime::error::{Error, Result};
use crate::runtime::executor::{Context, Outputs, execute};
use crate::runtime::mlx::{Array, Mlx, dtype, host_array};
use lowering::ir::{DType, Dim, TensorType};
use lowering::plan::{GraphPlan, Plan, Step};
use std::collections::{BTreeSet, HashMap};

/// Paths of the checkpoint's parameters that the plan reads, sorted.
pub fn required(plan: &Plan) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for graph in &plan.graphs {
        let computed = computed(graph);
        for (index, binding) in graph.parameters.iter().enumerate() {
            if !computed[index] {
                paths.insert(binding.name.clone());
            }
        }
    }
    paths.extend(plan.layers.iter().filter_map(|layer| layer.sinks.clone()));
    paths.into_iter().collect()
}

/// Which parameters folds compute.
fn computed(graph: &GraphPlan) -> Vec<bool> {
    let mut computed = vec![false; graph.parameters.len()];
    for output in graph.folds.iter().flat_map(|fold| &fold.outputs) {
        if let Some(flag) = computed.get_mut(*output as usize) {
            *flag = true;
        }
    }
    computed
}

/// Arrays of the checkpoint's parameters by path, added one by one so that each source can be let
/// go before the next is read. Graphs share them.
#[derive(Default)]
pub struct Parameters {
    /// With where they come from.
    arrays: HashMap<String, (Array, String)>,
    pub report: LoadReport,
}

impl Parameters {
    /// Takes a parameter over, without copying where MLX can use the memory as it is.
    pub fn add(&mut self, mlx: &Mlx, path: String, source: Source) -> Result<()> {
        let origin = source.origin();
        let array = take_over(mlx, source, &mut self.report).map_err(|cause| Error::Parameter {
            path: path.clone(),
            origin: origin.clone(),
            reason: cause.to_string(),
        })?;
        self.arrays.insert(path, (array, origin));
        Ok(())
    }

    /// Uses an array of another model.
    pub fn share(&mut self, path: String, array: Array) {
        self.report.parameters += 1;
        self.arrays.insert(path, (array, String::new()));
    }

    /// The parameter of that path.
    ///
    /// # Errors
    /// It was not given.
    pub fn get(&self, path: &str) -> Result<&Array> {
        self.arrays
            .get(path)
            .map(|(array, _)| array)
            .ok_or_else(|| Error::Parameter {
                path: path.to_owned(),
                origin: String::new(),
                reason: "it is missing from the checkpoint".to_owned(),
            })
    }

    fn checked(&self, path: &str, expected: &TensorType) -> Result<Array> {
        let array = self.get(path)?;
        if !fits(array, expected) {
            let origin = self
                .arrays
                .get(path)
                .map_or_else(String::new, |(_, origin)| origin.clone());
            let found = dtype(array).map_or("?", DType::name);
            let reason = format!("expected {expected}, found {found}{:?}", array.shape());
            return Err(Error::Parameter {
                path: path.to_owned(),
                origin,
                reason,
            });
        }
        Ok(array.clone())
    }

    /// All parameters of a graph by index, folds run. Those that only folds read are let go: their
    /// place holds an array of nothing.
    pub fn of_graph(&mut self, mlx: &Mlx, graph: &GraphPlan) -> Result<Vec<Array>> {
        let computed = computed(graph);
        let mut arrays: Vec<Option<Array>> = Vec::with_capacity(graph.parameters.len());
        for (index, binding) in graph.parameters.iter().enumerate() {
            let array = if computed[index] {
                None
            } else {
                Some(self.checked(&binding.name, &binding.value)?)
            };
            arrays.push(array);
        }
        self.fold(mlx, graph, &mut arrays)?;
        let nothing = host_array(&[], &[0], DType::Bool)?;
        let read = read_by_steps(graph);
        Ok(arrays
            .into_iter()
            .enumerate()
            .map(|(index, array)| match array {
                Some(array) if read.contains(&(index as u32)) => array,
                _ => nothing.clone(),
            })
            .collect())
    }

    fn fold(&mut self, mlx: &Mlx, graph: &GraphPlan, arrays: &mut [Option<Array>]) -> Result<()> {
        let context = Context { mlx, symbols: &[] };
        let mut folded = Vec::new();
        for (position, fold) in graph.folds.iter().enumerate() {
            let located = |cause: Error| Error::Instruction {
                graph: graph.name.clone(),
                place: format!("fold {position}"),
                op: fold.op.name().to_owned(),
                cause: Box::new(cause),
            };
            let unset =
                || Error::Unsupported("it reads a parameter that is not computed yet".into());
            let operands: Vec<&Array> = fold
                .inputs
                .iter()
                .map(|index| {
                    arrays
                        .get(*index as usize)
                        .and_then(Option::as_ref)
                        .ok_or_else(unset)
                })
                .collect::<Result<_>>()
                .map_err(located)?;
            let types: Vec<TensorType> = fold
                .outputs
                .iter()
                .filter_map(|index| graph.parameters.get(*index as usize))
                .map(|binding| binding.value.clone())
                .collect();
            let results = match execute(context, &fold.op, &operands, &types).map_err(located)? {
                Outputs::One(array) => vec![array],
                Outputs::Two(first, second) => vec![first, second],
                Outputs::Many(arrays) => arrays,
            };
            for ((index, array), expected) in fold.outputs.iter().zip(results).zip(&types) {
                if !fits(&array, expected) {
                    let found = format!("{:?}{:?}", dtype(&array), array.shape());
                    return Err(located(Error::Unsupported(format!(
                        "{found} is not {expected}"
                    ))));
                }
                folded.push(array.clone());
                arrays[*index as usize] = Some(array);
            }
        }
        mlx.eval(&folded)?;
        self.report.folded_bytes += folded.iter().map(Array::nbytes).sum::<usize>();
        Ok(())
    }
}

fn fits(array: &Array, expected: &TensorType) -> bool {
    let shape: Option<Vec<i64>> = expected.shape.iter().map(|dim| Dim::fixed(*dim)).collect();
    let found: Vec<i64> = array.shape().iter().map(|size| i64::from(*size)).collect();
    shape == Some(found) && dtype(array) == Some(expected.dtype)
}

fn read_by_steps(graph: &GraphPlan) -> BTreeSet<u32> {
    let mut read = BTreeSet::new();
    for step in &graph.steps {
        if let Step::Call { parameters, .. } = step {
            read.extend(parameters);
        }
    }
    read
}
