// SPDX-License-Identifier: Apache-2.0
//! Whole models through the public interface, from other threads than MLX's.

mod loading;
mod steps;

use super::dlpack::{Imported, into_dlpack};
use super::error::{Error, ErrorKind, Result};
use super::host::HostTensor;
use super::island::IslandRunner;
use super::memory::Limits;
use super::tensor::{Exported, Tensor};
use super::weights::{Source, required};
use super::*;
use lowering::ir::{DType, Dim, Float, Op, TensorType};
use lowering::plan::{
    AttentionLayer, Binding, Fold, GraphPlan, Instruction, PLAN_FORMAT, PLAN_VERSION, Plan, Region,
    Step, Symbol,
};
use std::collections::HashMap;
use std::sync::Arc;

const PAGES: Pages = Pages {
    num_blocks: 6,
    block_size: 4,
};
const LAYER: &str = "layers.0.attn";

fn typed(dtype: DType, shape: &[Dim]) -> TensorType {
    TensorType {
        dtype,
        shape: shape.to_vec(),
    }
}

fn tokens_by(size: i64) -> TensorType {
    typed(DType::Float32, &[Dim::symbol(0), Dim::Fixed(size)])
}

fn instruction(op: Op, inputs: &[u32], output: u32, value: TensorType) -> Instruction {
    Instruction {
        kernel: None,
        op,
        inputs: inputs.to_vec(),
        outputs: vec![output],
        types: vec![value],
        release: vec![],
    }
}

/// `attention(v, v, v)` with one head of size 2, where `v = table[ids] * (scale + scale)`; the island
/// variant lets PyTorch's stand-in add `v` first.
fn plan(island: bool) -> Plan {
    let heads = typed(
        DType::Float32,
        &[Dim::symbol(0), Dim::Fixed(1), Dim::Fixed(2)],
    );
    let mut instructions = vec![
        instruction(Op::Take { axis: 0 }, &[1, 0], 3, tokens_by(2)),
        instruction(
            Op::Binary(lowering::ir::Binary::Mul),
            &[3, 2],
            4,
            tokens_by(2),
        ),
        instruction(
            Op::Reshape {
                shape: heads.shape.clone(),
            },
            &[4],
            5,
            heads.clone(),
        ),
    ];
    if island {
        let op = Op::Island {
            target: "aten.double".into(),
            arguments: "[]".into(),
        };
        instructions[2] = instruction(op, &[4], 6, tokens_by(2));
        let op = Op::Reshape {
            shape: heads.shape.clone(),
        };
        instructions.push(instruction(op, &[6], 5, heads.clone()));
    }
    instructions[1].release = vec![3];
    let first = Region {
        num_inputs: 1,
        num_parameters: 2,
        num_registers: 7,
        fusions: vec![],
        instructions,
        outputs: vec![5],
    };
    let last = Region {
        num_inputs: 1,
        num_parameters: 0,
        num_registers: 2,
        fusions: vec![],
        instructions: vec![instruction(
            Op::Reshape {
                shape: tokens_by(2).shape,
            },
            &[0],
            1,
            tokens_by(2),
        )],
        outputs: vec![1],
    };
    let scale = typed(DType::Float32, &[Dim::Fixed(2)]);
    let parameter = |name: &str, value: TensorType| Binding {
        name: name.into(),
        value,
    };
    let backbone = GraphPlan {
        name: "backbone".into(),
        symbols: vec![Symbol {
            name: "s0".into(),
            role: "num_tokens".into(),
        }],
        inputs: vec![Binding {
            name: "input_ids".into(),
            value: typed(DType::Int64, &[Dim::symbol(0)]),
        }],
        parameters: vec![
            parameter(
                "table",
                typed(DType::Float32, &[Dim::Fixed(10), Dim::Fixed(2)]),
            ),
            parameter("scale", scale.clone()),
            parameter("fold.0", scale),
        ],
        folds: vec![Fold {
            op: Op::Binary(lowering::ir::Binary::Add),
            inputs: vec![1, 1],
            outputs: vec![2],
        }],
        regions: vec![first, last],
        steps: vec![
            Step::Call {
                region: 0,
                inputs: vec![0],
                parameters: vec![0, 2],
                outputs: vec![1],
                release: vec![0],
            },
            Step::Effect {
                op: Op::Attention { layer: 0 },
                inputs: vec![1, 1, 1],
                outputs: vec![2],
                types: vec![heads],
                release: vec![1],
            },
            Step::Call {
                region: 1,
                inputs: vec![2],
                parameters: vec![],
                outputs: vec![3],
                release: vec![2],
            },
        ],
        num_slots: 4,
        outputs: vec![3],
    };
    let mut logits = backbone.clone();
    logits.name = "logits".into();
    logits.inputs = vec![Binding {
        name: "hidden_states".into(),
        value: tokens_by(2),
    }];
    logits.folds.clear();
    logits.parameters = vec![parameter(
        "head",
        typed(DType::Float32, &[Dim::Fixed(2), Dim::Fixed(3)]),
    )];
    logits.regions = vec![Region {
        num_inputs: 1,
        num_parameters: 1,
        num_registers: 3,
        fusions: vec![],
        instructions: vec![instruction(Op::Matmul, &[0, 1], 2, tokens_by(3))],
        outputs: vec![2],
    }];
    logits.steps = vec![Step::Call {
        region: 0,
        inputs: vec![0],
        parameters: vec![0],
        outputs: vec![1],
        release: vec![0],
    }];
    (logits.num_slots, logits.outputs) = (2, vec![1]);
    let plan = Plan {
        format: PLAN_FORMAT.into(),
        version: PLAN_VERSION,
        architecture: "Test".into(),
        dtype: "float32".into(),
        layers: vec![AttentionLayer {
            scale: Float::new(0.5),
            ..AttentionLayer::decoder(LAYER, [1, 1], 2)
        }],
        state_layers: Vec::new(),
        sample: None,
        graphs: vec![backbone, logits],
    };
    Plan::from_bytes(&plan.to_bytes().unwrap()).unwrap()
}

fn runtime() -> Runtime {
    Runtime::new(Device::Cpu, Limits::default()).unwrap()
}

/// A tensor of another library: here, one that the runtime exported.
fn foreign(runtime: &Runtime, values: &[f32], shape: &[i32]) -> Imported {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    let tensor = HostTensor {
        dtype: DType::Float32,
        shape: shape.to_vec(),
        bytes,
    };
    let exported = runtime.upload(tensor).unwrap().export().unwrap();
    // SAFETY: a live tensor that nobody else takes over.
    unsafe { Imported::new(into_dlpack(exported)) }.unwrap()
}

fn table_row(id: usize) -> [f32; 2] {
    [id as f32 * 0.25 - 1.0, 0.5 - id as f32 * 0.125]
}

fn sources(runtime: &Runtime) -> HashMap<String, Source> {
    let table: Vec<f32> = (0..10).flat_map(table_row).collect();
    HashMap::from([
        (
            "table".into(),
            Source::Tensor(foreign(runtime, &table, &[10, 2])),
        ),
        (
            "scale".into(),
            Source::Tensor(foreign(runtime, &[1.0, 0.5], &[2])),
        ),
        (
            "head".into(),
            Source::Tensor(foreign(runtime, &[1., 0., 1., 0., 1., 1.], &[2, 3])),
        ),
    ])
}

fn spec(pages: Pages) -> Vec<CacheSpec> {
    vec![CacheSpec {
        layers: vec![LAYER.into()],
        pages,
        dtype: DType::Float32,
    }]
}

fn load(
    runtime: &Runtime,
    plan: Plan,
    sources: HashMap<String, Source>,
    islands: Option<Box<dyn IslandRunner>>,
) -> Result<LoadedModel> {
    let loading = runtime.begin_loading()?;
    for (path, source) in sources {
        loading.add(path, source)?;
    }
    loading.finish(plan, islands, crate::runtime::KEPT_SHAPES)
}

fn loaded(runtime: &Runtime) -> LoadedModel {
    let model = load(runtime, plan(false), sources(runtime), None).unwrap();
    assert_eq!(
        model.allocate_kv_cache(spec(PAGES), Vec::new()).unwrap(),
        7 * 4 * 4 * 4
    );
    model
}

fn ids(ids: &[i64]) -> Vec<(String, Argument<'static>)> {
    let bytes = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
    let tensor = HostTensor {
        dtype: DType::Int64,
        shape: vec![ids.len() as i32],
        bytes,
    };
    vec![("input_ids".into(), Argument::Host(tensor))]
}

/// One request in blocks 4 and 2, its tokens from `start` up to `end`, and padding.
fn request(start: usize, end: usize, padding: usize) -> Vec<LayerMetadata> {
    let blocks = [4i64, 2];
    let mut slots: Vec<i64> = (start..end)
        .map(|position| blocks[position / 4] * 4 + position as i64 % 4)
        .collect();
    slots.resize(slots.len() + padding, -1);
    let metadata = Metadata {
        block_table: vec![4, 2],
        max_blocks: 2,
        slot_mapping: slots,
        query_start_loc: vec![0, (end - start) as i32],
        seq_lens: vec![end as i32],
        num_actual_tokens: end - start,
        causal: vec![true],
        spans: vec![],
    };
    vec![(
        vec![LAYER.into(), "a layer that the plan lacks".into()],
        Requests::Attention(Arc::new(metadata)),
    )]
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let exported = tensor.export().unwrap();
    let size = exported.shape().iter().product::<i64>() as usize;
    // SAFETY: exported memory is float32, row-major, and alive.
    unsafe { std::slice::from_raw_parts(exported.data().cast::<f32>(), size) }.to_vec()
}

/// The plan's function, in float64.
fn expected(ids: &[usize]) -> Vec<[f64; 2]> {
    let v: Vec<[f64; 2]> = ids
        .iter()
        .map(|id| table_row(*id))
        .map(|[a, b]| [f64::from(a) * 2.0, f64::from(b)])
        .collect();
    (0..v.len())
        .map(|row| {
            let scores: Vec<f64> = v[..=row]
                .iter()
                .map(|key| (0.5 * (v[row][0] * key[0] + v[row][1] * key[1])).exp())
                .collect();
            let total: f64 = scores.iter().sum();
            [0, 1].map(|i| {
                scores
                    .iter()
                    .zip(&v)
                    .map(|(s, value)| s / total * value[i])
                    .sum()
            })
        })
        .collect()
}

fn assert_close(found: &[f32], expected: &[[f64; 2]]) {
    let expected: Vec<f64> = expected.iter().flatten().copied().collect();
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(&expected) {
        assert!((f64::from(*a) - b).abs() < 1e-6, "{found:?} {expected:?}");
    }
}
