// SPDX-License-Identifier: Apache-2.0
//! Whole models through the public interface, from other threads than MLX's.

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
        instructions,
        outputs: vec![5],
    };
    let last = Region {
        num_inputs: 1,
        num_parameters: 0,
        num_registers: 2,
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
            name: LAYER.into(),
            num_heads: 1,
            num_kv_heads: 1,
            head_size: 2,
            head_size_v: 2,
            scale: Float::new(0.5),
            sliding_window: None,
            logits_soft_cap: None,
            alibi_slopes: None,
            sinks: None,
            attn_type: "decoder".into(),
            kv_sharing_target: None,
        }],
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

fn loaded(runtime: &Runtime) -> LoadedModel {
    let model = runtime.load(plan(false), sources(runtime), None).unwrap();
    assert_eq!(model.allocate_kv_cache(spec(PAGES)).unwrap(), 7 * 4 * 4 * 4);
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
        Arc::new(metadata),
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

const IDS: [usize; 6] = [3, 1, 9, 0, 4, 7];

#[test]
fn a_request_in_chunks_equals_the_definition() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let expected = expected(&IDS);
    let step = |tokens: &[i64], metadata| model.run("backbone", ids(tokens), metadata).unwrap();
    let first = step(&[3, 1, 9, 0, 5, 5], request(0, 3, 3)).remove(0);
    assert_eq!(first.shape(), [6, 2]);
    // The first step is still lazy here: the second one settles it.
    let second = step(&[0, 4], request(3, 5, 0)).remove(0);
    let third = step(&[7], request(5, 6, 0)).remove(0);
    assert_close(&floats(&first.head(3).unwrap()), &expected[..3]);
    assert_close(&floats(&second), &expected[3..5]);
    assert_close(&floats(&third), &expected[5..]);
    let logits = model
        .logits(&second, Some(vec![1, 0, 1]))
        .unwrap()
        .remove(0);
    let rows = [expected[4], expected[3], expected[4]];
    let products: Vec<f64> = rows.iter().flat_map(|[a, b]| [*a, *b, a + b]).collect();
    for (found, expected) in floats(&logits).iter().zip(products) {
        assert!((f64::from(*found) - expected).abs() < 1e-6);
    }
}

#[test]
fn a_step_updates_the_cache_in_place_and_padding_goes_to_the_dump_block() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let before = model.cache_address(LAYER).unwrap();
    for (start, id) in IDS.iter().enumerate() {
        let output = model
            .run(
                "backbone",
                ids(&[*id as i64, 8]),
                request(start, start + 1, 1),
            )
            .unwrap();
        let logits = model.logits(&output[0], Some(vec![0])).unwrap();
        assert_eq!(floats(&logits[0]).len(), 3);
        assert_eq!(
            model.cache_address(LAYER).unwrap(),
            before,
            "step {start} copied the cache"
        );
    }

    let rows = model.cache_rows(LAYER).unwrap();
    assert_eq!(rows.shape, [28, 1, 4]);
    let rows: Vec<f32> = rows
        .bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| f32::from_ne_bytes(*word))
        .collect();
    let row = |slot: usize| &rows[slot * 4..][..4];
    let value = |id: usize| {
        let [a, b] = table_row(id);
        [a * 2.0, b, a * 2.0, b]
    };
    for (position, id) in IDS.iter().enumerate() {
        assert_eq!(row([4, 2][position / 4] * 4 + position % 4), value(*id));
    }
    assert_eq!(row(24), value(8), "padding is written to the dump block");
    for untouched in (0..28).filter(|slot| ![8, 9, 16, 17, 18, 19, 24].contains(slot)) {
        assert_eq!(row(untouched), [0.0; 4], "slot {untouched}");
    }
}

#[test]
fn what_is_out_of_range_is_refused_before_anything_changes() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let error = |inputs, metadata| {
        let error: Error = model.run("backbone", inputs, metadata).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        error.to_string()
    };
    let before = model.cache_rows(LAYER).unwrap();
    assert!(
        error(ids(&[10]), request(0, 1, 0)).contains("element 0 is 10, and it must be from 0 to 9")
    );
    assert!(error(ids(&[0, -1]), request(0, 2, 0)).contains("element 1 is -1"));
    let mut wrong = request(0, 1, 0);
    Arc::make_mut(&mut wrong[0].1).slot_mapping[0] = 24;
    assert!(error(ids(&[1]), wrong).contains("slot 24, and the cache has 24 slots"));
    assert!(error(ids(&[1]), request(0, 2, 0)).contains("2 of 1 tokens"));
    assert!(error(ids(&[1]), vec![]).contains("none is given for layer \"layers.0.attn\""));
    assert!(error(vec![], request(0, 1, 0)).contains("input \"input_ids\" is missing"));
    let mut extra = ids(&[1]);
    extra.push((
        "more".into(),
        Argument::Host(HostTensor {
            dtype: DType::Bool,
            shape: vec![0],
            bytes: vec![],
        }),
    ));
    assert!(error(extra, request(0, 1, 0)).contains("there is no input \"more\""));
    let floats = HostTensor {
        dtype: DType::Float32,
        shape: vec![1],
        bytes: vec![0; 4],
    };
    let wrong = vec![("input_ids".into(), Argument::Host(floats))];
    assert!(error(wrong, request(0, 1, 0)).contains("integers expected and float32 given"));
    assert!(
        model
            .run("nothing", vec![], vec![])
            .err()
            .unwrap()
            .to_string()
            .contains("[\"backbone\", \"logits\"]")
    );
    assert_eq!(model.cache_rows(LAYER).unwrap(), before);
    let good = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    assert_close(&self::floats(&good[0]), &expected(&[3]));
    assert!(
        good[0]
            .rows(vec![1])
            .err()
            .unwrap()
            .to_string()
            .contains("row 1 of a tensor with 1 rows")
    );
    assert!(good[0].head(2).is_err());
    assert!(model.logits(&good[0], Some(vec![-1])).is_err());
}

#[test]
fn parameters_are_checked_and_weights_are_not_copied() {
    let runtime = runtime();
    assert_eq!(required(&plan(false)), ["head", "scale", "table"]);
    let report = loaded(&runtime).report;
    assert_eq!(
        (
            report.parameters,
            report.borrowed_bytes,
            report.copied_bytes
        ),
        (3, 112, 0)
    );
    assert_eq!(report.folded_bytes, 8);

    let load = |change: &dyn Fn(&mut HashMap<String, Source>)| {
        let mut sources = sources(&runtime);
        change(&mut sources);
        runtime
            .load(plan(false), sources, None)
            .err()
            .unwrap()
            .to_string()
    };
    let missing = load(&|sources| drop(sources.remove("table")));
    assert_eq!(
        missing,
        "parameter \"table\": it is missing from the checkpoint"
    );
    let wrong = load(&|sources| {
        let tensor = foreign(&runtime, &[0.0; 6], &[2, 3]);
        sources.insert("table".into(), Source::Tensor(tensor));
    });
    assert_eq!(
        wrong,
        "parameter \"table\": expected float32[10,2], found float32[2, 3]"
    );
}

#[test]
fn a_cache_that_cannot_be_is_refused() {
    let runtime = runtime();
    let model = runtime.load(plan(false), sources(&runtime), None).unwrap();
    let run = model.run("backbone", ids(&[1]), request(0, 1, 0));
    assert!(run.err().unwrap().to_string().contains("allocate it first"));
    let refused = |specs: Vec<CacheSpec>| model.allocate_kv_cache(specs).unwrap_err();
    let huge = refused(spec(Pages {
        num_blocks: 1 << 24,
        block_size: 100,
    }));
    assert_eq!(huge.kind(), ErrorKind::Memory, "{huge}");
    assert!(huge.to_string().contains("allocate fewer blocks"));
    for (specs, part) in [
        (
            spec(Pages {
                num_blocks: 0,
                block_size: 4,
            }),
            "0 blocks of 4 tokens",
        ),
        (
            spec(Pages {
                num_blocks: usize::MAX / 8,
                block_size: 4,
            }),
            "are too many",
        ),
        ([spec(PAGES), spec(PAGES)].concat(), "is given twice"),
        (
            vec![CacheSpec {
                layers: vec!["?".into()],
                pages: PAGES,
                dtype: DType::Float32,
            }],
            "no layer \"?\"",
        ),
    ] {
        let error = refused(specs);
        assert!(
            error.kind() == ErrorKind::BadInput && error.to_string().contains(part),
            "{error}"
        );
    }
}

/// Doubles its operand, as PyTorch would.
struct Doubling;

impl IslandRunner for Doubling {
    fn run(&self, target: &str, _: &str, mut operands: Vec<Exported>) -> Result<Vec<Imported>> {
        assert_eq!(target, "aten.double");
        let operand = operands.remove(0);
        let size = operand.shape().iter().product::<i64>() as usize;
        // SAFETY: exported memory is float32, row-major and alive, and nothing else reads it.
        let values = unsafe { std::slice::from_raw_parts_mut(operand.data().cast::<f32>(), size) };
        values.iter_mut().for_each(|value| *value *= 2.0);
        // SAFETY: a live tensor that nobody else takes over.
        Ok(vec![unsafe { Imported::new(into_dlpack(operand)) }?])
    }
}

#[test]
fn an_island_runs_between_lowered_nodes() {
    let runtime = runtime();
    let model = runtime
        .load(plan(true), sources(&runtime), Some(Box::new(Doubling)))
        .unwrap();
    model.allocate_kv_cache(spec(PAGES)).unwrap();
    let output = model.run("backbone", ids(&[6]), request(0, 1, 0)).unwrap();
    let [a, b] = table_row(6);
    assert_eq!(floats(&output[0]), [a * 4.0, b * 2.0]);

    let none = runtime.load(plan(true), sources(&runtime), None).unwrap();
    none.allocate_kv_cache(spec(PAGES)).unwrap();
    let error = none
        .run("backbone", ids(&[6]), request(0, 1, 0))
        .err()
        .unwrap()
        .to_string();
    assert_eq!(
        error,
        "graph \"backbone\", step 0, region 0, instruction 2, island: island aten.double: no runner was given at load"
    );
}

#[test]
fn tensors_dropped_in_another_thread_free_their_arrays() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let lazy = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    let computed = model.run("backbone", ids(&[4]), request(0, 1, 0)).unwrap();
    let exported = computed[0].export().unwrap();
    assert_eq!(runtime.num_tensors().unwrap(), 2);
    std::thread::spawn(move || drop((lazy, computed, exported)))
        .join()
        .unwrap();
    assert_eq!(runtime.num_tensors().unwrap(), 0);
}

#[test]
fn exported_memory_outlives_the_runtime_and_later_calls_fail() {
    let runtime = runtime();
    let model = loaded(&runtime);
    let output = model.run("backbone", ids(&[3]), request(0, 1, 0)).unwrap();
    let exported = output[0].export().unwrap();
    runtime.close();
    // SAFETY: exported memory is two float32, and alive.
    let found = unsafe { std::slice::from_raw_parts(exported.data().cast::<f32>(), 2) };
    assert_close(found, &expected(&[3]));
    drop(exported);
    let error = model
        .run("backbone", ids(&[3]), request(0, 1, 0))
        .err()
        .unwrap();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Failure, "the runtime is closed")
    );
    assert!(matches!(output[0].export().err().unwrap(), Error::Closed));
}
