// SPDX-License-Identifier: Apache-2.0
//! Every operator against its definition.

use super::instruction::{Context, Outputs, execute};
use crate::runtime::mlx::{self, Array, Mlx};
use crate::runtime::testing::{Random, cpu, difference, floats, longs, values};
use lowering::ir::{
    Activation, Binary, DType, Dim, Float, Op, Reduction, RopeStyle, Scalar, TensorType, Unary,
};

const SYMBOLS: [i64; 1] = [3];

fn fixed(dtype: DType, shape: &[i32]) -> TensorType {
    let shape = shape
        .iter()
        .map(|size| Dim::Fixed(i64::from(*size)))
        .collect();
    TensorType { dtype, shape }
}

/// All results of an operator whose first result has that dtype.
fn run_all(mlx: &Mlx, op: &Op, operands: &[&Array], dtype: DType) -> Vec<Array> {
    let context = Context {
        mlx,
        symbols: &SYMBOLS,
    };
    let types = [TensorType {
        dtype,
        shape: Vec::new(),
    }];
    match execute(context, op, operands, &types).unwrap() {
        Outputs::One(array) => vec![array],
        Outputs::Two(first, second) => vec![first, second],
        Outputs::Many(arrays) => arrays,
    }
}

fn run(mlx: &Mlx, op: &Op, operands: &[&Array], dtype: DType) -> Array {
    let mut results = run_all(mlx, op, operands, dtype);
    assert_eq!(results.len(), 1);
    let result = results.remove(0);
    assert_eq!(mlx::dtype(&result), Some(dtype), "{op:?}");
    result
}

fn half(mlx: &Mlx, array: &Array, dtype: DType) -> Array {
    mlx.cast(array, dtype).unwrap()
}

fn erf(x: f64) -> f64 {
    // Its Taylor series converges everywhere and is exact enough for |x| < 3.
    let mut term = x;
    let mut sum = x;
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn define(function: Unary, x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign => x.signum(),
        Unary::Square => x * x,
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Exp => x.exp(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Log2 => x.log2(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Tanh => x.tanh(),
        Unary::Arcsin => x.asin(),
        Unary::Arccos => x.acos(),
        Unary::Arctan => x.atan(),
        Unary::Erf => erf(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Sigmoid => sigmoid,
        Unary::Silu => x * sigmoid,
        Unary::Gelu => x * 0.5 * (1.0 + erf(x / 2f64.sqrt())),
        Unary::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            x * 0.5 * (1.0 + inner.tanh())
        }
        Unary::Relu => x.max(0.0),
        Unary::Softplus => x.exp().ln_1p(),
        Unary::Isnan => f64::from(u8::from(x.is_nan())),
        Unary::Isinf => f64::from(u8::from(x.is_infinite())),
        Unary::LogicalNot => f64::from(u8::from(x == 0.0)),
        Unary::Erfinv | Unary::BitwiseNot => unreachable!("tested apart"),
    }
}

#[test]
fn unary_functions_equal_their_definition_and_round_once_in_16_bits() {
    use Unary::*;
    let mlx = cpu();
    let inputs = [-2.5f32, -1.5, -0.75, -0.1, 0.1, 0.5, 0.9, 1.5, 2.5];
    let x = floats(&inputs, &[9]);
    let all = [
        Neg, Abs, Sign, Square, Sqrt, Rsqrt, Reciprocal, Exp, Expm1, Log, Log1p, Log2, Sin, Cos,
        Tan, Sinh, Cosh, Tanh, Arcsin, Arccos, Arctan, Erf, Floor, Ceil, Round, Sigmoid, Silu,
        Gelu, GeluTanh, Relu, Softplus, Isnan, Isinf, LogicalNot,
    ];
    for function in all {
        let predicate = matches!(function, Isnan | Isinf | LogicalNot);
        let dtype = |dtype| if predicate { DType::Bool } else { dtype };
        let expected: Vec<f64> = inputs
            .iter()
            .map(|x| define(function, f64::from(*x)))
            .collect();
        let found = values(
            &mlx,
            &run(&mlx, &Op::Unary(function), &[&x], dtype(DType::Float32)),
        );
        assert!(
            difference(&found, &expected) < 4e-6,
            "{function:?} {found:?} {expected:?}"
        );

        // The inputs are exact in 16 bits but for 0.9 and 0.1: take what was rounded.
        for narrow in [DType::Float16, DType::Bfloat16] {
            let rounded = half(&mlx, &x, narrow);
            let exact: Vec<f32> = values(&mlx, &rounded)
                .iter()
                .map(|x| define(function, *x) as f32)
                .collect();
            let expected = values(&mlx, &half(&mlx, &floats(&exact, &[9]), narrow));
            let found = values(
                &mlx,
                &run(&mlx, &Op::Unary(function), &[&rounded], dtype(narrow)),
            );
            let off = found
                .iter()
                .zip(&expected)
                .filter(|(a, b)| a != b && !a.is_nan())
                .count();
            // The float32 result may fall to the other side of a tie.
            assert!(off <= 1, "{function:?} in {narrow}: {found:?} {expected:?}");
        }
    }
    let inverse = run(
        &mlx,
        &Op::Unary(Erfinv),
        &[&floats(&[erf(0.5) as f32], &[1])],
        DType::Float32,
    );
    assert!(difference(&values(&mlx, &inverse), &[0.5]) < 1e-6);
    let bits = run(
        &mlx,
        &Op::Unary(BitwiseNot),
        &[&longs(&[5, -1], &[2])],
        DType::Int64,
    );
    assert_eq!(values(&mlx, &bits), [-6.0, 0.0]);
}

#[test]
fn binary_functions_follow_python_on_floats_and_integers() {
    use Binary::*;
    let mlx = cpu();
    let (x, y) = ([7i64, -7, 7, -7, 6, 0], [3i64, 3, -3, -3, 3, 5]);
    let floor_divided = [2.0, -3.0, -3.0, 2.0, 2.0, 0.0];
    let remainder = [1.0, 2.0, -2.0, -1.0, 0.0, 0.0];
    let (long_x, long_y) = (longs(&x, &[6]), longs(&y, &[6]));
    for dtype in [
        DType::Int64,
        DType::Int32,
        DType::Float32,
        DType::Bfloat16,
        DType::Float16,
    ] {
        let (x, y) = (half(&mlx, &long_x, dtype), half(&mlx, &long_y, dtype));
        let quotient = run(&mlx, &Op::Binary(FloorDivide), &[&x, &y], dtype);
        assert_eq!(values(&mlx, &quotient), floor_divided, "{dtype}");
        let rest = run(&mlx, &Op::Binary(Remainder), &[&x, &y], dtype);
        assert_eq!(values(&mlx, &rest), remainder, "{dtype}");
        for (function, define) in [
            (Add, (|a, b| a + b) as fn(f64, f64) -> f64),
            (Sub, |a, b| a - b),
            (Mul, |a, b| a * b),
            (Maximum, f64::max),
            (Minimum, f64::min),
        ] {
            let expected: Vec<f64> = values(&mlx, &x)
                .iter()
                .zip(values(&mlx, &y))
                .map(|(a, b)| define(*a, b))
                .collect();
            assert_eq!(
                values(&mlx, &run(&mlx, &Op::Binary(function), &[&x, &y], dtype)),
                expected
            );
        }
        for (function, define) in [
            (Equal, (|a, b| a == b) as fn(f64, f64) -> bool),
            (NotEqual, |a, b| a != b),
            (Less, |a, b| a < b),
            (LessEqual, |a, b| a <= b),
            (Greater, |a, b| a > b),
            (GreaterEqual, |a, b| a >= b),
            (LogicalAnd, |a, b| a != 0.0 && b != 0.0),
            (LogicalOr, |a, b| a != 0.0 || b != 0.0),
            (LogicalXor, |a, b| (a != 0.0) != (b != 0.0)),
        ] {
            let pairs = values(&mlx, &x).into_iter().zip(values(&mlx, &y));
            let expected: Vec<f64> = pairs
                .map(|(a, b)| f64::from(u8::from(define(a, b))))
                .collect();
            let found = run(&mlx, &Op::Binary(function), &[&x, &y], DType::Bool);
            assert_eq!(values(&mlx, &found), expected, "{function:?} {dtype}");
        }
    }
    let bits = |function| {
        let (x, y) = (longs(&[12, 5], &[2]), longs(&[10, 1], &[2]));
        values(
            &mlx,
            &run(&mlx, &Op::Binary(function), &[&x, &y], DType::Int64),
        )
    };
    assert_eq!(bits(BitwiseAnd), [8.0, 1.0]);
    assert_eq!(bits(BitwiseOr), [14.0, 5.0]);
    assert_eq!(bits(BitwiseXor), [6.0, 4.0]);
    assert_eq!(bits(LeftShift), [12288.0, 10.0]);
    assert_eq!(bits(RightShift), [0.0, 2.0]);
    let real = |function, x: f32, y: f32| {
        let (x, y) = (floats(&[x], &[1]), floats(&[y], &[1]));
        values(
            &mlx,
            &run(&mlx, &Op::Binary(function), &[&x, &y], DType::Float32),
        )[0]
    };
    assert!((real(Pow, 2.5, 3.0) - 15.625).abs() < 1e-5);
    assert!((real(Div, 1.0, 3.0) - 1.0 / 3.0).abs() < 1e-7);
    assert!((real(Arctan2, 1.0, -1.0) - 2.356_194).abs() < 1e-5);
    assert!(real(Maximum, f32::NAN, 1.0).is_nan());
}

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
}

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
    let running = run(&mlx, &Op::Cumsum { axis: 0 }, &[&ones], DType::Bfloat16);
    assert_eq!(values(&mlx, &running)[4095], 4096.0);
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

fn rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

#[test]
fn norms_equal_their_definition_with_the_rounding_that_the_plan_states() {
    let mlx = cpu();
    let mut random = Random(11);
    let eps = Float::new(1e-3);
    for dtype in [DType::Float32, DType::Bfloat16, DType::Float16] {
        let round = |values: &[f64]| -> Vec<f64> {
            let narrow: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            let array = floats(&narrow, &[narrow.len() as i32]);
            self::values(&mlx, &half(&mlx, &array, dtype))
        };
        let array = |random: &mut Random, scale: f32| {
            let values: Vec<f32> = random.units(16).iter().map(|v| v * scale).collect();
            half(&mlx, &floats(&values, &[1, 16]), dtype)
        };
        let (x, residual) = (array(&mut random, 3.0), array(&mut random, 0.1));
        let weight = mlx.reshape(&array(&mut random, 1.0), &[16]).unwrap();
        let wide = mlx.cast(&weight, DType::Float32).unwrap();
        let (xs, rs, ws) = (
            values(&mlx, &x),
            values(&mlx, &residual),
            values(&mlx, &weight),
        );
        // One unit in the last place of the largest element, for sums in another order.
        let tolerance = match dtype {
            DType::Float32 => 1e-6,
            DType::Float16 => 2e-3,
            _ => 1.6e-2,
        };
        let normed = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| v * rms(x, eps.get())).collect() };
        let times = |x: &[f64]| -> Vec<f64> { x.iter().zip(&ws).map(|(a, b)| a * b).collect() };
        let mostly_equal = |found: &[f64], expected: &[f64]| {
            assert!(
                difference(found, expected) < tolerance,
                "{dtype} {found:?} {expected:?}"
            );
            if dtype != DType::Float32 {
                let off = found.iter().zip(expected).filter(|(a, b)| a != b).count();
                assert!(off <= 1, "{dtype} {found:?} {expected:?}");
            }
        };

        let op = Op::RmsNorm { eps };
        let found = values(&mlx, &run(&mlx, &op, &[&x, &weight], dtype));
        mostly_equal(&found, &round(&times(&round(&normed(&xs)))));
        let found = values(&mlx, &run(&mlx, &op, &[&x, &wide], dtype));
        mostly_equal(&found, &round(&times(&normed(&xs))));
        let found = values(&mlx, &run(&mlx, &op, &[&x], dtype));
        mostly_equal(&found, &round(&normed(&xs)));

        let sum: Vec<f64> = xs.iter().zip(&rs).map(|(a, b)| a + b).collect();
        for (rounded_sum, seen) in [(false, sum.clone()), (true, round(&sum))] {
            let op = Op::AddRmsNorm { eps, rounded_sum };
            let results = run_all(&mlx, &op, &[&x, &residual, &weight], dtype);
            mostly_equal(
                &values(&mlx, &results[0]),
                &round(&times(&round(&normed(&seen)))),
            );
            mostly_equal(&values(&mlx, &results[1]), &round(&sum));
            let results = run_all(&mlx, &op, &[&x, &residual, &wide], dtype);
            mostly_equal(&values(&mlx, &results[0]), &round(&times(&normed(&seen))));
            assert!(
                results
                    .iter()
                    .all(|result| mlx::dtype(result) == Some(dtype))
            );
        }

        let mean = xs.iter().sum::<f64>() / 16.0;
        let centred: Vec<f64> = xs.iter().map(|v| v - mean).collect();
        let found = run(&mlx, &Op::LayerNorm { eps }, &[&x, &weight, &weight], dtype);
        let expected: Vec<f64> = times(&normed(&centred))
            .iter()
            .zip(&ws)
            .map(|(a, b)| a + b)
            .collect();
        assert!(difference(&values(&mlx, &found), &expected) < tolerance * 2.0);
    }
}

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
    ] {
        let half = rotary / 2;
        let columns = if style == RopeStyle::RotateHalf {
            rotary
        } else {
            half
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
                        RopeStyle::Gptj => (row + 2 * pair, row + 2 * pair + 1),
                    };
                    // The second of a pair has columns of its own only in the last style.
                    let first = token * columns + pair;
                    let second = if columns == rotary {
                        first + half
                    } else {
                        first
                    };
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

#[test]
fn gated_activations_round_once() {
    let mlx = cpu();
    let inputs = [0.3f32, -1.2, 2.0, 0.7, -0.4, 1.1];
    for (activation, function) in [
        (Activation::Silu, Unary::Silu),
        (Activation::Gelu, Unary::Gelu),
        (Activation::GeluTanh, Unary::GeluTanh),
        (Activation::Relu, Unary::Relu),
    ] {
        for dtype in [DType::Float32, DType::Bfloat16] {
            let x = half(&mlx, &floats(&inputs, &[1, 6]), dtype);
            let xs = values(&mlx, &x);
            let exact: Vec<f32> = (0..3)
                .map(|i| (define(function, xs[i]) * xs[i + 3]) as f32)
                .collect();
            let expected = values(&mlx, &half(&mlx, &floats(&exact, &[3]), dtype));
            let found = values(
                &mlx,
                &run(&mlx, &Op::GatedActivation { activation }, &[&x], dtype),
            );
            let tolerance = if dtype == DType::Float32 { 1e-6 } else { 0.0 };
            assert!(
                difference(&found, &expected) <= tolerance,
                "{activation:?} {dtype}"
            );
        }
    }
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
