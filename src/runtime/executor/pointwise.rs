// SPDX-License-Identifier: Apache-2.0
//! Pointwise functions, with PyTorch's rounding: 16-bit floats are computed in float32 and rounded once.

use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, MlxResult, dtype, scalar};
use lowering::ir::{Activation, Binary, DType, Unary};

/// `x` in another dtype.
pub fn cast(mlx: &Mlx, x: &Array, to: DType) -> Result<Array> {
    Ok(mlx.cast(x, to)?)
}

/// MLX computes these exactly, or rounds once, in every dtype.
fn rounds_once(function: Unary) -> bool {
    use Unary::*;
    matches!(
        function,
        Neg | Abs
            | Sign
            | Square
            | Floor
            | Ceil
            | Round
            | Relu
            | LogicalNot
            | BitwiseNot
            | Isnan
            | Isinf
    )
}

/// `f(x)`
pub fn unary(mlx: &Mlx, function: Unary, x: &Array) -> Result<Array> {
    match dtype(x) {
        Some(narrow) if narrow.is_half() && !rounds_once(function) => {
            let rounded = |x: &[Array]| {
                let wide = mlx.cast(&x[0], DType::Float32)?;
                mlx.cast(&compute_unary(mlx, function, &wide)?, narrow)
            };
            Ok(mlx.joined(
                || function.name().to_owned(),
                std::slice::from_ref(x),
                &rounded,
            )?)
        }
        _ => Ok(compute_unary(mlx, function, x)?),
    }
}

fn compute_unary(mlx: &Mlx, function: Unary, x: &Array) -> MlxResult<Array> {
    match function {
        Unary::Neg => mlx.negative(x),
        Unary::Abs => mlx.abs(x),
        Unary::Sign => mlx.sign(x),
        Unary::Square => mlx.square(x),
        Unary::Sqrt => mlx.sqrt(x),
        Unary::Rsqrt => mlx.rsqrt(x),
        Unary::Reciprocal => mlx.reciprocal(x),
        Unary::Exp => mlx.exp(x),
        Unary::Expm1 => mlx.expm1(x),
        Unary::Log => mlx.log(x),
        Unary::Log1p => mlx.log1p(x),
        Unary::Log2 => mlx.log2(x),
        Unary::Log10 => mlx.log10(x),
        Unary::Sin => mlx.sin(x),
        Unary::Cos => mlx.cos(x),
        Unary::Tan => mlx.tan(x),
        Unary::Sinh => mlx.sinh(x),
        Unary::Cosh => mlx.cosh(x),
        Unary::Tanh => mlx.tanh(x),
        Unary::Arcsin => mlx.arcsin(x),
        Unary::Arccos => mlx.arccos(x),
        Unary::Arctan => mlx.arctan(x),
        Unary::Arcsinh => mlx.arcsinh(x),
        Unary::Arccosh => mlx.arccosh(x),
        Unary::Arctanh => mlx.arctanh(x),
        Unary::Erf => mlx.erf(x),
        Unary::Erfinv => mlx.erfinv(x),
        Unary::Floor => mlx.floor(x),
        Unary::Ceil => mlx.ceil(x),
        Unary::Round => mlx.round(x),
        Unary::Sigmoid => mlx.sigmoid(x),
        Unary::Silu => mlx.multiply(x, &mlx.sigmoid(x)?),
        Unary::Gelu => gelu(mlx, x),
        Unary::GeluTanh => gelu_tanh(mlx, x),
        Unary::Relu => mlx.maximum(x, &like(mlx, x, 0.0)?),
        Unary::Softplus => mlx.logaddexp(x, &like(mlx, x, 0.0)?),
        Unary::LogicalNot => mlx.logical_not(x),
        Unary::BitwiseNot => match dtype(x) {
            Some(DType::Bool) => mlx.logical_not(x),
            _ => mlx.bitwise_invert(x),
        },
        Unary::Isnan => mlx.isnan(x),
        Unary::Isinf => mlx.isinf(x),
    }
}

/// A constant in the dtype of `x`.
fn like(mlx: &Mlx, x: &Array, value: f64) -> MlxResult<Array> {
    scalar(mlx, value, dtype(x).unwrap_or(DType::Float32))
}

/// `x * 0.5 * (1 + erf(x / sqrt 2))`
fn gelu(mlx: &Mlx, x: &Array) -> MlxResult<Array> {
    let scaled = mlx.multiply(x, &like(mlx, x, std::f64::consts::FRAC_1_SQRT_2)?)?;
    let cdf = mlx.add(&mlx.erf(&scaled)?, &like(mlx, x, 1.0)?)?;
    mlx.multiply(&mlx.multiply(x, &like(mlx, x, 0.5)?)?, &cdf)
}

/// `x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`
fn gelu_tanh(mlx: &Mlx, x: &Array) -> MlxResult<Array> {
    let beta = like(mlx, x, (2.0 / std::f64::consts::PI).sqrt())?;
    let cube = mlx.multiply(&mlx.square(x)?, x)?;
    let inner = mlx.add(x, &mlx.multiply(&cube, &like(mlx, x, 0.044_715)?)?)?;
    let tanh = mlx.tanh(&mlx.multiply(&inner, &beta)?)?;
    let half = mlx.multiply(x, &like(mlx, x, 0.5)?)?;
    mlx.multiply(&half, &mlx.add(&tanh, &like(mlx, x, 1.0)?)?)
}

/// `f(x, y)` of operands of one dtype.
pub fn binary(mlx: &Mlx, function: Binary, x: &Array, y: &Array) -> Result<Array> {
    use Binary::*;
    let kind = dtype(x).ok_or_else(|| Error::Unsupported("an operand of unknown dtype".into()))?;
    // One operation of MLX rounds once by itself; these are made of several.
    let composite = matches!(function, FloorDivide | Remainder | Pow | Arctan2);
    if kind.is_half() && composite {
        let (wide_x, wide_y) = (mlx.cast(x, DType::Float32)?, mlx.cast(y, DType::Float32)?);
        return Ok(mlx.cast(
            &compute_binary(mlx, function, DType::Float32, &wide_x, &wide_y)?,
            kind,
        )?);
    }
    Ok(compute_binary(mlx, function, kind, x, y)?)
}

fn compute_binary(
    mlx: &Mlx,
    function: Binary,
    kind: DType,
    x: &Array,
    y: &Array,
) -> MlxResult<Array> {
    match function {
        Binary::Add => mlx.add(x, y),
        Binary::Sub => mlx.subtract(x, y),
        Binary::Mul => mlx.multiply(x, y),
        Binary::Div => mlx.divide(x, y),
        Binary::FloorDivide => floor_divide(mlx, kind, x, y),
        Binary::Remainder => mlx.remainder(x, &whole_divisor(mlx, kind, y)?),
        Binary::Pow => power(mlx, kind, x, y),
        Binary::Maximum => mlx.maximum(x, y),
        Binary::Minimum => mlx.minimum(x, y),
        Binary::Equal => mlx.equal(x, y),
        Binary::NotEqual => mlx.not_equal(x, y),
        Binary::Less => mlx.less(x, y),
        Binary::LessEqual => mlx.less_equal(x, y),
        Binary::Greater => mlx.greater(x, y),
        Binary::GreaterEqual => mlx.greater_equal(x, y),
        Binary::LogicalAnd => mlx.logical_and(x, y),
        Binary::LogicalOr => mlx.logical_or(x, y),
        Binary::LogicalXor => mlx.not_equal(&mlx.cast(x, DType::Bool)?, &mlx.cast(y, DType::Bool)?),
        Binary::BitwiseAnd if kind == DType::Bool => mlx.logical_and(x, y),
        Binary::BitwiseOr if kind == DType::Bool => mlx.logical_or(x, y),
        Binary::BitwiseXor if kind == DType::Bool => mlx.not_equal(x, y),
        Binary::BitwiseAnd => mlx.bitwise_and(x, y),
        Binary::BitwiseOr => mlx.bitwise_or(x, y),
        Binary::BitwiseXor => mlx.bitwise_xor(x, y),
        Binary::LeftShift => mlx.left_shift(x, y),
        Binary::RightShift => mlx.right_shift(x, y),
        Binary::Arctan2 => mlx.arctan2(x, y),
    }
}

fn is_signed(kind: DType) -> bool {
    matches!(
        kind,
        DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64
    )
}

/// `y` with 1 for divisors that a processor ends the process at: zero, which PyTorch refuses and
/// gives no value for, and -1, by which the least number has no quotient.
fn whole_divisor(mlx: &Mlx, kind: DType, y: &Array) -> MlxResult<Array> {
    if kind.is_float() || kind == DType::Bool {
        return Ok(y.clone());
    }
    let one = scalar(mlx, 1.0, kind)?;
    let traps = mlx.equal(y, &scalar(mlx, 0.0, kind)?)?;
    let traps = match is_signed(kind) {
        true => mlx.logical_or(&traps, &mlx.equal(y, &scalar(mlx, -1.0, kind)?)?)?,
        false => traps,
    };
    mlx.select(&traps, &one, y)
}

/// Rounds towards minus infinity; MLX's integer division rounds towards zero.
fn floor_divide(mlx: &Mlx, kind: DType, x: &Array, y: &Array) -> MlxResult<Array> {
    let divisor = whole_divisor(mlx, kind, y)?;
    if !is_signed(kind) {
        return mlx.floor_divide(x, &divisor);
    }
    let whole = mlx.subtract(x, &mlx.remainder(x, &divisor)?)?;
    let by_minus_one = mlx.equal(y, &scalar(mlx, -1.0, kind)?)?;
    let quotient = mlx.floor_divide(&whole, &divisor)?;
    mlx.select(&by_minus_one, &mlx.negative(x)?, &quotient)
}

/// Whole powers by negative exponents are 0, but for bases 1 and -1.
fn power(mlx: &Mlx, kind: DType, x: &Array, y: &Array) -> MlxResult<Array> {
    if !is_signed(kind) {
        return mlx.power(x, y);
    }
    let (zero, one) = (scalar(mlx, 0.0, kind)?, scalar(mlx, 1.0, kind)?);
    let whole = mlx.power(x, &mlx.maximum(y, &zero)?)?;
    let of_unit = mlx.power(x, &mlx.bitwise_and(y, &one)?)?;
    let is_unit = mlx.equal(&mlx.abs(x)?, &one)?;
    let fraction = mlx.select(&is_unit, &of_unit, &zero)?;
    mlx.select(&mlx.less(y, &zero)?, &fraction, &whole)
}

/// `f(gate) * up`, of both halves of the only operand or of two, rounded once.
pub fn gated(mlx: &Mlx, activation: Activation, operands: &[&Array]) -> Result<Array> {
    let halves = match operands {
        [gate, up] => [(*gate).clone(), (*up).clone()],
        [x] => {
            let axis = x
                .ndim()
                .checked_sub(1)
                .ok_or_else(|| Error::Unsupported("rank 0".into()))?;
            let size = x.shape()[axis];
            [
                mlx.slice(x, axis, 0, size / 2, 1)?,
                mlx.slice(x, axis, size / 2, size, 1)?,
            ]
        }
        _ => return Err(Error::Unsupported("a gate of other operands".into())),
    };
    let name = || format!("{activation:?} of a gate");
    Ok(mlx.joined(name, &halves, &|halves| product(mlx, activation, halves))?)
}

fn product(mlx: &Mlx, activation: Activation, halves: &[Array]) -> MlxResult<Array> {
    let narrow = dtype(&halves[0]).filter(|kind| kind.is_half());
    let wide = |x: &Array| match narrow {
        Some(_) => mlx.cast(x, DType::Float32),
        None => Ok(x.clone()),
    };
    let (gate, up) = (wide(&halves[0])?, wide(&halves[1])?);
    let active = match activation {
        Activation::Silu => compute_unary(mlx, Unary::Silu, &gate)?,
        Activation::Gelu => compute_unary(mlx, Unary::Gelu, &gate)?,
        Activation::GeluTanh => compute_unary(mlx, Unary::GeluTanh, &gate)?,
        Activation::Relu => compute_unary(mlx, Unary::Relu, &gate)?,
        Activation::Swish { alpha } => {
            let alpha = scalar(mlx, alpha.get(), DType::Float32)?;
            mlx.multiply(&gate, &mlx.sigmoid(&mlx.multiply(&gate, &alpha)?)?)?
        }
    };
    let product = mlx.multiply(&active, &up)?;
    match narrow {
        Some(narrow) => mlx.cast(&product, narrow),
        None => Ok(product),
    }
}
