// SPDX-License-Identifier: Apache-2.0
//! Attention against loops in float64, over random ragged batches.

use super::*;
use crate::runtime::mlx::{Array, Mlx};
use crate::runtime::testing::{Random, cpu, difference, floats, values};
use lowering::ir::{DType, Float};
use lowering::plan::AttentionLayer;

mod select;

const BLOCK: usize = 4;
const NUM_BLOCKS: usize = 64;

#[derive(Clone)]
struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    size: usize,
    value_size: usize,
    window: Option<i64>,
    soft_cap: Option<f64>,
    alibi: bool,
    /// Whether by the square root of the distance.
    sqrt: bool,
    sinks: bool,
    causal: bool,
    encoder: bool,
    /// Whether the first request has an image at positions 2 to 6.
    span: bool,
}

const PLAIN: Case = Case {
    name: "plain",
    heads: 4,
    kv_heads: 2,
    size: 8,
    value_size: 8,
    window: None,
    soft_cap: None,
    alibi: false,
    sqrt: false,
    sinks: false,
    causal: true,
    encoder: false,
    span: false,
};

fn plan(case: &Case) -> AttentionLayer {
    let heads = [case.heads as i64, case.kv_heads as i64];
    let slopes = (0..case.heads).map(|head| Float::new(0.5f64.powi(head as i32 + 1)));
    let attn_type = if case.encoder {
        "encoder_only"
    } else {
        "decoder"
    };
    AttentionLayer {
        head_size_v: case.value_size as i64,
        scale: Float::new(0.7),
        sliding_window: case.window,
        logits_soft_cap: case.soft_cap.map(Float::new),
        alibi_sqrt: case.sqrt,
        alibi_slopes: case.alibi.then(|| slopes.collect()),
        sinks: case.sinks.then(|| "sinks".into()),
        attn_type: attn_type.into(),
        ..AttentionLayer::decoder("model.layers.0.attn", heads, case.size as i64)
    }
}

/// A step with its tensors, and every request's whole history of keys and values.
struct Step {
    metadata: Metadata,
    num_tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Per request: rows of keys, rows of values, oldest first.
    history: Vec<(Vec<f32>, Vec<f32>)>,
    cache: Vec<f32>,
}

/// `lengths` are (tokens of the step, tokens before).
fn step(case: &Case, random: &mut Random, lengths: &[(usize, usize)], padding: usize) -> Step {
    let (key, value) = (case.kv_heads * case.size, case.kv_heads * case.value_size);
    let row = key + value;
    let mut free: Vec<i32> = (0..NUM_BLOCKS as i32).collect();
    for index in (1..free.len()).rev() {
        free.swap(index, random.below(index + 1));
    }
    // What no request wrote is NaN: reading it shows.
    let mut cache = vec![f32::NAN; (NUM_BLOCKS + 1) * BLOCK * row];
    let max_blocks = lengths
        .iter()
        .map(|(new, old)| (new + old).div_ceil(BLOCK))
        .max()
        .unwrap_or(0);
    let mut metadata = Metadata {
        max_blocks,
        query_start_loc: vec![0],
        causal: vec![case.causal; lengths.len()],
        ..Metadata::default()
    };
    let (mut k, mut v, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (new, old) in lengths {
        let blocks: Vec<i32> = (0..max_blocks)
            .map(|index| {
                if index < (new + old).div_ceil(BLOCK) {
                    free.pop().unwrap()
                } else {
                    -7
                }
            })
            .collect();
        let keys = random.units((new + old) * key);
        let all_values = random.units((new + old) * value);
        for position in 0..new + old {
            let slot = blocks[position / BLOCK] as usize * BLOCK + position % BLOCK;
            if position >= *old {
                metadata.slot_mapping.push(slot as i64);
                continue;
            }
            for head in 0..case.kv_heads {
                let start = slot * row + head * (case.size + case.value_size);
                let from = position * key + head * case.size;
                cache[start..][..case.size].copy_from_slice(&keys[from..][..case.size]);
                let from = position * value + head * case.value_size;
                cache[start + case.size..][..case.value_size]
                    .copy_from_slice(&all_values[from..][..case.value_size]);
            }
        }
        k.extend_from_slice(&keys[old * key..]);
        v.extend_from_slice(&all_values[old * value..]);
        metadata.block_table.extend(blocks);
        metadata.seq_lens.push((new + old) as i32);
        let start = metadata.query_start_loc[metadata.query_start_loc.len() - 1];
        metadata.query_start_loc.push(start + *new as i32);
        history.push((keys, all_values));
    }
    if case.span && metadata.seq_lens.first().is_some_and(|length| *length > 6) {
        metadata.spans.push((0, 2, 6));
    }
    metadata.num_actual_tokens = metadata.slot_mapping.len();
    let num_tokens = metadata.num_actual_tokens + padding;
    metadata.slot_mapping.resize(num_tokens, -1);
    k.resize(num_tokens * key, f32::NAN);
    v.resize(num_tokens * value, f32::NAN);
    let mut q = random.units(metadata.num_actual_tokens * case.heads * case.size);
    q.resize(num_tokens * case.heads * case.size, f32::NAN);
    Step {
        metadata,
        num_tokens,
        q,
        k,
        v,
        history,
        cache,
    }
}

/// For each token of the step, padding included, the positions that it attends to; -1 is none.
type Selected = Vec<Vec<i32>>;

/// int32 `[rows, columns]`
fn integers(rows: &[Vec<i32>]) -> Array {
    let shape = [rows.len() as i32, rows[0].len() as i32];
    let bytes: Vec<u8> = rows
        .iter()
        .flatten()
        .flat_map(|x| x.to_ne_bytes())
        .collect();
    crate::runtime::mlx::host_array(&bytes, &shape, DType::Int32).unwrap()
}

/// The definition, token by token.
fn expected(case: &Case, step: &Step, sinks: &[f32], selected: Option<&Selected>) -> Vec<f64> {
    let plan = plan(case);
    let mut result = Vec::new();
    for (request, (keys, all_values)) in step.history.iter().enumerate() {
        let length = step.metadata.seq_lens[request] as usize;
        let rows = step.metadata.rows(request);
        for row in rows.clone() {
            let position = length - rows.len() + row - rows.start;
            for head in 0..case.heads {
                let kv_head = head * case.kv_heads / case.heads;
                let query = &step.q[(row * case.heads + head) * case.size..][..case.size];
                let mut scores = Vec::new();
                for other in 0..length {
                    let distance = position.abs_diff(other) as i64;
                    let seen = (other <= position || !case.causal || case.encoder)
                        && plan.sliding_window.is_none_or(|window| distance < window);
                    let together = step.metadata.spans.iter().any(|(of, first, last)| {
                        let span = *first..=*last;
                        *of == request && span.contains(&position) && span.contains(&other)
                    });
                    let named = selected.is_none_or(|rows| rows[row].contains(&(other as i32)));
                    if !(seen || together) || !named {
                        continue;
                    }
                    let key = &keys[(other * case.kv_heads + kv_head) * case.size..][..case.size];
                    let dot: f64 = query
                        .iter()
                        .zip(key)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum();
                    let mut score = dot * plan.scale.get();
                    if let Some(cap) = case.soft_cap {
                        score = cap * (score / cap).tanh();
                    }
                    if let Some(slopes) = &plan.alibi_slopes {
                        let distance = match case.sqrt {
                            true => -(distance as f64).sqrt(),
                            false => other as f64 - position as f64,
                        };
                        score += slopes[head].get() * distance;
                    }
                    scores.push((other, score));
                }
                let sink = case.sinks.then(|| f64::from(sinks[head]));
                let most = scores
                    .iter()
                    .map(|(_, score)| *score)
                    .chain(sink)
                    .fold(f64::MIN, f64::max);
                let total: f64 = scores
                    .iter()
                    .map(|(_, score)| *score)
                    .chain(sink)
                    .map(|s| (s - most).exp())
                    .sum();
                for element in 0..case.value_size {
                    let weighted = scores.iter().map(|(other, score)| {
                        let index = (other * case.kv_heads + kv_head) * case.value_size + element;
                        (score - most).exp() / total * f64::from(all_values[index])
                    });
                    result.push(weighted.sum());
                }
            }
        }
    }
    result
}

/// Runs the step through the runtime's own path, padding cut off.
fn found(
    mlx: &Mlx,
    case: &Case,
    step: &Step,
    sinks: &Array,
    dtype: DType,
    fused: bool,
    selected: Option<&Selected>,
) -> Vec<f64> {
    let plan = plan(case);
    let layer = Layer::new(mlx, plan.clone(), case.sinks.then(|| sinks.clone())).unwrap();
    let pages = Pages {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK,
    };
    step.metadata.check_queries(step.num_tokens).unwrap();
    step.metadata.check_pages(pages).unwrap();
    let kind = Kind {
        source: if case.encoder {
            Source::Step
        } else {
            Source::Cache { block_size: BLOCK }
        },
        causal: !case.encoder,
        sliding_window: plan.sliding_window.map(|window| window as usize),
        alibi_slopes: plan.alibi_slopes.clone(),
        alibi_sqrt: plan.alibi_sqrt,
        max_scores: (!fused).then_some(512),
        fused,
        kernel: false,
        prefill: None,
    };
    let layout = Layout::new(&step.metadata, &kind, step.num_tokens).unwrap();
    let shaped = |values: &[f32], heads: usize, size: usize| {
        let array = floats(values, &[step.num_tokens as i32, heads as i32, size as i32]);
        mlx.cast(&array, dtype).unwrap()
    };
    let q = shaped(&step.q, case.heads, case.size);
    let k = shaped(&step.k, case.kv_heads, case.size);
    let v = shaped(&step.v, case.kv_heads, case.value_size);
    let rows = if case.encoder {
        encode_rows(mlx, &[&k, &v]).unwrap()
    } else {
        let [heads, size] = layer.row_shape();
        let cache = floats(
            &step.cache,
            &[((NUM_BLOCKS + 1) * BLOCK) as i32, heads, size],
        );
        let cache = mlx.cast(&cache, dtype).unwrap();
        let slots = step.metadata.write_slots(step.num_tokens, pages);
        let bytes: Vec<u8> = slots.iter().flat_map(|slot| slot.to_ne_bytes()).collect();
        let slots =
            crate::runtime::mlx::host_array(&bytes, &[slots.len() as i32], DType::Int32).unwrap();
        write(mlx, &cache, &slots, &[&k, &v]).unwrap()
    };
    let selected = selected.map(|rows| integers(rows));
    let result = attend(mlx, &layer, &layout, fused, &q, &rows, selected.as_ref()).unwrap();
    assert_eq!(
        result.shape(),
        [
            step.num_tokens as i32,
            case.heads as i32,
            case.value_size as i32
        ]
    );
    assert_eq!(crate::runtime::mlx::dtype(&result), Some(dtype));
    let mut result = values(mlx, &result);
    result.truncate(step.metadata.num_actual_tokens * case.heads * case.value_size);
    result
}

fn cases() -> Vec<Case> {
    vec![
        PLAIN,
        Case {
            name: "all heads",
            kv_heads: 4,
            ..PLAIN
        },
        Case {
            name: "one KV head",
            kv_heads: 1,
            ..PLAIN
        },
        Case {
            name: "window",
            window: Some(3),
            ..PLAIN
        },
        Case {
            name: "window of one",
            window: Some(1),
            ..PLAIN
        },
        Case {
            name: "soft cap",
            soft_cap: Some(0.5),
            ..PLAIN
        },
        Case {
            name: "alibi",
            alibi: true,
            ..PLAIN
        },
        Case {
            name: "alibi by the square root",
            alibi: true,
            sqrt: true,
            ..PLAIN
        },
        Case {
            name: "sinks",
            sinks: true,
            ..PLAIN
        },
        Case {
            name: "other value size",
            value_size: 5,
            ..PLAIN
        },
        Case {
            name: "everything",
            window: Some(5),
            soft_cap: Some(2.0),
            alibi: true,
            sinks: true,
            ..PLAIN
        },
        Case {
            name: "sees all",
            causal: false,
            ..PLAIN
        },
        Case {
            name: "encoder",
            encoder: true,
            ..PLAIN
        },
        Case {
            name: "image",
            span: true,
            ..PLAIN
        },
        Case {
            name: "image in a window",
            span: true,
            window: Some(3),
            ..PLAIN
        },
        Case {
            name: "windowed encoder",
            encoder: true,
            window: Some(2),
            ..PLAIN
        },
    ]
}

#[test]
fn every_kind_of_layer_equals_the_loops_on_random_ragged_batches() {
    let mlx = cpu();
    for case in cases() {
        let mut random = Random(7);
        for round in 0..6 {
            let requests = 1 + random.below(6);
            let lengths: Vec<(usize, usize)> = (0..requests)
                .map(|_| {
                    let new = if random.below(2) == 0 {
                        1
                    } else {
                        1 + random.below(12)
                    };
                    (new, if case.encoder { 0 } else { random.below(20) })
                })
                .collect();
            let step = step(&case, &mut random, &lengths, random_padding(round));
            let sinks = random.units(case.heads);
            let expected = expected(&case, &step, &sinks, None);
            let sinks = floats(&sinks, &[case.heads as i32]);
            let can_fuse = case.soft_cap.is_none() && !case.alibi && case.value_size == case.size;
            for fused in [false, true].into_iter().filter(|fused| !fused || can_fuse) {
                let found = found(&mlx, &case, &step, &sinks, DType::Float32, fused, None);
                let error = difference(&found, &expected);
                assert!(
                    error < 2e-6,
                    "{} round {round} fused {fused}: {error} {lengths:?}",
                    case.name
                );
            }
        }
    }
}

fn random_padding(round: usize) -> usize {
    [0, 3, 0, 1, 0, 8][round]
}

#[test]
fn sixteen_bit_operands_are_rounded_once() {
    let mlx = cpu();
    let mut random = Random(3);
    let lengths = [(1, 9), (4, 3), (1, 2)];
    let step = step(&PLAIN, &mut random, &lengths, 0);
    let none = floats(&[0.0; 4], &[4]);
    let exact = found(&mlx, &PLAIN, &step, &none, DType::Float32, false, None);
    for (dtype, tolerance) in [(DType::Float16, 2e-3), (DType::Bfloat16, 1.6e-2)] {
        let rounded = found(&mlx, &PLAIN, &step, &none, dtype, false, None);
        let error = difference(&rounded, &exact);
        assert!(error > 0.0 && error < tolerance, "{dtype}: {error}");
    }
}

#[test]
fn a_step_without_requests_gives_zeros() {
    let mlx = cpu();
    let step = step(&PLAIN, &mut Random(1), &[], 5);
    let none = floats(&[0.0; 4], &[4]);
    assert!(found(&mlx, &PLAIN, &step, &none, DType::Float32, false, None).is_empty());
}

#[test]
fn slots_blocks_and_lengths_outside_the_cache_are_refused() {
    let good = step(&PLAIN, &mut Random(1), &[(2, 3), (1, 0)], 2);
    let pages = Pages {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK,
    };
    let error = |change: &dyn Fn(&mut Metadata)| {
        let mut metadata = good.metadata.clone();
        change(&mut metadata);
        let checked = metadata.check_queries(good.num_tokens);
        checked
            .and_then(|()| metadata.check_pages(pages))
            .unwrap_err()
            .to_string()
    };
    let last = (NUM_BLOCKS * BLOCK) as i64;
    assert!(
        error(&|m| m.slot_mapping[1] = last)
            .contains("token 1 has slot 256, and the cache has 256")
    );
    assert!(error(&|m| m.slot_mapping[0] = -2).contains("token 0 has slot -2"));
    assert!(
        error(&|m| m.block_table[0] = 64).contains("request 0 has block 64, and the cache has 64")
    );
    assert!(error(&|m| m.block_table[0] = -1).contains("request 0 has block -1"));
    assert!(
        error(&|m| m.seq_lens[0] = 9).contains("request 0 has 9 tokens, and its 2 blocks hold 8")
    );
    assert!(error(&|m| m.seq_lens[0] = 1).contains("request 0 has 1 tokens and computes 2"));
    assert!(error(&|m| m.query_start_loc[1] = 4).contains("does not rise"));
    assert!(error(&|m| m.query_start_loc.push(4)).contains("4 entries for 2 requests"));
    assert!(error(&|m| m.num_actual_tokens = 2).contains("ends at 3 of 2 tokens"));
    assert!(error(&|m| m.num_actual_tokens = 99).contains("99 of 5 tokens"));
    assert!(error(&|m| m.causal.clear()).contains("0 entries for 2 requests"));
    assert!(error(&|m| m.spans.push((0, 3, 5))).contains("3 to 5 of request 0"));
    assert!(error(&|m| m.spans.push((2, 0, 0))).contains("0 to 0 of request 2"));
    assert!(error(&|m| m.block_table.truncate(1)).contains("1 entries for 2 requests"));
    assert!(error(&|m| m.slot_mapping.truncate(2)).contains("2 entries for 3 tokens"));
}
