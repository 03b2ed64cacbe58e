// SPDX-License-Identifier: Apache-2.0
//! Rotary embeddings against their definition.

use super::*;
#[test]
fn rope_rotates_pairs_of_every_style_and_passes_the_rest() {
    let mlx = cpu();
    let mut random = Random(2);
    let (tokens, size) = (3usize, 8usize);
    for (style, rotary) in [
        (RopeStyle::Neox, 8),
        (RopeStyle::Neox, 4),
        (RopeStyle::Gptj, 8),
        (RopeStyle::Gptj, 6),
        (RopeStyle::RotateHalf, 8),
        (RopeStyle::RotateHalf, 4),
        (RopeStyle::RotatePairs, 8),
        (RopeStyle::RotatePairs, 6),
    ] {
        let half = rotary / 2;
        let columns = match style {
            RopeStyle::Neox | RopeStyle::Gptj => half,
            RopeStyle::RotateHalf | RopeStyle::RotatePairs => rotary,
        };
        let (cos, sin) = (
            random.units(tokens * columns),
            random.units(tokens * columns),
        );
        let expected = |x: &[f32], heads: usize| -> Vec<f64> {
            let mut result: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            for (row, token) in (0..tokens * heads).map(|row| (row * size, row / heads)) {
                for pair in 0..half {
                    let (a, b) = match style {
                        RopeStyle::Neox | RopeStyle::RotateHalf => (row + pair, row + pair + half),
                        RopeStyle::Gptj | RopeStyle::RotatePairs => {
                            (row + 2 * pair, row + 2 * pair + 1)
                        }
                    };
                    // Each of a pair has columns of its own where there are as many as elements.
                    let (first, second) = match style {
                        RopeStyle::Neox | RopeStyle::Gptj => (pair, pair),
                        RopeStyle::RotateHalf => (pair, pair + half),
                        RopeStyle::RotatePairs => (2 * pair, 2 * pair + 1),
                    };
                    let (first, second) = (token * columns + first, token * columns + second);
                    let at = |table: &[f32], column: usize| f64::from(table[column]);
                    let (left, right) = (f64::from(x[a]), f64::from(x[b]));
                    result[a] = left * at(&cos, first) - right * at(&sin, first);
                    result[b] = right * at(&cos, second) + left * at(&sin, second);
                }
            }
            result
        };
        let op = Op::Rope {
            style,
            rotary_dim: rotary as i64,
        };
        let table = |values: &[f32]| floats(values, &[tokens as i32, columns as i32]);
        let (cos, sin) = (table(&cos), table(&sin));
        let (q, k) = (random.units(tokens * 2 * size), random.units(tokens * size));
        let (queries, keys) = (floats(&q, &[3, 2, 8]), floats(&k, &[3, 1, 8]));
        for operands in [
            vec![&queries, &keys],
            vec![&queries],
            vec![&keys, &queries, &keys],
        ] {
            let all = [&[&cos, &sin], operands.as_slice()].concat();
            let found = run_all(&mlx, &op, &all, DType::Float32);
            assert_eq!(found.len(), operands.len());
            for (found, x) in found.iter().zip(&operands) {
                assert_eq!(found.shape(), x.shape());
                let expected = if x.shape()[1] == 2 {
                    expected(&q, 2)
                } else {
                    expected(&k, 1)
                };
                assert!(
                    difference(&values(&mlx, found), &expected) < 1e-6,
                    "{style:?} {rotary}"
                );
            }
        }
    }
}
