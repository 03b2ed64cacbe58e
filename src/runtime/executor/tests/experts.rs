// SPDX-License-Identifier: Apache-2.0
//! Products with experts against their definition.

use super::super::experts;
use super::*;
use lowering::ir::Op::ExpertMatmul;

const EXPERTS: usize = 5;
const COLUMNS: usize = 3;
const INNER: usize = 4;

fn defined(x: &[f32], slots: usize, w: &[f32], chosen: &[i64], k: usize) -> Vec<f64> {
    let row = |place: usize| (place / k * slots + (place % k).min(slots - 1)) * INNER;
    let product = |place: usize, column: usize| -> f64 {
        let weight = (chosen[place] as usize * COLUMNS + column) * INNER;
        (0..INNER)
            .map(|i| f64::from(x[row(place) + i]) * f64::from(w[weight + i]))
            .sum()
    };
    (0..chosen.len() * COLUMNS)
        .map(|i| product(i / COLUMNS, i % COLUMNS))
        .collect()
}

/// Few rows, and as many as are sorted; a row for each choice, and one for all of a token.
#[test]
fn rows_meet_the_weights_of_their_experts() {
    let mlx = cpu();
    let mut random = Random(11);
    let w = random.units(EXPERTS * COLUMNS * INNER);
    let weights = floats(&w, &[EXPERTS as i32, COLUMNS as i32, INNER as i32]);
    for (tokens, k, slots) in [(1, 2, 1), (3, 2, 2), (40, 2, 1), (40, 2, 2), (70, 1, 1)] {
        let x = random.units(tokens * slots * INNER);
        let chosen: Vec<i64> = (0..tokens * k)
            .map(|i| (i * 7 % 11 % EXPERTS) as i64)
            .collect();
        let rows = floats(&x, &[tokens as i32, slots as i32, INNER as i32]);
        let ids = longs(&chosen, &[tokens as i32, k as i32]);
        let found = run(
            &mlx,
            &ExpertMatmul,
            &[&rows, &weights, &ids],
            DType::Float32,
        );
        assert_eq!(found.shape(), [tokens as i32, k as i32, COLUMNS as i32]);
        let expected = defined(&x, slots, &w, &chosen, k);
        assert!(difference(&values(&mlx, &found), &expected) < 1e-6);
    }
}

/// An expert that does not exist reads one that does: MLX would read foreign memory.
#[test]
fn unknown_experts_stay_inside_the_weights() {
    let mlx = cpu();
    let weights = floats(&[1.0, 2.0, 3.0], &[3, 1, 1]);
    let ids = longs(&[-1, 3, 1 << 20, 0], &[2, 2]);
    let ones = floats(&[1.0, 1.0], &[2, 1, 1]);
    let found = run(
        &mlx,
        &ExpertMatmul,
        &[&ones, &weights, &ids],
        DType::Float32,
    );
    assert_eq!(values(&mlx, &found), [3.0, 3.0, 3.0, 1.0]);
}

#[test]
fn a_route_is_made_once_for_the_products_of_a_layer() {
    let mlx = cpu();
    let ids = longs(&[0, 1], &[1, 2]);
    let mut routes = experts::Routes::default();
    let mut made = 0;
    for key in [(7, 2), (7, 2), (8, 2), (8, 2), (7, 2)] {
        routes
            .get(key, || {
                made += 1;
                experts::route(&mlx, &ids, 2)
            })
            .unwrap();
    }
    assert_eq!(made, 3);
}
