// SPDX-License-Identifier: Apache-2.0
//! PyTorch's type promotion, made explicit.

use super::call::Item;
use super::graph::Importer;
use crate::ir::{Binary, DType, Op, Scalar, Unary, Value};

/// A tensor or a Python number as an operand.
pub enum Operand {
    Tensor(Value),
    Number(Scalar),
}

pub fn operand(importer: &mut Importer, item: &Item) -> Result<Operand, String> {
    match item {
        Item::Tensor(_) => importer.value(item).map(Operand::Tensor),
        other => other.scalar().map(Operand::Number),
    }
}

/// Order of the categories in type promotion: boolean, whole, floating.
fn category(dtype: DType) -> u8 {
    match dtype {
        DType::Bool => 0,
        dtype if dtype.is_float() => 2,
        _ => 1,
    }
}

/// The common dtype of two tensor operands (`torch.result_type`): a tensor with axes outranks one
/// without, and any tensor outranks a Python number, unless the lower one's category is higher.
pub fn promote(importer: &Importer, operands: &[Operand]) -> Result<DType, String> {
    let mut best: [Option<DType>; 3] = [None; 3];
    for operand in operands {
        let (rank, dtype) = match operand {
            Operand::Tensor(value) => {
                let full = !importer.builder.shape(*value).is_empty();
                (usize::from(!full), importer.builder.dtype(*value))
            }
            Operand::Number(Scalar::Bool(_)) => (2, DType::Bool),
            Operand::Number(Scalar::Float(_)) => (2, DType::Float32),
            Operand::Number(_) => (2, DType::Int64),
        };
        best[rank] = Some(match best[rank] {
            None => dtype,
            Some(other) => common(other, dtype),
        });
    }
    let mut result: Option<DType> = None;
    for dtype in best.into_iter().flatten() {
        result = match result {
            Some(stronger) if category(stronger) >= category(dtype) => Some(stronger),
            _ => Some(dtype),
        };
    }
    result.ok_or_else(|| "no operands".into())
}

/// The smallest dtype that both convert to.
pub fn common(a: DType, b: DType) -> DType {
    use DType::*;
    match (a, b) {
        (a, b) if a == b => a,
        (a, b) if category(a) != category(b) => {
            if category(a) > category(b) {
                a
            } else {
                b
            }
        }
        (Float16, Bfloat16) | (Bfloat16, Float16) => Float32,
        (Uint8, Int8) | (Int8, Uint8) => Int16,
        (a, b) => {
            if a.size() >= b.size() {
                a
            } else {
                b
            }
        }
    }
}

/// Whether a half-precision dtype holds the number exactly.
fn holds(dtype: DType, value: f64) -> bool {
    match dtype {
        DType::Float16 => half::f16::from_f64(value).to_f64() == value || value.is_nan(),
        DType::Bfloat16 => half::bf16::from_f64(value).to_f64() == value || value.is_nan(),
        _ => true,
    }
}

pub fn materialise(
    importer: &mut Importer,
    operand: &Operand,
    dtype: DType,
) -> Result<Value, String> {
    match operand {
        Operand::Tensor(value) => importer.builder.cast(*value, dtype),
        Operand::Number(scalar) => Ok(importer.builder.scalar(*scalar, dtype)),
    }
}

/// `f(a, b)` in PyTorch's arithmetic. A number that a half-precision dtype cannot hold makes the
/// operation float32, rounded once, as PyTorch computes it.
pub fn arithmetic(
    importer: &mut Importer,
    function: Binary,
    operands: [Operand; 2],
    result: DType,
) -> Result<Value, String> {
    let promoted = promote(importer, &operands)?;
    let mut compute = promoted;
    if result.is_float() && !promoted.is_float() {
        compute = result;
    }
    let inexact = operands.iter().any(|operand| match operand {
        Operand::Number(scalar) => scalar.as_f64().is_some_and(|value| !holds(compute, value)),
        Operand::Tensor(_) => false,
    });
    if compute.is_half() && inexact {
        compute = DType::Float32;
    }
    let a = materialise(importer, &operands[0], compute)?;
    let b = materialise(importer, &operands[1], compute)?;
    let value = importer.builder.binary(function, a, b)?;
    importer.builder.cast(value, result)
}

pub fn binary_value(
    importer: &mut Importer,
    function: Binary,
    x: &Item,
    y: &Item,
    alpha: &Item,
    result: DType,
) -> Result<Value, String> {
    let a = operand(importer, x)?;
    let mut b = operand(importer, y)?;
    if !alpha.is_none() && alpha.float()? != 1.0 {
        let scale = Operand::Number(alpha.scalar()?);
        let dtype = match &b {
            Operand::Tensor(value) => importer.builder.dtype(*value),
            Operand::Number(_) => result,
        };
        b = Operand::Tensor(arithmetic(importer, Binary::Mul, [b, scale], dtype)?);
    }
    if let (Binary::Pow, Operand::Tensor(base), Operand::Number(exponent)) = (function, &a, &b)
        && let Some(value) = power(importer, *base, exponent.as_f64(), result)?
    {
        return Ok(value);
    }
    arithmetic(importer, function, [a, b], result)
}

/// Powers that have an operator of their own.
fn power(
    importer: &mut Importer,
    base: Value,
    exponent: Option<f64>,
    result: DType,
) -> Result<Option<Value>, String> {
    let function = match exponent {
        Some(1.0) => return importer.builder.cast(base, result).map(Some),
        Some(2.0) => Unary::Square,
        Some(0.5) => Unary::Sqrt,
        Some(-0.5) => Unary::Rsqrt,
        Some(-1.0) => Unary::Reciprocal,
        _ => return Ok(None),
    };
    let base = importer.builder.cast(base, result)?;
    importer.builder.unary(function, base).map(Some)
}

pub fn select(
    importer: &mut Importer,
    condition: &Item,
    x: &Item,
    y: &Item,
    dtype: DType,
) -> Result<Value, String> {
    let condition = importer.value(condition)?;
    let condition = importer.builder.cast(condition, DType::Bool)?;
    let x = operand(importer, x)?;
    let y = operand(importer, y)?;
    let x = materialise(importer, &x, dtype)?;
    let y = materialise(importer, &y, dtype)?;
    importer.builder.add(Op::Where, &[condition, x, y])
}
