// SPDX-License-Identifier: Apache-2.0
//! Which instructions a Metal kernel computes in fewer launches. The instruction stays beside the
//! choice: it is the reference, and what runs without Metal or where the kernel's self-check failed.

use super::{AttentionLayer, Instruction, Plan, Region};
use crate::ir::{Activation, DType, Op, TensorType};
use crate::kernels::{KernelError, Launch, Sizes, kernel};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A kernel of the registry with the sizes and parameters of its contract that the plan fixes; what
/// differs from step to step, such as the number of rows, is the step's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelChoice {
    pub name: String,
    pub sizes: BTreeMap<String, i64>,
    pub dtypes: BTreeMap<String, DType>,
}

/// The least step of a kernel that works row by row.
const ONE_ROW: [(&str, i64); 1] = [("num_rows", 1)];

impl KernelChoice {
    /// A choice; contracts say which names there are.
    pub(super) fn new(name: &str, sizes: &[(&str, i64)], dtypes: &[(&str, DType)]) -> KernelChoice {
        let sizes = sizes.iter().map(|(name, size)| ((*name).to_owned(), *size));
        let dtypes = dtypes.iter().map(|(name, of)| ((*name).to_owned(), *of));
        KernelChoice {
            name: name.to_owned(),
            sizes: sizes.collect(),
            dtypes: dtypes.collect(),
        }
    }

    /// All sizes of a launch in a step of such sizes.
    pub fn sizes(&self, step: &[(&str, i64)]) -> Sizes {
        let mut sizes = self.sizes.clone();
        sizes.extend(step.iter().map(|(name, size)| ((*name).to_owned(), *size)));
        sizes
    }

    /// The launch in a step of such sizes.
    ///
    /// # Errors
    /// There is no such kernel, or its contract takes no such sizes or dtypes.
    pub fn launch(&self, step: &[(&str, i64)]) -> Result<Launch, KernelError> {
        kernel(&self.name)?.launch(&self.sizes(step), &self.dtypes)
    }

    /// Whether the kernel stands for such an instruction.
    pub(super) fn fits(&self, op: &Op) -> bool {
        let name = match op {
            Op::AddRmsNorm { .. } | Op::RmsNorm { .. } => "rms_norm",
            Op::LayerNorm { .. } | Op::AddLayerNorm { .. } => "layer_norm",
            Op::GatedActivation { .. } => "gated_activation",
            _ => return false,
        };
        self.name == name && self.launch(&ONE_ROW).is_ok()
    }
}

/// The kernel for an operator on such operands, where its contract takes them and it launches less
/// than the reference: both results of add + either norm at once, a norm whose weight is wider than its
/// input, a layer norm of halves, which the reference casts, a gate and its product. Another norm is
/// one launch of MLX's already.
pub fn choose(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Option<KernelChoice> {
    let (x, result) = (operands.first()?, results.first()?);
    let (dtype, width) = (x.dtype, x.shape.last()?.fixed()?);
    let vector = |of: &&TensorType| of.shape.as_slice() == &x.shape[x.shape.len() - 1..];
    let norm = |has_residual: i64, rounded_sum: bool, weight: Option<&&TensorType>| {
        let weight_dtype = weight.map_or(dtype, |weight| weight.dtype);
        let takes = weight_dtype == dtype || weight_dtype == DType::Float32;
        (takes && weight.is_none_or(vector)).then(|| {
            let sizes = [
                ("width", width),
                ("has_residual", has_residual),
                ("rounded_sum", i64::from(rounded_sum)),
                ("has_weight", i64::from(weight.is_some())),
            ];
            KernelChoice::new("rms_norm", &sizes, &[("T", dtype), ("W", weight_dtype)])
        })
    };
    let layer_norm = |has_residual: i64, parameters: &[&TensorType]| {
        let weight_dtype = parameters.first().map_or(dtype, |weight| weight.dtype);
        let mut all = parameters.iter();
        let takes = weight_dtype == dtype || weight_dtype == DType::Float32;
        let same = all.all(|of| of.dtype == weight_dtype && vector(of));
        (takes && same).then(|| {
            let sizes = [
                ("width", width),
                ("has_residual", has_residual),
                ("rounded_sum", has_residual),
                ("has_weight", i64::from(!parameters.is_empty())),
                ("has_bias", i64::from(parameters.len() > 1)),
            ];
            KernelChoice::new("layer_norm", &sizes, &[("T", dtype), ("W", weight_dtype)])
        })
    };
    let choice = match op {
        Op::LayerNorm { .. } if dtype.is_half() && operands.len() > 1 && *result == **x => {
            layer_norm(0, &operands[1..])?
        }
        Op::AddLayerNorm { .. } => {
            let same = |of: &TensorType| of == *x;
            let all_same = operands.get(1).is_some_and(|residual| same(residual));
            if !all_same || !results.iter().all(same) {
                return None;
            }
            layer_norm(1, &operands[2..])?
        }
        Op::AddRmsNorm { rounded_sum, .. } => {
            let same = |of: &TensorType| of.dtype == dtype && of.shape == x.shape;
            let all_same = operands.get(1).is_some_and(|residual| same(residual));
            if !all_same || !results.iter().all(same) {
                return None;
            }
            norm(1, *rounded_sum, operands.get(2))?
        }
        Op::RmsNorm { .. } => {
            let weight = operands.get(1).filter(|weight| weight.dtype != dtype)?;
            if *result != **x {
                return None;
            }
            norm(0, true, Some(weight))?
        }
        Op::GatedActivation { activation } if operands.len() == 1 => {
            let function = match activation {
                Activation::Silu => 0,
                Activation::Gelu => 1,
                Activation::GeluTanh => 2,
                Activation::Relu => 3,
                Activation::Swish { .. } => return None,
            };
            if result.dtype != dtype || width % 2 != 0 {
                return None;
            }
            let sizes = [("width", width / 2), ("function", function)];
            KernelChoice::new("gated_activation", &sizes, &[("T", dtype)])
        }
        _ => return None,
    };
    choice.launch(&ONE_ROW).is_ok().then_some(choice)
}

impl Region {
    /// The name of the kernel that can compute an instruction, alone or with others.
    pub fn kernel_at(&self, position: usize) -> Option<&str> {
        let fusion = self.fusions.iter().find(|fusion| fusion.covers(position));
        let own = self.instructions.get(position)?.kernel.as_ref();
        let kernel = fusion.map(|fusion| &fusion.kernel).or(own);
        kernel.map(|kernel| kernel.name.as_str())
    }
}

impl AttentionLayer {
    /// The kernels that the plan chose.
    fn kernels(&self) -> impl Iterator<Item = &KernelChoice> {
        self.kernel.iter().chain(&self.prefill)
    }
}

impl Plan {
    /// Names of the kernels that can compute an effect: in steps that decode, and of prompts.
    pub fn kernels_of(&self, op: &Op) -> Vec<&str> {
        let Op::Attention { layer } = op else {
            return Vec::new();
        };
        let layer = self.layers.get(*layer as usize);
        let kernels = layer.into_iter().flat_map(AttentionLayer::kernels);
        kernels.map(|kernel| kernel.name.as_str()).collect()
    }

    fn instructions(&mut self) -> impl Iterator<Item = &mut Instruction> {
        let regions = self.graphs.iter_mut().flat_map(|graph| &mut graph.regions);
        regions.flat_map(|region| &mut region.instructions)
    }

    /// Every kernel that the plan can use, once.
    pub fn kernels(&self) -> BTreeSet<KernelChoice> {
        let regions = || self.graphs.iter().flat_map(|graph| &graph.regions);
        let fusions = regions().flat_map(|region| &region.fusions);
        let fusions = fusions.map(|fusion| fusion.kernel.clone());
        let instructions = regions().flat_map(|region| &region.instructions);
        let of_instructions = instructions.filter_map(|instruction| instruction.kernel.clone());
        let of_layers = self
            .layers
            .iter()
            .flat_map(AttentionLayer::kernels)
            .cloned();
        let all = of_instructions.chain(of_layers).chain(fusions);
        all.chain(self.sample.clone()).collect()
    }

    /// Leaves only these kernels: the rest of the instructions and layers run as their references.
    pub fn keep_kernels(&mut self, usable: &BTreeSet<KernelChoice>) {
        let keep = |kernel: &mut Option<KernelChoice>| {
            *kernel = kernel.take().filter(|choice| usable.contains(choice));
        };
        for layer in &mut self.layers {
            keep(&mut layer.kernel);
            keep(&mut layer.prefill);
        }
        keep(&mut self.sample);
        self.instructions()
            .for_each(|instruction| keep(&mut instruction.kernel));
        let regions = self.graphs.iter_mut().flat_map(|graph| &mut graph.regions);
        for region in regions {
            region
                .fusions
                .retain(|fusion| usable.contains(&fusion.kernel));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Dim, Float};

    fn of(dtype: DType, shape: &[i64]) -> TensorType {
        let shape = shape.iter().copied().map(|size| match size {
            0 => Dim::symbol(0),
            size => Dim::Fixed(size),
        });
        TensorType {
            dtype,
            shape: shape.collect(),
        }
    }

    fn add_norm() -> Op {
        Op::AddRmsNorm {
            eps: Float::new(1e-6),
            rounded_sum: false,
        }
    }

    #[test]
    fn what_a_contract_takes_gets_its_kernel() {
        let (x, weight) = (of(DType::Bfloat16, &[0, 200]), of(DType::Float32, &[200]));
        let found = choose(&add_norm(), &[&x, &x, &weight], &[x.clone(), x.clone()]).unwrap();
        assert_eq!(found.name, "rms_norm");
        assert_eq!(found.sizes["width"], 200);
        assert_eq!(found.sizes["rounded_sum"], 0);
        assert_eq!(found.dtypes["W"], DType::Float32);
        assert!(found.fits(&add_norm()) && !found.fits(&Op::Matmul));
        assert_eq!(
            found.launch(&[("num_rows", 3)]).unwrap().grid,
            [3 * 64, 1, 1]
        );

        let activation = Activation::GeluTanh;
        let (merged, half) = (of(DType::Float16, &[0, 64]), of(DType::Float16, &[0, 32]));
        let found = choose(&Op::GatedActivation { activation }, &[&merged], &[half]).unwrap();
        assert_eq!((found.sizes["width"], found.sizes["function"]), (32, 2));
    }

    #[test]
    fn a_sum_and_its_layer_norm_are_one_launch() {
        let op = Op::AddLayerNorm {
            eps: Float::new(1e-6),
        };
        let (x, weight) = (of(DType::Float32, &[0, 200]), of(DType::Float32, &[200]));
        let results = [x.clone(), x.clone()];
        let chosen = |operands: &[&TensorType]| choose(&op, operands, &results);
        let found = chosen(&[&x, &x, &weight, &weight]).unwrap();
        assert_eq!(found.name, "layer_norm");
        assert_eq!(
            (found.sizes["has_residual"], found.sizes["has_bias"]),
            (1, 1)
        );
        assert!(found.fits(&op));
        let found = chosen(&[&x, &x]).unwrap();
        assert_eq!((found.sizes["has_weight"], found.sizes["has_bias"]), (0, 0));
        // A residual of another shape, a weight of a third dtype, a bias of another dtype than it.
        assert_eq!(chosen(&[&x, &weight]), None);
        let half = of(DType::Float16, &[200]);
        assert_eq!(chosen(&[&x, &x, &half, &half]), None);
        assert_eq!(chosen(&[&x, &x, &weight, &half]), None);
    }

    #[test]
    fn what_it_does_not_take_stays_with_the_reference() {
        let x = of(DType::Float16, &[0, 200]);
        let results = [x.clone(), x.clone()];
        // A residual of another dtype or shape, a weight of a third dtype, a row too wide.
        for residual in [of(DType::Float32, &[0, 200]), of(DType::Float16, &[1, 200])] {
            assert_eq!(choose(&add_norm(), &[&x, &residual], &results), None);
        }
        let weight = of(DType::Bfloat16, &[200]);
        assert_eq!(choose(&add_norm(), &[&x, &x, &weight], &results), None);
        let wide = of(DType::Float16, &[0, 40000]);
        let both = [wide.clone(), wide.clone()];
        assert_eq!(choose(&add_norm(), &[&wide, &wide], &both), None);
        // One launch of MLX's already; a gate that is no half of a row; a function it has not.
        let norm = Op::RmsNorm {
            eps: Float::new(1e-6),
        };
        let own = of(DType::Float16, &[200]);
        assert_eq!(choose(&norm, &[&x, &own], &results[..1]), None);
        let activation = Activation::Silu;
        assert_eq!(
            choose(
                &Op::GatedActivation { activation },
                &[&x, &x],
                &results[..1]
            ),
            None
        );
        let activation = Activation::Swish {
            alpha: Float::new(1.7),
        };
        let half = [of(DType::Float16, &[0, 100])];
        assert_eq!(
            choose(&Op::GatedActivation { activation }, &[&x], &half),
            None
        );
    }
}
