// SPDX-License-Identifier: Apache-2.0
//! Functions of elements.

use super::round::{Precision, round_float, wrap};
use super::tensor::{Data, Tensor};
use crate::ir::{Binary, DType, Unary};

type Computed = Result<Tensor, String>;

impl Precision {
    /// The float as the dtype holds it.
    pub(super) fn round(self, dtype: DType, value: f64) -> f64 {
        match self {
            Precision::Rounded => round_float(dtype, value),
            Precision::Unrounded => value,
        }
    }
}

fn bools(shape: Vec<usize>, values: impl Iterator<Item = bool>) -> Tensor {
    Tensor {
        dtype: DType::Bool,
        shape,
        data: Data::Int(values.map(i64::from).collect()),
    }
}

pub(super) fn cast(precision: Precision, x: &Tensor, dtype: DType) -> Computed {
    let data = match (&x.data, dtype.is_float()) {
        (Data::Float(values), true) => {
            Data::Float(values.iter().map(|v| precision.round(dtype, *v)).collect())
        }
        (Data::Int(values), true) => {
            let round = |v: &i64| precision.round(dtype, *v as f64);
            Data::Float(values.iter().map(round).collect())
        }
        (Data::Float(values), false) => {
            let whole = |v: &f64| match dtype {
                DType::Bool => (*v != 0.0).into(),
                _ => wrap(dtype, (*v as i64).into()),
            };
            Data::Int(values.iter().map(whole).collect())
        }
        (Data::Int(values), false) => {
            Data::Int(values.iter().map(|v| wrap(dtype, (*v).into())).collect())
        }
    };
    Ok(Tensor {
        dtype,
        shape: x.shape.clone(),
        data,
    })
}

pub(super) fn unary(precision: Precision, function: Unary, x: &Tensor) -> Computed {
    let shape = x.shape.clone();
    match function {
        Unary::LogicalNot => return Ok(bools(shape, x.to_f64().into_iter().map(|v| v == 0.0))),
        Unary::Isnan => return Ok(bools(shape, x.to_f64().into_iter().map(f64::is_nan))),
        Unary::Isinf => return Ok(bools(shape, x.to_f64().into_iter().map(f64::is_infinite))),
        _ => {}
    }
    let data = match &x.data {
        Data::Float(values) => {
            let values: Result<Vec<f64>, String> = values
                .iter()
                .map(|v| Ok(precision.round(x.dtype, float_function(function, *v)?)))
                .collect();
            Data::Float(values?)
        }
        Data::Int(values) => {
            let values: Result<Vec<i64>, String> = values
                .iter()
                .map(|v| int_function(function, x.dtype, *v))
                .collect();
            Data::Int(values?)
        }
    };
    Ok(Tensor {
        dtype: x.dtype,
        shape,
        data,
    })
}

/// A function of one float.
pub(super) fn float_function(function: Unary, x: f64) -> Result<f64, String> {
    Ok(match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x == 0.0 || x.is_nan() => x,
        Unary::Sign => x.signum(),
        Unary::Square => x * x,
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Exp => libm::exp(x),
        Unary::Expm1 => libm::expm1(x),
        Unary::Log => libm::log(x),
        Unary::Log1p => libm::log1p(x),
        Unary::Log2 => libm::log2(x),
        Unary::Log10 => libm::log10(x),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Tan => libm::tan(x),
        Unary::Sinh => libm::sinh(x),
        Unary::Cosh => libm::cosh(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Arcsin => libm::asin(x),
        Unary::Arccos => libm::acos(x),
        Unary::Arctan => libm::atan(x),
        Unary::Arcsinh => libm::asinh(x),
        Unary::Arccosh => libm::acosh(x),
        Unary::Arctanh => libm::atanh(x),
        Unary::Erf => libm::erf(x),
        Unary::Erfinv => erfinv(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
        Unary::Silu => x / (1.0 + libm::exp(-x)),
        Unary::Gelu => x * 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Unary::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * 0.5 * (1.0 + libm::tanh(inner))
        }
        Unary::Relu if x.is_nan() => x,
        Unary::Relu => x.max(0.0),
        Unary::Softplus => x.max(0.0) + libm::log1p(libm::exp(-x.abs())),
        Unary::LogicalNot | Unary::BitwiseNot | Unary::Isnan | Unary::Isinf => {
            return Err(format!("{} of floats", function.name()));
        }
    })
}

/// The inverse of `erf`, by bisection: slow, and as exact as `erf` is.
fn erfinv(y: f64) -> f64 {
    if y.abs() == 1.0 {
        return y * f64::INFINITY;
    }
    if y.is_nan() || y.abs() > 1.0 {
        return f64::NAN;
    }
    let (mut low, mut high) = (-6.0, 6.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if libm::erf(middle) < y {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

fn int_function(function: Unary, dtype: DType, x: i64) -> Result<i64, String> {
    let wide = i128::from(x);
    let result = match function {
        Unary::Neg => -wide,
        Unary::Abs => wide.abs(),
        Unary::Sign => wide.signum(),
        Unary::Square => wide * wide,
        Unary::Relu => wide.max(0),
        Unary::Floor | Unary::Ceil | Unary::Round => wide,
        Unary::BitwiseNot if dtype == DType::Bool => 1 - wide,
        Unary::BitwiseNot => !wide,
        _ => return Err(format!("{} of {dtype}", function.name())),
    };
    Ok(wrap(dtype, result))
}

pub(super) fn binary(
    precision: Precision,
    function: Binary,
    x: &Tensor,
    y: &Tensor,
    shape: Vec<usize>,
) -> Computed {
    let (x, y) = (x.broadcast(&shape)?, y.broadcast(&shape)?);
    let dtype = x.dtype;
    match (&x.data, &y.data) {
        (Data::Float(a), Data::Float(b)) => {
            let pairs = a.iter().copied().zip(b.iter().copied());
            if function.is_predicate() {
                let holds = |(a, b)| predicate(function, &a, &b, a != 0.0, b != 0.0);
                return Ok(bools(shape, pairs.map(holds)));
            }
            let values: Result<Vec<f64>, String> = pairs
                .map(|(a, b)| Ok(precision.round(dtype, of_floats(function, a, b)?)))
                .collect();
            Ok(Tensor {
                dtype,
                shape,
                data: Data::Float(values?),
            })
        }
        (Data::Int(a), Data::Int(b)) => {
            let pairs = a.iter().copied().zip(b.iter().copied());
            if function.is_predicate() {
                let holds = |(a, b)| predicate(function, &a, &b, a != 0, b != 0);
                return Ok(bools(shape, pairs.map(holds)));
            }
            let values: Result<Vec<i64>, String> =
                pairs.map(|(a, b)| of_ints(function, dtype, a, b)).collect();
            Ok(Tensor {
                dtype,
                shape,
                data: Data::Int(values?),
            })
        }
        _ => Err(format!(
            "{} of {} and {}",
            function.name(),
            x.dtype,
            y.dtype
        )),
    }
}

fn predicate<T: PartialOrd>(function: Binary, a: &T, b: &T, a_true: bool, b_true: bool) -> bool {
    match function {
        Binary::Equal => a == b,
        Binary::NotEqual => a != b,
        Binary::Less => a < b,
        Binary::LessEqual => a <= b,
        Binary::Greater => a > b,
        Binary::GreaterEqual => a >= b,
        Binary::LogicalAnd => a_true && b_true,
        Binary::LogicalOr => a_true || b_true,
        _ => a_true != b_true,
    }
}

fn of_floats(function: Binary, a: f64, b: f64) -> Result<f64, String> {
    let nan = a.is_nan() || b.is_nan();
    Ok(match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::FloorDivide if b == 0.0 => a / b,
        Binary::FloorDivide => ((a - remainder(a, b)) / b).round(),
        Binary::Remainder => remainder(a, b),
        Binary::Pow => libm::pow(a, b),
        Binary::Maximum | Binary::Minimum if nan => f64::NAN,
        Binary::Maximum => a.max(b),
        Binary::Minimum => a.min(b),
        Binary::Arctan2 => libm::atan2(a, b),
        _ => return Err(format!("{} of floats", function.name())),
    })
}

/// Python's `%`: the sign of the divisor.
fn remainder(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }
}

fn of_ints(function: Binary, dtype: DType, a: i64, b: i64) -> Result<i64, String> {
    let (x, y) = (i128::from(a), i128::from(b));
    let shift = u32::try_from(b)
        .ok()
        .filter(|by| (*by as usize) < 8 * dtype.size());
    let result = match function {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::FloorDivide | Binary::Remainder if y == 0 => {
            return Err("a division of whole numbers by 0".into());
        }
        Binary::FloorDivide => x.div_euclid(y) - i128::from(y < 0 && x.rem_euclid(y) != 0),
        Binary::Remainder => match x.rem_euclid(y) {
            rest if rest != 0 && y < 0 => rest + y,
            rest => rest,
        },
        Binary::Pow => i128::from(power(a, b)),
        Binary::Maximum => x.max(y),
        Binary::Minimum => x.min(y),
        Binary::BitwiseAnd => x & y,
        Binary::BitwiseOr => x | y,
        Binary::BitwiseXor => x ^ y,
        Binary::LeftShift => shift.map_or(0, |by| x << by),
        Binary::RightShift => x >> shift.unwrap_or(127),
        _ => return Err(format!("{} of {dtype}", function.name())),
    };
    Ok(wrap(dtype, result))
}

/// `a ** b` modulo 2^64; negative powers are rounded towards 0.
fn power(a: i64, b: i64) -> i64 {
    match (a, u64::try_from(b)) {
        (_, Ok(mut exponent)) => {
            let (mut result, mut base) = (1i64, a);
            while exponent > 0 {
                if exponent & 1 == 1 {
                    result = result.wrapping_mul(base);
                }
                base = base.wrapping_mul(base);
                exponent >>= 1;
            }
            result
        }
        (1, Err(_)) => 1,
        (-1, Err(_)) => 1 - 2 * (b & 1),
        _ => 0,
    }
}

pub(super) fn select(condition: &Tensor, x: &Tensor, y: &Tensor, shape: Vec<usize>) -> Computed {
    let condition = condition.broadcast(&shape)?;
    let (x, y) = (x.broadcast(&shape)?, y.broadcast(&shape)?);
    let chosen = condition.as_ints()?.iter().map(|c| *c != 0);
    let data = match (&x.data, &y.data) {
        (Data::Float(x), Data::Float(y)) => Data::Float(choose(chosen, x, y)),
        (Data::Int(x), Data::Int(y)) => Data::Int(choose(chosen, x, y)),
        _ => return Err("operands of two kinds".into()),
    };
    Ok(Tensor {
        dtype: x.dtype,
        shape,
        data,
    })
}

fn choose<T: Copy>(chosen: impl Iterator<Item = bool>, x: &[T], y: &[T]) -> Vec<T> {
    chosen
        .zip(x.iter().zip(y))
        .map(|(first, (x, y))| if first { *x } else { *y })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_divide_as_in_python() {
        let divide = |a, b| of_ints(Binary::FloorDivide, DType::Int64, a, b).unwrap();
        let rest = |a, b| of_ints(Binary::Remainder, DType::Int64, a, b).unwrap();
        for (a, b, quotient, remainder) in [
            (7, 2, 3, 1),
            (-7, 2, -4, 1),
            (7, -2, -4, -1),
            (-7, -2, 3, -1),
            (6, -2, -3, 0),
        ] {
            assert_eq!(
                (divide(a, b), rest(a, b)),
                (quotient, remainder),
                "{a} by {b}"
            );
        }
        assert!(of_ints(Binary::Remainder, DType::Int64, 1, 0).is_err());
        assert_eq!(power(3, 4), 81);
        assert_eq!(power(-1, -3), -1);
    }

    #[test]
    fn the_inverse_of_erf_inverts_it() {
        for x in [-2.0, -0.3, 0.0, 0.7, 1.5] {
            assert!((erfinv(libm::erf(x)) - x).abs() < 1e-12);
        }
    }

    #[test]
    fn inverse_functions_invert_theirs() {
        let of = |function, x| float_function(function, x).unwrap();
        for x in [1.25f64, 2.0, 3.5] {
            for (inverse, value) in [
                (Unary::Arcsinh, x.sinh()),
                (Unary::Arccosh, x.cosh()),
                (Unary::Arctanh, x.tanh()),
                (Unary::Log10, 10f64.powf(x)),
            ] {
                assert!(
                    (of(inverse, value) - x).abs() < 1e-12,
                    "{inverse:?} of {value}"
                );
            }
        }
        assert!(of(Unary::Arccosh, 0.5).is_nan());
    }
}
