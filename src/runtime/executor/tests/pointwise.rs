// SPDX-License-Identifier: Apache-2.0
//! Pointwise functions against their definition.

use super::*;
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
        Unary::Log10 => x.log10(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Tanh => x.tanh(),
        Unary::Arcsin => x.asin(),
        Unary::Arccos => x.acos(),
        Unary::Arctan => x.atan(),
        Unary::Arcsinh => x.asinh(),
        Unary::Arccosh => x.acosh(),
        Unary::Arctanh => x.atanh(),
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
        Neg, Abs, Sign, Square, Sqrt, Rsqrt, Reciprocal, Exp, Expm1, Log, Log1p, Log2, Log10, Sin,
        Cos, Tan, Sinh, Cosh, Tanh, Arcsin, Arccos, Arctan, Arcsinh, Arccosh, Arctanh, Erf, Floor,
        Ceil, Round, Sigmoid, Silu, Gelu, GeluTanh, Relu, Softplus, Isnan, Isinf, LogicalNot,
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
fn whole_divisions_that_a_processor_traps_on_do_not_end_the_process() {
    let mlx = cpu();
    let (x, y) = (longs(&[7, i64::MIN, -5], &[3]), longs(&[0, -1, -1], &[3]));
    for function in [Binary::FloorDivide, Binary::Remainder] {
        let found = run(&mlx, &Op::Binary(function), &[&x, &y], DType::Int64);
        assert_eq!(found.shape(), [3]);
        let of_minus_five = values(&mlx, &found)[2];
        let expected = if function == Binary::Remainder {
            0.0
        } else {
            5.0
        };
        assert_eq!(of_minus_five, expected);
    }
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
