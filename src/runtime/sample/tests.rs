// SPDX-License-Identifier: Apache-2.0
//! Sampling by MLX operations, the random numbers, and what is launched.

use super::*;
use crate::runtime::testing::{cpu, floats, values};
use std::collections::BTreeMap;

const RANDOM: Row = Row {
    temperature: 1.0,
    ..Row::GREEDY
};

fn never(choice: &KernelChoice, _: &[(&'static str, i64)], _: &[&Array]) -> Result<Vec<Array>> {
    Err(Error::Internal(format!("{} is launched", choice.name)))
}

fn drawn(logits: &Array, rows: &[Row]) -> Vec<f64> {
    let mlx = cpu();
    let sampling = Sampling::new(rows).unwrap();
    let tokens = sample(&mlx, logits, &sampling, None, &mut never).unwrap();
    assert_eq!(dtype(&tokens), Some(DType::Int32));
    values(&mlx, &tokens)
}

#[test]
fn words_are_the_published_ones() {
    let mlx = cpu();
    let of = |seed: u64, step: u32| {
        let row = Row {
            seed,
            step,
            ..RANDOM
        };
        let sampling = Sampling::new(&[row]).unwrap();
        let words = reference::philox(&mlx, &sampling, 2).unwrap();
        words.map(|words| values(&mlx, &words)[0] as u32)
    };
    // The known answer of the authors' library for zeros.
    assert_eq!(
        of(0, 0),
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
    );
    assert_ne!(of(0, 1), of(0, 0));
    assert_ne!(of(1 << 32, 0), of(1, 0));
}

#[test]
fn rows_draw_by_themselves() {
    let logits: Vec<f32> = (0..150).map(|index| (index % 7) as f32).collect();
    let logits = floats(&logits, &[3, 50]);
    let row = |seed| Row { seed, ..RANDOM };
    let together = drawn(&logits, &[row(1), Row::GREEDY, row(3)]);
    assert_eq!(together[1], 5.0);
    let mlx = cpu();
    for (index, row) in [row(1), Row::GREEDY, row(3)].into_iter().enumerate() {
        let at = index as i32;
        let alone = mlx.slice(&logits, 0, at, at + 1, 1).unwrap();
        assert_eq!(drawn(&alone, &[row]), together[index..=index]);
    }
}

#[test]
fn filters_keep_what_they_say() {
    // Softmax: 0.6439, 0.2369, 0.0871, 0.0321.
    let logits = floats(&[3.0, 2.0, 1.0, 0.0], &[1, 4]);
    let mlx = cpu();
    let all = mlx.broadcast_to(&logits, &[400, 4]).unwrap();
    let found = |row: Row| {
        let rows: Vec<Row> = (0..400).map(|seed| Row { seed, ..row }).collect();
        let mut tokens = drawn(&all, &rows);
        tokens.sort_by(f64::total_cmp);
        tokens.dedup();
        tokens.len()
    };
    assert_eq!(found(RANDOM), 4);
    assert_eq!(found(Row { top_k: 2, ..RANDOM }), 2);
    assert_eq!(found(Row { top_k: 9, ..RANDOM }), 4);
    assert_eq!(
        found(Row {
            top_p: 0.64,
            ..RANDOM
        }),
        1
    );
    assert_eq!(
        found(Row {
            top_p: 0.65,
            ..RANDOM
        }),
        2
    );
    assert_eq!(
        found(Row {
            min_p: 0.1,
            ..RANDOM
        }),
        3
    );
    // Of three tokens' mass, the first has two thirds.
    let both = Row {
        top_k: 3,
        top_p: 0.66,
        ..RANDOM
    };
    assert_eq!(found(both), 1);
    let all = Row {
        min_p: 1.0,
        ..RANDOM
    };
    assert_eq!(found(all), 1);
}

#[test]
fn nothing_is_evaluated_and_greedy_rows_launch_nothing() {
    let mlx = cpu();
    let logits = floats(&[0.0, 2.0, 2.0, 1.0, 0.0, -1.0], &[2, 3]);
    let before = mlx.evaluations();
    let greedy = Sampling::new(&[Row::GREEDY; 2]).unwrap();
    let choice = KernelChoice {
        name: "sample".to_owned(),
        sizes: BTreeMap::from([("vocab_size".to_owned(), 3)]),
        dtypes: BTreeMap::from([("T".to_owned(), DType::Float32)]),
    };
    let kernel = Some(&choice);
    let tokens = sample(&mlx, &logits, &greedy, kernel, &mut never).unwrap();
    let random = Sampling::new(&[RANDOM; 2]).unwrap();
    sample(&mlx, &logits, &random, None, &mut never).unwrap();
    // The kernel is launched for logits that it takes, and for those alone.
    let error = sample(&mlx, &logits, &random, kernel, &mut never);
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("sample is launched")
    );
    let halves = mlx.cast(&logits, DType::Float16).unwrap();
    sample(&mlx, &halves, &random, kernel, &mut never).unwrap();
    assert_eq!(mlx.evaluations(), before);
    assert_eq!(values(&mlx, &tokens), [1.0, 0.0]);
}

#[test]
fn parameters_out_of_range_are_refused() {
    let error = |row: Row| Sampling::new(&[RANDOM, row]).err().unwrap().to_string();
    let temperature = |temperature| Row {
        temperature,
        ..RANDOM
    };
    assert!(error(temperature(-1.0)).contains("row 1 has temperature -1"));
    error(temperature(f32::NAN));
    error(temperature(f32::INFINITY));
    assert!(
        error(Row {
            top_p: 0.0,
            ..RANDOM
        })
        .contains("top_p 0")
    );
    error(Row {
        top_p: 1.5,
        ..RANDOM
    });
    assert!(
        error(Row {
            min_p: -0.5,
            ..RANDOM
        })
        .contains("min_p")
    );
    let (mlx, logits) = (cpu(), floats(&[0.0; 6], &[2, 3]));
    let one = Sampling::new(&[RANDOM]).unwrap();
    let error = sample(&mlx, &logits, &one, None, &mut never).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("parameters of 1 rows for logits [2, 3]")
    );
    let flat = floats(&[0.0; 6], &[6]);
    assert!(sample(&mlx, &flat, &one, None, &mut never).is_err());
}
