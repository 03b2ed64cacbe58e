// SPDX-License-Identifier: Apache-2.0
//! Launches the Metal kernels of [`lowering::kernels`]. Only MLX with Metal runs them; not yet run
//! there.

use super::error::{Error, Result};
use super::island::{IslandRunner, call_out};
use super::mlx::{Array, Device, MetalKernel, Mlx, dtype, is_in_place};
use super::owner::Owner;
use lowering::ir::DType;
use lowering::kernels::{Expression, Kernel, KernelError, Launch, Sizes, Strides, kernel};
use lowering::plan::KernelChoice;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// Kernels that MLX holds, by name; MLX compiles each specialisation once.
#[derive(Default)]
pub struct Kernels {
    held: BTreeMap<&'static str, MetalKernel>,
    /// By what the plan chose and the sizes of the step.
    specialisations: HashMap<KernelChoice, HashMap<StepSizes, Rc<Specialisation>>>,
}

/// Sizes that differ from step to step, by the contract's names.
type StepSizes = Vec<(&'static str, i64)>;

/// Launches kernels: a choice, the sizes of the step, inputs.
pub type Launcher<'a> =
    dyn FnMut(&KernelChoice, &[(&'static str, i64)], &[&Array]) -> Result<Vec<Array>> + 'a;

/// Before a kernel's name where an island runner executes it.
const STAND_IN_TARGET: &str = "kernel.";

/// Steps that are remembered of a choice; decoding meets few.
const MOST_REMEMBERED: usize = 256;

/// A kernel with a launch: made once for what repeats every step.
pub struct Specialisation {
    kernel: &'static Kernel,
    /// Grid, threadgroup and outputs.
    pub launch: Launch,
    /// Shape and dtype of each input.
    inputs: Vec<(Vec<i64>, DType)>,
}

fn refused(error: KernelError, name: &str) -> Error {
    Error::Kernel {
        name: name.to_owned(),
        reason: error.to_string(),
    }
}

impl Specialisation {
    /// The launch of a kernel for sizes, parameters and dtypes, by the names of its contract.
    ///
    /// # Errors
    /// There is no such kernel, or it does not take them.
    pub fn new(
        name: &str,
        sizes: &Sizes,
        dtypes: &BTreeMap<String, DType>,
    ) -> Result<Specialisation> {
        let refuse = |error| refused(error, name);
        let kernel = kernel(name).map_err(refuse)?;
        let launch = kernel.launch(sizes, dtypes).map_err(refuse)?;
        let sizes = kernel.resolve(sizes).map_err(refuse)?;
        let mut inputs = Vec::with_capacity(kernel.contract.inputs.len());
        for input in &kernel.contract.inputs {
            let axes = input.shape.iter().map(|axis| axis_size(name, axis, &sizes));
            let dtype = kernel.dtype(&input.dtype, dtypes).map_err(refuse)?;
            inputs.push((axes.collect::<Result<_>>()?, dtype));
        }
        Ok(Specialisation {
            kernel,
            launch,
            inputs,
        })
    }

    /// Checks that the arrays are those of the contract.
    pub fn check(&self, arrays: &[&Array]) -> Result<()> {
        let contract = &self.kernel.contract;
        let wrong = |reason| Error::Kernel {
            name: contract.name.clone(),
            reason,
        };
        if arrays.len() != self.inputs.len() {
            let reason = format!("{} inputs instead of {}", arrays.len(), self.inputs.len());
            return Err(wrong(reason));
        }
        for ((input, array), (shape, of)) in contract.inputs.iter().zip(arrays).zip(&self.inputs) {
            let same = array
                .shape()
                .iter()
                .map(|size| i64::from(*size))
                .eq(shape.iter().copied());
            if !same || dtype(array) != Some(*of) {
                let found = dtype(array).map_or("another dtype", DType::name);
                return Err(wrong(format!(
                    "{} is {found}{:?} instead of {of}{shape:?}",
                    input.name,
                    array.shape()
                )));
            }
        }
        Ok(())
    }
}

fn axis_size(name: &str, axis: &Expression, sizes: &Sizes) -> Result<i64> {
    axis.value(sizes).map_err(|reason| Error::Kernel {
        name: name.to_owned(),
        reason: reason.to_string(),
    })
}

/// Launches a kernel. Without Metal, which only a test has launch anything, the kernel is run by its
/// stand-in, called as islands are: then what it reads is evaluated.
///
/// # Errors
/// As [`Kernels::chosen`] and [`Kernels::run`]; there is no stand-in, or it fails.
pub fn launch(
    mlx: &Mlx,
    owner: &Arc<Owner>,
    kernels: &mut Kernels,
    stand_in: Option<&dyn IslandRunner>,
    choice: &KernelChoice,
    step: &[(&'static str, i64)],
    inputs: &[&Array],
) -> Result<Vec<Array>> {
    let specialisation = kernels.chosen(choice, step)?;
    if mlx.device() == Device::Gpu {
        return kernels.run(mlx, &specialisation, inputs);
    }
    specialisation.check(inputs)?;
    mlx.eval(inputs.iter().copied())?;
    let target = format!("{STAND_IN_TARGET}{}", choice.name);
    let arguments = serde_json::json!({"sizes": choice.sizes(step), "dtypes": choice.dtypes});
    let count = specialisation.launch.outputs.len();
    call_out(
        mlx,
        owner,
        stand_in,
        [&target, &arguments.to_string()],
        inputs,
        count,
    )
}

impl Kernels {
    /// The specialisation of a plan's choice for such a step.
    ///
    /// # Errors
    /// As [`Specialisation::new`].
    pub fn chosen(
        &mut self,
        choice: &KernelChoice,
        step: &[(&'static str, i64)],
    ) -> Result<Rc<Specialisation>> {
        let known = self.specialisations.get(choice);
        if let Some(found) = known.and_then(|by_step| by_step.get(step)) {
            return Ok(found.clone());
        }
        let made = Specialisation::new(&choice.name, &choice.sizes(step), &choice.dtypes)?;
        let made = Rc::new(made);
        let by_step = self.specialisations.entry(choice.clone()).or_default();
        if by_step.len() >= MOST_REMEMBERED {
            by_step.clear();
        }
        by_step.insert(step.to_vec(), made.clone());
        Ok(made)
    }

    /// One launch: the kernel's outputs in its contract's order. Inputs whose strides it does not take
    /// are copied; those that must have rows of neighbours are the caller's care.
    ///
    /// # Errors
    /// An input of another shape or dtype, or MLX without Metal.
    pub fn run(
        &mut self,
        mlx: &Mlx,
        specialisation: &Specialisation,
        inputs: &[&Array],
    ) -> Result<Vec<Array>> {
        specialisation.check(inputs)?;
        let contract = &specialisation.kernel.contract;
        let mut arrays = Vec::with_capacity(inputs.len());
        for (input, array) in contract.inputs.iter().zip(inputs) {
            // MLX copies a parameter that is a view of a larger buffer, each time it is asked for a
            // contiguous one, even where it is contiguous.
            let is_free = input.strides != Strides::Contiguous
                || array.shape().is_empty()
                || is_in_place(array)?;
            arrays.push(match is_free {
                true => (*array).clone(),
                false => mlx.contiguous(array)?,
            });
        }
        let arrays: Vec<&Array> = arrays.iter().collect();
        if mlx.is_recorder() {
            return Ok(mlx.record_kernel(&contract.name, &arrays, &specialisation.launch)?);
        }
        let held = match self.held.entry(contract.name.as_str()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(MetalKernel::new(specialisation.kernel)?),
        };
        Ok(mlx.run_kernel(held, &arrays, &specialisation.launch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{cpu, floats};

    fn sizes(values: &[(&str, i64)]) -> Sizes {
        values
            .iter()
            .map(|(name, size)| ((*name).to_owned(), *size))
            .collect()
    }

    fn soft_cap(rows: i64, width: i64) -> Specialisation {
        let dtypes = BTreeMap::from([("T".to_owned(), DType::Float32)]);
        let sizes = sizes(&[("num_rows", rows), ("width", width)]);
        Specialisation::new("soft_cap", &sizes, &dtypes).unwrap()
    }

    #[test]
    fn without_metal_a_launch_is_an_error() {
        let (x, cap) = (floats(&[1.0; 24], &[2, 12]), floats(&[3.0], &[]));
        let found = Kernels::default().run(&cpu(), &soft_cap(2, 12), &[&x, &cap]);
        let error = found.err().unwrap().to_string();
        assert!(error.contains("Metal"), "{error}");
    }

    #[test]
    fn inputs_that_are_not_the_contracts_are_refused() {
        let (x, cap) = (floats(&[1.0; 24], &[3, 8]), floats(&[3.0], &[]));
        let mut kernels = Kernels::default();
        let error = |found: Result<Vec<Array>>| found.err().unwrap().to_string();
        let shape = error(kernels.run(&cpu(), &soft_cap(2, 12), &[&x, &cap]));
        assert!(
            shape.contains("x is float32[3, 8] instead of float32[2, 12]"),
            "{shape}"
        );
        let count = error(kernels.run(&cpu(), &soft_cap(3, 8), &[&x]));
        assert!(count.contains("1 inputs instead of 2"), "{count}");
        let kernel = Specialisation::new("soft_cap", &sizes(&[("width", 0)]), &BTreeMap::new());
        assert!(kernel.err().unwrap().to_string().contains("width >= 1"));
    }
}
