// SPDX-License-Identifier: Apache-2.0
//! Keys that an index selects, and attention to selected keys, against loops.

use super::*;

const INDEX: Case = Case {
    name: "index",
    heads: 16,
    kv_heads: 1,
    value_size: 0,
    ..PLAIN
};

/// Ragged batches of decodes and chunks.
fn lengths(random: &mut Random) -> Vec<(usize, usize)> {
    let requests = 1 + random.below(5);
    let new = |random: &mut Random| match random.below(2) {
        0 => 1,
        _ => 1 + random.below(12),
    };
    (0..requests)
        .map(|_| (new(random), random.below(20)))
        .collect()
}

/// What the runtime selects for the step's tokens, each row sorted.
fn selected(mlx: &Mlx, step: &Step, weights: &[f32], count: usize, max_scores: usize) -> Selected {
    let pages = Pages {
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK,
    };
    let kind = Kind {
        source: Source::Cache { block_size: BLOCK },
        causal: true,
        sliding_window: None,
        alibi_slopes: None,
        alibi_sqrt: false,
        max_scores: Some(max_scores),
        fused: false,
        kernel: false,
        prefill: None,
    };
    let layout = Layout::new(&step.metadata, &kind, step.num_tokens).unwrap();
    let [tokens, heads, size] = [
        step.num_tokens as i32,
        INDEX.heads as i32,
        INDEX.size as i32,
    ];
    let q = floats(&step.q, &[tokens, heads, size]);
    let k = floats(&step.k, &[tokens, 1, size]);
    let weights = floats(weights, &[tokens, heads]);
    let rows = ((NUM_BLOCKS + 1) * BLOCK) as i32;
    let cache = floats(&step.cache, &[rows, 1, size]);
    let slots = step.metadata.write_slots(step.num_tokens, pages);
    let slots = integers(&[slots]);
    let slots = mlx.reshape(&slots, &[tokens]).unwrap();
    let cache = write(mlx, &cache, &slots, &[&k]).unwrap();
    let found = select(mlx, &layout, &q, &weights, &cache, count as i64).unwrap();
    assert_eq!(found.shape(), [tokens, count as i32]);
    assert_eq!(crate::runtime::mlx::dtype(&found), Some(DType::Int32));
    let found = values(mlx, &found);
    let rows = found.chunks(count).map(|row| {
        let mut row: Vec<i32> = row.iter().map(|x| *x as i32).collect();
        row.sort_unstable();
        row
    });
    rows.take(step.metadata.num_actual_tokens).collect()
}

/// The definition, token by token: each row sorted.
fn best(step: &Step, weights: &[f32], count: usize) -> Selected {
    let mut result = Vec::new();
    for (request, (keys, _)) in step.history.iter().enumerate() {
        let length = step.metadata.seq_lens[request] as usize;
        let rows = step.metadata.rows(request);
        for row in rows.clone() {
            let position = length - rows.len() + row - rows.start;
            let mut scores: Vec<(f64, i32)> = (0..=position)
                .map(|other| {
                    let key = &keys[other * INDEX.size..][..INDEX.size];
                    let score = (0..INDEX.heads).map(|head| {
                        let place = row * INDEX.heads + head;
                        let query = &step.q[place * INDEX.size..][..INDEX.size];
                        let product = query.iter().zip(key);
                        let product: f64 =
                            product.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        f64::from(weights[place]) * product.max(0.0)
                    });
                    (score.sum(), other as i32)
                })
                .collect();
            scores.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut row: Vec<i32> = scores.iter().take(count).map(|(_, key)| *key).collect();
            row.resize(count, -1);
            row.sort_unstable();
            result.push(row);
        }
    }
    result
}

#[test]
fn the_best_keys_of_a_request_are_selected_from_its_own() {
    let mlx = cpu();
    let mut random = Random(11);
    let mut cut = 0;
    for round in 0..8 {
        let lengths = lengths(&mut random);
        let step = step(&INDEX, &mut random, &lengths, random_padding(round % 6));
        // So many heads that no score is 0, which others could be equal to.
        let mut weights = random.units(step.metadata.num_actual_tokens * INDEX.heads);
        weights.resize(step.num_tokens * INDEX.heads, f32::NAN);
        for (count, max_scores) in [(3, 1 << 20), (8, 256), (100, 1 << 20)] {
            let expected = best(&step, &weights, count);
            cut += expected.iter().filter(|row| row[0] >= 0).count();
            let found = selected(&mlx, &step, &weights, count, max_scores);
            assert_eq!(
                found, expected,
                "round {round}, {count} keys of {lengths:?}"
            );
        }
    }
    assert!(cut > 50, "{cut} tokens see more keys than are selected");
}

/// Some positions up to each token's own: all where those are at most `count`.
fn some_positions(step: &Step, random: &mut Random, count: usize) -> Selected {
    let mut result = Vec::new();
    for (request, length) in step.metadata.seq_lens.iter().enumerate() {
        let rows = step.metadata.rows(request);
        for row in rows.clone() {
            let position = *length as usize - rows.len() + row - rows.start;
            let mut seen: Vec<i32> = (0..=position as i32).collect();
            for index in (1..seen.len()).rev() {
                seen.swap(index, random.below(index + 1));
            }
            // A selection may be short, too.
            let most = if seen.len() > count {
                count - row % 2
            } else {
                count
            };
            seen.truncate(most);
            seen.resize(count, -1);
            result.push(seen);
        }
    }
    result.resize(step.num_tokens, vec![-1; count]);
    result
}

#[test]
fn attention_to_selected_keys_equals_the_loops() {
    let mlx = cpu();
    let sinks_too = Case {
        name: "sinks",
        sinks: true,
        ..PLAIN
    };
    for case in [PLAIN, sinks_too] {
        let mut random = Random(5);
        for round in 0..6 {
            let lengths = lengths(&mut random);
            let step = step(&case, &mut random, &lengths, random_padding(round));
            let sinks = random.units(case.heads);
            let named = some_positions(&step, &mut random, 4);
            let expected = expected(&case, &step, &sinks, Some(&named));
            let sinks = floats(&sinks, &[case.heads as i32]);
            for fused in [false, true] {
                let dtype = DType::Float32;
                let found = found(&mlx, &case, &step, &sinks, dtype, fused, Some(&named));
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
