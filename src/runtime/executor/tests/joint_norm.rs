// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::runtime::error::Result;
use crate::runtime::executor::{Effects, Graph, joint_norm};
use lowering::ir::Recurrence;
use lowering::plan::{Binding, GraphPlan, Instruction, KernelChoice, Region, Step};

/// Of a graph that has none.
struct NoEffects;

impl Effects for NoEffects {
    fn attention(&mut self, _: u32, _: &Array, _: &[&Array], _: Option<&Array>) -> Result<Array> {
        unreachable!()
    }

    fn select_keys(&mut self, _: u32, _: i64, _: [&Array; 3]) -> Result<Array> {
        unreachable!()
    }

    fn recurrence(&mut self, _: Recurrence, _: u32, _: u32, _: &[&Array]) -> Result<Array> {
        unreachable!()
    }

    fn kernel(
        &mut self,
        _: &KernelChoice,
        _: &[(&'static str, i64)],
        _: &[&Array],
    ) -> Result<Vec<Array>> {
        unreachable!()
    }

    fn island(&mut self, _: &str, _: &str, _: &[&Array], _: &[TensorType]) -> Result<Vec<Array>> {
        unreachable!()
    }
}

const SHAPES: [[i32; 3]; 2] = [[3, 4, 8], [3, 2, 8]];

/// `rope(rms_norm(q, w_q), rms_norm(k, w_k))`; the norms are results, too, where they must stay apart.
fn plan(dtype: DType, key_eps: f64, apart: bool) -> GraphPlan {
    let typed = |shape: &[i32]| fixed(dtype, shape);
    let bind = |name: &str, shape: &[i32]| Binding {
        name: name.to_owned(),
        value: typed(shape),
    };
    let norm = |eps: f64, inputs: [u32; 2], output: u32, shape: &[i32]| Instruction {
        op: Op::RmsNorm {
            eps: Float::new(eps),
        },
        kernel: None,
        inputs: inputs.to_vec(),
        outputs: vec![output],
        types: vec![typed(shape)],
        release: vec![inputs[0]],
    };
    let rope = Instruction {
        op: Op::Rope {
            style: RopeStyle::Neox,
            rotary_dim: 8,
        },
        kernel: None,
        inputs: vec![0, 1, 6, 7],
        outputs: vec![8, 9],
        types: SHAPES.map(|shape| typed(&shape)).to_vec(),
        release: vec![],
    };
    let outputs = if apart { vec![8, 9, 6, 7] } else { vec![8, 9] };
    GraphPlan {
        name: "graph".to_owned(),
        symbols: vec![],
        inputs: vec![
            bind("cos", &[3, 4]),
            bind("sin", &[3, 4]),
            bind("q", &SHAPES[0]),
            bind("k", &SHAPES[1]),
        ],
        parameters: vec![bind("w_q", &[8]), bind("w_k", &[8])],
        folds: vec![],
        regions: vec![Region {
            num_inputs: 4,
            num_parameters: 2,
            num_registers: 10,
            fusions: vec![],
            instructions: vec![
                norm(1e-6, [2, 4], 6, &SHAPES[0]),
                norm(key_eps, [3, 5], 7, &SHAPES[1]),
                rope,
            ],
            outputs: outputs.clone(),
        }],
        steps: vec![Step::Call {
            region: 0,
            inputs: vec![0, 1, 2, 3],
            parameters: vec![0, 1],
            outputs: (4..4 + outputs.len() as u32).collect(),
            release: vec![],
        }],
        num_slots: 4 + outputs.len() as u32,
        outputs: vec![4, 5],
    }
}

/// Both rotated operands, and how many pairs of norms were joined.
fn rotated(mlx: &Mlx, dtype: DType, key_eps: f64, apart: bool) -> (Vec<Vec<f64>>, usize) {
    let mut random = Random(7);
    let mut drawn = |shape: &[i32]| {
        let count = shape.iter().product::<i32>() as usize;
        half(mlx, &floats(&random.units(count), shape), dtype)
    };
    let inputs = [&[3, 4][..], &[3, 4], &SHAPES[0], &SHAPES[1]].map(&mut drawn);
    let parameters = vec![drawn(&[8]), drawn(&[8])];
    let plan = plan(dtype, key_eps, apart);
    let found = joint_norm::find(mlx, &plan.regions[0], |index| {
        parameters.get(index as usize)
    });
    let joined = found.unwrap().len();
    let graph = Graph::new(mlx, plan, parameters).unwrap();
    let outputs = graph
        .run(mlx, &[], inputs.to_vec(), &mut NoEffects)
        .unwrap();
    let outputs = outputs.iter().map(|output| values(mlx, output));
    (outputs.collect(), joined)
}

#[test]
fn norms_of_queries_and_keys_are_taken_at_once_and_give_the_same() {
    let mlx = &cpu();
    for dtype in [DType::Float32, DType::Float16, DType::Bfloat16] {
        let (found, joined) = rotated(mlx, dtype, 1e-6, false);
        let (expected, alone) = rotated(mlx, dtype, 1e-6, true);
        assert_eq!((joined, alone), (1, 0));
        assert_eq!(found, expected, "{dtype:?}");
    }
}

#[test]
fn norms_with_another_eps_stay_apart() {
    let mlx = &cpu();
    let (found, joined) = rotated(mlx, DType::Float32, 1e-2, false);
    assert_eq!(joined, 0);
    assert_eq!(found, rotated(mlx, DType::Float32, 1e-2, true).0);
}
