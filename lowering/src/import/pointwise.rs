// SPDX-License-Identifier: Apache-2.0
//! Pointwise operators and casts, with PyTorch's type promotion made explicit.

use super::call::{Call, Item};
use super::graph::Importer;
use crate::ir::{Binary, DType, Float, Op, Scalar, Unary, Value};

type Lowered = Option<Result<Item, String>>;

/// Lowers the call if it is one of this family.
pub fn lower(importer: &mut Importer, call: &Call) -> Lowered {
    let target = call.target();
    if let Some(name) = target.strip_prefix("aten.") {
        let (name, overload) = name.split_once('.').unwrap_or((name, ""));
        let (name, in_place) = match name.strip_suffix('_') {
            Some(plain) if !plain.ends_with('_') => (plain, true),
            _ => (name, false),
        };
        if let Some(function) = unary_function(name) {
            return Some(unary(importer, call, function, in_place));
        }
        if let Some(function) = binary_function(name, overload) {
            return Some(binary(importer, call, function, in_place));
        }
        return Some(match name {
            "_to_copy" | "to" => to_copy(importer, call),
            "copy" => copy(importer, call),
            "where" => where_(importer, call),
            "clamp" | "clamp_min" | "clamp_max" => clamp(importer, call, name),
            "rsub" => rsub(importer, call),
            "fill" | "zero" if in_place => fill(importer, call),
            "masked_fill" => masked_fill(importer, call, in_place),
            "gelu" => gelu(importer, call),
            "div" => div(importer, call),
            "addcmul" => addcmul(importer, call),
            "leaky_relu" => leaky_relu(importer, call),
            "hardtanh" => hardtanh(importer, call),
            _ => return None,
        });
    }
    None
}

fn unary_function(name: &str) -> Option<Unary> {
    Some(match name {
        "neg" => Unary::Neg,
        "abs" => Unary::Abs,
        "sign" | "sgn" => Unary::Sign,
        "square" => Unary::Square,
        "sqrt" => Unary::Sqrt,
        "rsqrt" => Unary::Rsqrt,
        "reciprocal" => Unary::Reciprocal,
        "exp" => Unary::Exp,
        "expm1" => Unary::Expm1,
        "log" => Unary::Log,
        "log1p" => Unary::Log1p,
        "log2" => Unary::Log2,
        "sin" => Unary::Sin,
        "cos" => Unary::Cos,
        "tan" => Unary::Tan,
        "sinh" => Unary::Sinh,
        "cosh" => Unary::Cosh,
        "tanh" => Unary::Tanh,
        "asin" => Unary::Arcsin,
        "acos" => Unary::Arccos,
        "atan" => Unary::Arctan,
        "erf" => Unary::Erf,
        "erfinv" => Unary::Erfinv,
        "floor" => Unary::Floor,
        "ceil" => Unary::Ceil,
        "round" => Unary::Round,
        "sigmoid" => Unary::Sigmoid,
        "silu" => Unary::Silu,
        "relu" => Unary::Relu,
        "logical_not" => Unary::LogicalNot,
        "bitwise_not" => Unary::BitwiseNot,
        "isnan" => Unary::Isnan,
        "isinf" => Unary::Isinf,
        _ => return None,
    })
}

fn binary_function(name: &str, overload: &str) -> Option<Binary> {
    Some(match (name, overload) {
        ("add", _) => Binary::Add,
        ("sub", _) => Binary::Sub,
        ("mul", _) => Binary::Mul,
        ("div", "Tensor" | "Scalar") | ("true_divide", _) => Binary::Div,
        ("floor_divide", _) => Binary::FloorDivide,
        ("remainder", _) => Binary::Remainder,
        ("pow", _) => Binary::Pow,
        ("maximum", _) => Binary::Maximum,
        ("minimum", _) => Binary::Minimum,
        ("eq", _) => Binary::Equal,
        ("ne", _) => Binary::NotEqual,
        ("lt", _) => Binary::Less,
        ("le", _) => Binary::LessEqual,
        ("gt", _) => Binary::Greater,
        ("ge", _) => Binary::GreaterEqual,
        ("logical_and", _) => Binary::LogicalAnd,
        ("logical_or", _) => Binary::LogicalOr,
        ("logical_xor", _) => Binary::LogicalXor,
        ("bitwise_and", _) | ("__and__", _) => Binary::BitwiseAnd,
        ("bitwise_or", _) | ("__or__", _) => Binary::BitwiseOr,
        ("bitwise_xor", _) | ("__xor__", _) => Binary::BitwiseXor,
        ("bitwise_left_shift", _) | ("__lshift__", _) => Binary::LeftShift,
        ("bitwise_right_shift", _) | ("__rshift__", _) => Binary::RightShift,
        ("atan2", _) => Binary::Arctan2,
        _ => return None,
    })
}

/// Stores the result in the first argument for an in-place call, else yields it.
fn finish(
    importer: &mut Importer,
    target: &Item,
    value: Value,
    in_place: bool,
) -> Result<Item, String> {
    if !in_place {
        return Ok(importer.fresh(value));
    }
    let old = importer.value(target)?;
    let (dtype, shape) = (
        importer.builder.dtype(old),
        importer.builder.shape(old).to_vec(),
    );
    let value = importer.builder.cast(value, dtype)?;
    let value = importer.builder.broadcast(value, shape)?;
    importer.write(target, value)
}

fn unary(
    importer: &mut Importer,
    call: &Call,
    function: Unary,
    in_place: bool,
) -> Result<Item, String> {
    let [x] = call.bind(["self"])?;
    let mut value = importer.value(&x)?;
    // Whole numbers become floats first where the function's result is one.
    let dtype = call.result_dtype()?;
    if dtype.is_float() {
        value = importer.builder.cast(value, dtype)?;
    }
    let result = importer.builder.unary(function, value)?;
    finish(importer, &x, result, in_place)
}

/// A tensor or a Python number as an operand.
enum Operand {
    Tensor(Value),
    Number(Scalar),
}

fn operand(importer: &mut Importer, item: &Item) -> Result<Operand, String> {
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
fn promote(importer: &Importer, operands: &[Operand]) -> Result<DType, String> {
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
fn common(a: DType, b: DType) -> DType {
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

fn materialise(importer: &mut Importer, operand: &Operand, dtype: DType) -> Result<Value, String> {
    match operand {
        Operand::Tensor(value) => importer.builder.cast(*value, dtype),
        Operand::Number(scalar) => Ok(importer.builder.scalar(*scalar, dtype)),
    }
}

/// `f(a, b)` in PyTorch's arithmetic. A number that a half-precision dtype cannot hold makes the
/// operation float32, rounded once, as PyTorch computes it.
fn arithmetic(
    importer: &mut Importer,
    function: Binary,
    operands: [Operand; 2],
    result: DType,
) -> Result<Value, String> {
    let promoted = promote(importer, &operands)?;
    let mut compute = promoted;
    if function == Binary::Div && !promoted.is_float() {
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

fn binary(
    importer: &mut Importer,
    call: &Call,
    function: Binary,
    in_place: bool,
) -> Result<Item, String> {
    let [x, y, alpha] = call.bind(["self", "other", "alpha"])?;
    let (x, y) = match call.kwargs.iter().find(|(name, _)| *name == "exponent") {
        Some((_, exponent)) => (x, exponent.clone()),
        None => (x, y),
    };
    let result = call.result_dtype()?;
    let value = binary_value(importer, function, &x, &y, &alpha, result)?;
    finish(importer, &x, value, in_place)
}

fn binary_value(
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

fn rsub(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, y, alpha] = call.bind(["self", "other", "alpha"])?;
    let value = binary_value(importer, Binary::Sub, &y, &x, &alpha, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

fn div(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, y, mode] = call.bind(["self", "other", "rounding_mode"])?;
    let result = call.result_dtype()?;
    let function = match &mode {
        Item::None => Binary::Div,
        Item::Str(mode) if mode == "floor" => Binary::FloorDivide,
        other => return Err(format!("rounding mode {other:?}")),
    };
    let value = binary_value(importer, function, &x, &y, &Item::None, result)?;
    Ok(importer.fresh(value))
}

fn to_copy(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, _, _, _] = call.bind(["self", "dtype", "_", "copy"])?;
    let value = importer.value(&x)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

fn copy(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [target, source] = call.bind(["self", "src"])?;
    let value = importer.value(&source)?;
    if call.target() == "aten.copy.default" {
        let old = importer.value(&target)?;
        let (dtype, shape) = (
            importer.builder.dtype(old),
            importer.builder.shape(old).to_vec(),
        );
        let value = importer.builder.cast(value, dtype)?;
        let value = importer.builder.broadcast(value, shape)?;
        return Ok(importer.fresh(value));
    }
    finish(importer, &target, value, true)
}

fn fill(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [target, value] = call.bind(["self", "value"])?;
    let old = importer.value(&target)?;
    let dtype = importer.builder.dtype(old);
    let value = match &value {
        Item::None => importer.builder.scalar(Scalar::Int(0), dtype),
        Item::Tensor(_) => importer.value(&value)?,
        other => importer.builder.scalar(other.scalar()?, dtype),
    };
    finish(importer, &target, value, true)
}

fn where_(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [condition, x, y] = call.bind(["condition", "self", "other"])?;
    let value = select(importer, &condition, &x, &y, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

fn select(
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

fn masked_fill(importer: &mut Importer, call: &Call, in_place: bool) -> Result<Item, String> {
    let [x, mask, value] = call.bind(["self", "mask", "value"])?;
    let result = select(importer, &mask, &value, &x, call.result_dtype()?)?;
    finish(importer, &x, result, in_place)
}

fn clamp(importer: &mut Importer, call: &Call, name: &str) -> Result<Item, String> {
    let (x, low, high) = match name {
        "clamp_min" => call
            .bind(["self", "min"])
            .map(|[x, low]| (x, low, Item::None))?,
        "clamp_max" => call
            .bind(["self", "max"])
            .map(|[x, high]| (x, Item::None, high))?,
        _ => call
            .bind(["self", "min", "max"])
            .map(|[x, low, high]| (x, low, high))?,
    };
    let dtype = call.result_dtype()?;
    let value = importer.value(&x)?;
    let mut value = importer.builder.cast(value, dtype)?;
    for (bound, function) in [(low, Binary::Maximum), (high, Binary::Minimum)] {
        if !bound.is_none() {
            let bound = operand(importer, &bound)?;
            value = arithmetic(importer, function, [Operand::Tensor(value), bound], dtype)?;
        }
    }
    finish(importer, &x, value, call.target().contains("_."))
}

fn hardtanh(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, low, high] = call.bind(["self", "min_val", "max_val"])?;
    let dtype = call.result_dtype()?;
    let mut value = importer.value(&x)?;
    for (bound, function) in [
        (low.float_or(-1.0)?, Binary::Maximum),
        (high.float_or(1.0)?, Binary::Minimum),
    ] {
        let bound = Operand::Number(Scalar::Float(Float::new(bound)));
        value = arithmetic(importer, function, [Operand::Tensor(value), bound], dtype)?;
    }
    Ok(importer.fresh(value))
}

fn gelu(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, approximate] = call.bind(["self", "approximate"])?;
    let function = match &approximate {
        Item::None => Unary::Gelu,
        Item::Str(kind) if kind == "none" => Unary::Gelu,
        Item::Str(kind) if kind == "tanh" => Unary::GeluTanh,
        other => return Err(format!("approximation {other:?}")),
    };
    let value = importer.value(&x)?;
    let value = importer.builder.unary(function, value)?;
    Ok(importer.fresh(value))
}

fn addcmul(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, a, b, value] = call.bind(["self", "tensor1", "tensor2", "value"])?;
    let dtype = call.result_dtype()?;
    let product = binary_value(importer, Binary::Mul, &a, &b, &Item::None, dtype)?;
    let product = importer.fresh(product);
    let sum = binary_value(importer, Binary::Add, &x, &product, &value, dtype)?;
    Ok(importer.fresh(sum))
}

fn leaky_relu(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, slope] = call.bind(["self", "negative_slope"])?;
    let dtype = call.result_dtype()?;
    let value = importer.value(&x)?;
    let zero = importer.builder.scalar(Scalar::Int(0), dtype);
    let slope = Operand::Number(Scalar::Float(Float::new(slope.float_or(0.01)?)));
    let scaled = arithmetic(
        importer,
        Binary::Mul,
        [Operand::Tensor(value), slope],
        dtype,
    )?;
    let positive = importer.builder.binary(Binary::Greater, value, zero)?;
    let value = importer
        .builder
        .add(Op::Where, &[positive, value, scaled])?;
    Ok(importer.fresh(value))
}
