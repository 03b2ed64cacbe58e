// SPDX-License-Identifier: Apache-2.0
//! Binds a plan's parameters and runs its folds.

use super::layout;
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
    arrays: HashMap<String, Parameter>,
    pub report: LoadReport,
}

struct Parameter {
    array: Array,
    /// See [`Source::origin`].
    origin: String,
    /// It is another model's too.
    shared: bool,
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
        let parameter = Parameter {
            array,
            origin,
            shared: false,
        };
        self.arrays.insert(path, parameter);
        Ok(())
    }

    /// Uses an array of another model.
    pub fn share(&mut self, path: String, array: Array) {
        self.report.parameters += 1;
        let parameter = Parameter {
            array,
            origin: String::new(),
            shared: true,
        };
        self.arrays.insert(path, parameter);
    }

    /// The parameter of that path.
    ///
    /// # Errors
    /// It was not given.
    pub fn get(&self, path: &str) -> Result<&Array> {
        self.arrays
            .get(path)
            .map(|parameter| &parameter.array)
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
                .map_or_else(String::new, |parameter| parameter.origin.clone());
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

    /// All parameters of each graph by index, folds run. Those that only folds read are let go: their
    /// place holds an array of nothing.
    pub fn bind(&mut self, mlx: &Mlx, graphs: &[GraphPlan]) -> Result<Vec<Vec<Array>>> {
        let mut graphs_of: HashMap<&str, usize> = HashMap::new();
        for binding in graphs.iter().flat_map(|graph| &graph.parameters) {
            *graphs_of.entry(&binding.name).or_default() += 1;
        }
        let mut bound = Vec::with_capacity(graphs.len());
        for graph in graphs {
            let mut arrays = self.checkpoint_arrays(graph)?;
            // What folds compute is the graph's own.
            let mut own: Vec<bool> = arrays.iter().map(Option::is_none).collect();
            for (own, binding) in own.iter_mut().zip(&graph.parameters) {
                let path = binding.name.as_str();
                let others = graphs_of.get(path).is_some_and(|graphs| *graphs > 1);
                if !others && self.arrays.remove(path).is_some_and(|found| !found.shared) {
                    *own = true;
                }
            }
            self.fold(mlx, graph, &own, &mut arrays)?;
            let nothing = host_array(&[], &[0], DType::Bool)?;
            let arrays = arrays.into_iter();
            bound.push(
                arrays
                    .map(|array| array.unwrap_or_else(|| nothing.clone()))
                    .collect(),
            );
        }
        Ok(bound)
    }

    /// A graph's parameters by index, without those that folds compute.
    fn checkpoint_arrays(&self, graph: &GraphPlan) -> Result<Vec<Option<Array>>> {
        let computed = computed(graph);
        let bindings = graph.parameters.iter().zip(computed);
        bindings
            .map(|(binding, computed)| match computed {
                true => Ok(None),
                false => self.checked(&binding.name, &binding.value).map(Some),
            })
            .collect()
    }

    /// Runs the folds, each as soon as its operands are there, and lets go what nothing reads any
    /// more. `own` tells which arrays no one else holds.
    fn fold(
        &mut self,
        mlx: &Mlx,
        graph: &GraphPlan,
        own: &[bool],
        arrays: &mut [Option<Array>],
    ) -> Result<()> {
        let context = Context { mlx, symbols: &[] };
        let mut readers = readers(graph);
        for (array, readers) in arrays.iter_mut().zip(&readers) {
            if *readers == 0 {
                *array = None;
            }
        }
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
            let mut results =
                match execute(context, &fold.op, &operands, &types).map_err(located)? {
                    Outputs::One(array) => vec![array],
                    Outputs::Two(first, second) => vec![first, second],
                    Outputs::Many(arrays) => arrays,
                };
            let last = |index: &u32| own[*index as usize] && readers[*index as usize] == 1;
            if fold.inputs.iter().all(last) && layout::reads_faster_copied(mlx, &fold.op, &types) {
                results = results
                    .iter()
                    .map(|array| mlx.contiguous(array))
                    .collect::<std::result::Result<_, _>>()?;
            }
            mlx.eval(&results)?;
            for index in &fold.inputs {
                readers[*index as usize] -= 1;
                if readers[*index as usize] == 0 {
                    arrays[*index as usize] = None;
                }
            }
            for ((index, array), expected) in fold.outputs.iter().zip(results).zip(&types) {
                if !fits(&array, expected) {
                    let found = format!("{:?}{:?}", dtype(&array), array.shape());
                    return Err(located(Error::Unsupported(format!(
                        "{found} is not {expected}"
                    ))));
                }
                self.report.folded_bytes += array.nbytes();
                if readers[*index as usize] > 0 {
                    arrays[*index as usize] = Some(array);
                }
            }
        }
        Ok(())
    }
}

/// How many folds read each parameter of the graph, and one more where its steps do.
fn readers(graph: &GraphPlan) -> Vec<usize> {
    let mut readers = vec![0; graph.parameters.len()];
    let folds = graph.folds.iter().flat_map(|fold| &fold.inputs);
    for index in folds.chain(&read_by_steps(graph)) {
        if let Some(readers) = readers.get_mut(*index as usize) {
            *readers += 1;
        }
    }
    readers
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::host::HostTensor;
    use crate::runtime::mlx::is_contiguous;
    use crate::runtime::testing::{cpu, values};
    use lowering::ir::Op;
    use lowering::plan::{Binding, Fold};

    fn parameter(name: &str, dtype: DType, shape: [i64; 2]) -> Binding {
        Binding {
            name: name.into(),
            value: TensorType {
                dtype,
                shape: shape.map(Dim::Fixed).to_vec(),
            },
        }
    }

    /// A graph whose steps read the transpose of `w [2, 3]`, and `w` itself if it is `tied`.
    fn transposing(name: &str, dtype: DType, tied: bool) -> GraphPlan {
        let mut parameters = vec![1];
        parameters.extend(tied.then_some(0));
        GraphPlan {
            name: name.into(),
            symbols: vec![],
            inputs: vec![],
            parameters: vec![
                parameter("w", dtype, [2, 3]),
                parameter("fold.0", dtype, [3, 2]),
            ],
            folds: vec![Fold {
                op: Op::Transpose {
                    permutation: vec![1, 0],
                },
                inputs: vec![0],
                outputs: vec![1],
            }],
            regions: vec![],
            steps: vec![Step::Call {
                region: 0,
                inputs: vec![],
                parameters,
                outputs: vec![],
                release: vec![],
            }],
            num_slots: 0,
            outputs: vec![],
        }
    }

    fn bind(mlx: &Mlx, graphs: &[GraphPlan]) -> Vec<Vec<Array>> {
        let dtype = graphs[0].parameters[0].value.dtype;
        let elements = (0..6u8).flat_map(|element| match dtype {
            DType::Float32 => f32::from(element).to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(f32::from(element))
                .to_le_bytes()
                .to_vec(),
        });
        let tensor = HostTensor {
            dtype,
            shape: vec![2, 3],
            bytes: elements.collect(),
        };
        let mut parameters = Parameters::default();
        parameters
            .add(mlx, "w".into(), Source::Host(tensor))
            .unwrap();
        parameters.bind(mlx, graphs).unwrap()
    }

    #[test]
    fn a_transposed_weight_is_copied_where_that_pays_and_nothing_else_needs_the_original() {
        let mlx = cpu();
        let pays = cfg!(target_os = "linux");
        let alone = |dtype, tied| vec![transposing("a", dtype, tied)];
        let two = [false, false].map(|tied| transposing("a", DType::Float32, tied));
        for (graphs, copied) in [
            (alone(DType::Float32, false), pays),
            (alone(DType::Float32, true), false),
            (alone(DType::Bfloat16, false), false),
            (two.to_vec(), false),
        ] {
            for arrays in bind(&mlx, &graphs) {
                assert_eq!(values(&mlx, &arrays[1]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
                assert_eq!(is_contiguous(&arrays[1]).unwrap(), copied);
                let kept = read_by_steps(&graphs[0]).contains(&0);
                assert_eq!(arrays[0].nbytes() > 0, kept);
            }
        }
    }
}
