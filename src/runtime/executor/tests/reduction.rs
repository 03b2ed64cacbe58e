// SPDX-License-Identifier: Apache-2.0
//! Reductions, sorting and products against their definition.

use super::*;
#[test]
fn reductions_accumulate_16_bits_in_float32() {
    let mlx = cpu();
    let ones = half(&mlx, &floats(&[1.0; 4096], &[4096]), DType::Bfloat16);
    let reduce = |function, axes: Vec<usize>, keepdims| Op::Reduce {
        function,
        axes,
        keepdims,
    };
    let sum = run(
        &mlx,
        &reduce(Reduction::Sum, vec![0], false),
        &[&ones],
        DType::Bfloat16,
    );
    assert_eq!(values(&mlx, &sum), [4096.0]);
    let scan = |function| Op::Scan { function, axis: 0 };
    let running = run(&mlx, &scan(Scan::Sum), &[&ones], DType::Bfloat16);
    assert_eq!(values(&mlx, &running)[4095], 4096.0);
    let steps = floats(&[2., 3., 1.], &[3]);
    for (function, expected) in [
        (Scan::Prod, [2., 6., 6.]),
        (Scan::Max, [2., 3., 3.]),
        (Scan::Min, [2., 2., 1.]),
    ] {
        let running = run(&mlx, &scan(function), &[&steps], DType::Float32);
        assert_eq!(values(&mlx, &running), expected);
    }
    let x = floats(&[1., 5., 3., 4., 2., 6.], &[2, 3]);
    let check = |function, axes: Vec<usize>, keepdims, dtype, shape: &[i32], expected: &[f64]| {
        let found = run(&mlx, &reduce(function, axes, keepdims), &[&x], dtype);
        assert_eq!(
            (found.shape(), values(&mlx, &found)),
            (shape, expected.to_vec())
        );
    };
    check(
        Reduction::Sum,
        vec![1],
        true,
        DType::Float32,
        &[2, 1],
        &[9., 12.],
    );
    check(
        Reduction::Mean,
        vec![0, 1],
        false,
        DType::Float32,
        &[],
        &[3.5],
    );
    check(
        Reduction::Max,
        vec![0],
        false,
        DType::Float32,
        &[3],
        &[4., 5., 6.],
    );
    check(
        Reduction::Min,
        vec![0],
        false,
        DType::Float32,
        &[3],
        &[1., 2., 3.],
    );
    check(
        Reduction::Prod,
        vec![1],
        false,
        DType::Float32,
        &[2],
        &[15., 48.],
    );
    check(Reduction::All, vec![1], false, DType::Bool, &[2], &[1., 1.]);
    check(Reduction::Any, vec![1], false, DType::Bool, &[2], &[1., 1.]);
    check(
        Reduction::Argmax,
        vec![1],
        false,
        DType::Int64,
        &[2],
        &[1., 2.],
    );
    check(
        Reduction::Argmin,
        vec![1],
        true,
        DType::Int64,
        &[2, 1],
        &[0., 1.],
    );
    check(
        Reduction::Argmax,
        vec![0, 1],
        false,
        DType::Int64,
        &[],
        &[5.],
    );
}

#[test]
fn sorting_is_stable_in_both_directions() {
    let mlx = cpu();
    let x = floats(&[2., 1., 2., 3.], &[4]);
    let sort = |op: Op| {
        let [sorted, order] = run_all(&mlx, &op, &[&x], DType::Float32)
            .try_into()
            .unwrap();
        assert_eq!(mlx::dtype(&order), Some(DType::Int64));
        (values(&mlx, &sorted), values(&mlx, &order))
    };
    let op = |descending| Op::Sort {
        axis: 0,
        descending,
    };
    assert_eq!(
        sort(op(false)),
        (vec![1., 2., 2., 3.], vec![1., 0., 2., 3.])
    );
    assert_eq!(sort(op(true)), (vec![3., 2., 2., 1.], vec![3., 0., 2., 1.]));
    assert_eq!(
        sort(Op::Topk { axis: 0, k: 2 }),
        (vec![3., 2.], vec![3., 0.])
    );
    let smallest = longs(&[i64::MIN, 4, 5], &[3]);
    let largest = run_all(
        &mlx,
        &Op::Topk { axis: 0, k: 1 },
        &[&smallest],
        DType::Int64,
    );
    assert_eq!(values(&mlx, &largest[1]), [2.0]);
}

#[test]
fn products_take_transposed_weights_as_they_are() {
    let mlx = cpu();
    let mut random = Random(5);
    let (x, w, b) = (random.units(6), random.units(12), random.units(4));
    let weight = mlx.transpose(&floats(&w, &[4, 3]), &[1, 0]).unwrap();
    let product = |bias: f64, row: usize, column: usize| -> f64 {
        bias + (0..3)
            .map(|k| f64::from(x[row * 3 + k]) * f64::from(w[column * 3 + k]))
            .sum::<f64>()
    };
    let (rows, bias) = (floats(&x, &[2, 3]), floats(&b, &[4]));
    let found = values(
        &mlx,
        &run(&mlx, &Op::Matmul, &[&rows, &weight], DType::Float32),
    );
    let expected: Vec<f64> = (0..8).map(|i| product(0.0, i / 4, i % 4)).collect();
    assert!(difference(&found, &expected) < 1e-6);
    let found = values(
        &mlx,
        &run(&mlx, &Op::Addmm, &[&rows, &weight, &bias], DType::Float32),
    );
    let expected: Vec<f64> = (0..8)
        .map(|i| product(f64::from(b[i % 4]), i / 4, i % 4))
        .collect();
    assert!(difference(&found, &expected) < 1e-6);
}

#[test]
fn softmax_is_precise_in_16_bits() {
    let mlx = cpu();
    let x = half(&mlx, &floats(&[0.5, -1.0, 2.0], &[3]), DType::Bfloat16);
    let found = values(
        &mlx,
        &run(&mlx, &Op::Softmax { axis: 0 }, &[&x], DType::Bfloat16),
    );
    let total: f64 = [0.5f64, -1.0, 2.0].iter().map(|x| x.exp()).sum();
    let expected: Vec<f32> = [0.5f64, -1.0, 2.0]
        .iter()
        .map(|x| (x.exp() / total) as f32)
        .collect();
    let expected = values(&mlx, &half(&mlx, &floats(&expected, &[3]), DType::Bfloat16));
    assert_eq!(found, expected);
}
