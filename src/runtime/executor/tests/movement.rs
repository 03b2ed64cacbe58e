// SPDX-License-Identifier: Apache-2.0
//! Constants, shapes and indexed access against their definition.

use super::*;
#[test]
fn int64_is_exact_above_2_to_the_53() {
    let mlx = cpu();
    let big = (1i64 << 53) + 1;
    let op = Op::Scalar(Scalar::Int(big));
    let scalar = run(&mlx, &op, &[], DType::Int64);
    let rest = run(
        &mlx,
        &Op::Binary(Binary::Sub),
        &[&scalar, &longs(&[1 << 53], &[])],
        DType::Int64,
    );
    assert_eq!(values(&mlx, &rest), [1.0]);
}

#[test]
fn leaves_depend_on_symbols() {
    let mlx = cpu();
    let tokens = Dim::symbol(0);
    let size = run(&mlx, &Op::Scalar(Scalar::Size(tokens)), &[], DType::Int64);
    assert_eq!(values(&mlx, &size), [3.0]);
    let op = Op::Full {
        value: Scalar::Float(Float::new(0.5)),
        shape: vec![tokens, Dim::Fixed(2)],
    };
    let full = run(&mlx, &op, &[], DType::Bfloat16);
    assert_eq!(
        (full.shape(), values(&mlx, &full)),
        ([3, 2].as_slice(), vec![0.5; 6])
    );
    let op = Op::Arange {
        start: Dim::Fixed(2),
        step: -3,
        length: tokens,
    };
    assert_eq!(
        values(&mlx, &run(&mlx, &op, &[], DType::Int64)),
        [2.0, -1.0, -4.0]
    );
}

#[test]
fn data_movement() {
    let mlx = cpu();
    let x = floats(&[0., 1., 2., 3., 4., 5.], &[3, 2]);
    let check = |op: Op, operands: &[&Array], shape: &[i32], expected: &[f64]| {
        let found = run(&mlx, &op, operands, DType::Float32);
        assert_eq!(
            (found.shape(), values(&mlx, &found)),
            (shape, expected.to_vec()),
            "{op:?}"
        );
    };
    let tokens = Dim::symbol(0);
    check(
        Op::Reshape {
            shape: vec![Dim::Fixed(2), tokens],
        },
        &[&x],
        &[2, 3],
        &[0., 1., 2., 3., 4., 5.],
    );
    check(
        Op::Transpose {
            permutation: vec![1, 0],
        },
        &[&x],
        &[2, 3],
        &[0., 2., 4., 1., 3., 5.],
    );
    let row = floats(&[7., 8.], &[1, 2]);
    check(
        Op::Broadcast {
            shape: vec![tokens, Dim::Fixed(2)],
        },
        &[&row],
        &[3, 2],
        &[7., 8., 7., 8., 7., 8.],
    );
    let slice = |start: i64, stop, step| Op::Slice {
        axis: 0,
        start: start.into(),
        stop,
        step,
        length: tokens,
    };
    check(slice(1, tokens, 1), &[&x], &[2, 2], &[2., 3., 4., 5.]);
    check(slice(0, tokens, 2), &[&x], &[2, 2], &[0., 1., 4., 5.]);
    check(
        Op::Concat { axis: 0 },
        &[&row, &x],
        &[4, 2],
        &[7., 8., 0., 1., 2., 3., 4., 5.],
    );
    let indices = longs(&[2, 0], &[2]);
    check(
        Op::Take { axis: 0 },
        &[&x, &indices],
        &[2, 2],
        &[4., 5., 0., 1.],
    );
    let op = Op::Pad {
        low: vec![1, 0],
        high: vec![0, 1],
        value: Scalar::Int(9),
    };
    check(op, &[&row], &[2, 3], &[9., 9., 9., 7., 8., 9.]);
    let square = floats(&[1.; 9], &[3, 3]);
    check(
        Op::Tril { diagonal: -1 },
        &[&square],
        &[3, 3],
        &[0., 0., 0., 1., 0., 0., 1., 1., 0.],
    );
    check(
        Op::Triu { diagonal: 1 },
        &[&square],
        &[3, 3],
        &[0., 1., 1., 0., 0., 1., 0., 0., 0.],
    );
    let condition = mlx.greater(&x, &floats(&[2.], &[])).unwrap();
    check(
        Op::Where,
        &[&condition, &x, &row],
        &[3, 2],
        &[7., 8., 7., 3., 4., 5.],
    );
    let whole = run(
        &mlx,
        &Op::Cast {
            dtype: DType::Int64,
        },
        &[&floats(&[-1.7, 1.7], &[2])],
        DType::Int64,
    );
    assert_eq!(values(&mlx, &whole), [-1.0, 1.0]);
}

#[test]
fn gather_and_scatter_take_shorter_indices_as_pytorch_does() {
    let mlx = cpu();
    let x = floats(&[0., 1., 2., 3., 4., 5.], &[2, 3]);
    let one_row = longs(&[2, 0], &[1, 2]);
    let gathered = run(
        &mlx,
        &Op::TakeAlongAxis { axis: 1 },
        &[&x, &one_row],
        DType::Float32,
    );
    assert_eq!(values(&mlx, &gathered), [2.0, 0.0]);
    let updates = floats(&[7., 8., 9.], &[1, 3]);
    let written = run(
        &mlx,
        &Op::PutAlongAxis { axis: 1 },
        &[&x, &one_row, &updates],
        DType::Float32,
    );
    assert_eq!(values(&mlx, &written), [8.0, 1.0, 7.0, 3.0, 4.0, 5.0]);
    let twice = longs(&[2, 2], &[1, 2]);
    let added = run(
        &mlx,
        &Op::AddAlongAxis { axis: 1 },
        &[&x, &twice, &updates],
        DType::Float32,
    );
    assert_eq!(values(&mlx, &added), [0.0, 1.0, 17.0, 3.0, 4.0, 5.0]);
}

#[test]
fn what_is_no_instruction_is_refused() {
    let mlx = cpu();
    let context = Context {
        mlx: &mlx,
        symbols: &SYMBOLS,
    };
    let x = floats(&[1.0], &[1]);
    let types = [fixed(DType::Float32, &[1])];
    for (op, operands) in [
        (Op::Attention { layer: 0 }, vec![&x]),
        (Op::Project(0), vec![&x]),
        (Op::Matmul, vec![&x]),
    ] {
        assert!(execute(context, &op, &operands, &types).is_err(), "{op:?}");
    }
    // A size that no symbol gives.
    let op = Op::Reshape {
        shape: vec![Dim::symbol(4)],
    };
    let error = execute(context, &op, &[&x], &types).err().unwrap();
    assert!(error.to_string().contains("has no value"));
}
