// SPDX-License-Identifier: Apache-2.0
//! Pointwise operators and casts.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::formula::Formula;
use super::graph::Importer;
use super::promote::{Operand, arithmetic, binary_value, operand, select};
use crate::ir::{Binary, Scalar, Unary, Value};

/// Claims whose lowering is one function of the IR.
macro_rules! functions {
    ($lower:ident, $kind:ident: $($target:literal => $function:ident,)*) => {
        &[$(($target, |importer, call| $lower(importer, call, $kind::$function))),*]
    };
}

/// Functions of one operand.
pub const UNARY: Claims = functions! { unary, Unary:
    "aten.neg.default" => Neg,
    "aten.abs.default" => Abs,
    "aten.sign.default" => Sign,
    "aten.sgn.default" => Sign,
    "aten.square.default" => Square,
    "aten.sqrt.default" => Sqrt,
    "aten.rsqrt.default" => Rsqrt,
    "aten.reciprocal.default" => Reciprocal,
    "aten.exp.default" => Exp,
    "aten.expm1.default" => Expm1,
    "aten.log.default" => Log,
    "aten.log1p.default" => Log1p,
    "aten.log2.default" => Log2,
    "aten.log10.default" => Log10,
    "aten.sin.default" => Sin,
    "aten.cos.default" => Cos,
    "aten.tan.default" => Tan,
    "aten.sinh.default" => Sinh,
    "aten.cosh.default" => Cosh,
    "aten.tanh.default" => Tanh,
    "aten.asin.default" => Arcsin,
    "aten.acos.default" => Arccos,
    "aten.atan.default" => Arctan,
    "aten.asinh.default" => Arcsinh,
    "aten.acosh.default" => Arccosh,
    "aten.atanh.default" => Arctanh,
    "aten.erf.default" => Erf,
    "aten.erfinv.default" => Erfinv,
    "aten.floor.default" => Floor,
    "aten.ceil.default" => Ceil,
    "aten.round.default" => Round,
    "aten.sigmoid.default" => Sigmoid,
    "aten.silu.default" => Silu,
    "aten.relu.default" => Relu,
    "aten.logical_not.default" => LogicalNot,
    "aten.bitwise_not.default" => BitwiseNot,
};

/// Functions of two operands.
pub const BINARY: Claims = functions! { binary, Binary:
    "aten.add.Tensor" => Add,
    "aten.add.Scalar" => Add,
    "aten.sub.Tensor" => Sub,
    "aten.sub.Scalar" => Sub,
    "aten.mul.Tensor" => Mul,
    "aten.mul.Scalar" => Mul,
    "aten.div.Tensor" => Div,
    "aten.div.Scalar" => Div,
    "aten.true_divide.Tensor" => Div,
    "aten.remainder.Tensor" => Remainder,
    "aten.remainder.Scalar" => Remainder,
    "aten.eq.Tensor" => Equal,
    "aten.eq.Scalar" => Equal,
    "aten.ne.Tensor" => NotEqual,
    "aten.ne.Scalar" => NotEqual,
    "aten.lt.Tensor" => Less,
    "aten.lt.Scalar" => Less,
    "aten.le.Tensor" => LessEqual,
    "aten.le.Scalar" => LessEqual,
    "aten.gt.Tensor" => Greater,
    "aten.gt.Scalar" => Greater,
    "aten.ge.Tensor" => GreaterEqual,
    "aten.ge.Scalar" => GreaterEqual,
    "aten.logical_and.default" => LogicalAnd,
    "aten.logical_or.default" => LogicalOr,
    "aten.logical_xor.default" => LogicalXor,
    "aten.bitwise_and.Tensor" => BitwiseAnd,
    "aten.bitwise_and.Scalar" => BitwiseAnd,
    "aten.bitwise_or.Tensor" => BitwiseOr,
    "aten.bitwise_or.Scalar" => BitwiseOr,
    "aten.bitwise_xor.Tensor" => BitwiseXor,
    "aten.bitwise_xor.Scalar" => BitwiseXor,
    "aten.bitwise_left_shift.Tensor" => LeftShift,
    "aten.bitwise_left_shift.Tensor_Scalar" => LeftShift,
    "aten.bitwise_right_shift.Tensor" => RightShift,
    "aten.bitwise_right_shift.Tensor_Scalar" => RightShift,
    "aten.atan2.default" => Arctan2,
};

/// Those whose in-place forms have overloads of other names, and those without one.
pub const BINARY_ONLY: Claims = functions! { binary, Binary:
    "aten.floor_divide.default" => FloorDivide,
    "aten.floor_divide.Scalar" => FloorDivide,
    "aten.maximum.default" => Maximum,
    "aten.minimum.default" => Minimum,
    "aten.pow.Scalar" => Pow,
    "aten.pow.Tensor_Scalar" => Pow,
    "aten.pow.Tensor_Tensor" => Pow,
    "aten.remainder.Scalar_Tensor" => Remainder,
    "aten.bitwise_and.Scalar_Tensor" => BitwiseAnd,
    "aten.bitwise_or.Scalar_Tensor" => BitwiseOr,
    "aten.bitwise_xor.Scalar_Tensor" => BitwiseXor,
    "aten.bitwise_left_shift.Scalar_Tensor" => LeftShift,
    "aten.bitwise_right_shift.Scalar_Tensor" => RightShift,
    "aten.__lshift__.Scalar" => LeftShift,
    "aten.__lshift__.Tensor" => LeftShift,
    "aten.__rshift__.Scalar" => RightShift,
    "aten.__rshift__.Tensor" => RightShift,
};

/// In-place forms of [`BINARY_ONLY`].
pub const IN_PLACE: Claims = functions! { binary, Binary:
    "aten.floor_divide_.Scalar" => FloorDivide,
    "aten.floor_divide_.Tensor" => FloorDivide,
    "aten.pow_.Scalar" => Pow,
    "aten.pow_.Tensor" => Pow,
};

/// Others that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.copy.default", copy),
    ("aten.clamp.default", clamp),
    ("aten.clamp.Tensor", clamp),
    ("aten.clamp_min.default", clamp_min),
    ("aten.clamp_min.Tensor", clamp_min),
    ("aten.clamp_max.default", clamp_max),
    ("aten.clamp_max.Tensor", clamp_max),
    ("aten.fill.Scalar", fill),
    ("aten.fill.Tensor", fill),
    ("aten.zero.default", fill),
    ("aten.div.Tensor_mode", div),
    ("aten.div.Scalar_mode", div),
    ("aten.addcmul.default", addcmul),
];

/// Those without.
pub const CLAIMS: Claims = &[
    ("aten._to_copy.default", to_copy),
    ("prims.convert_element_type.default", to_copy),
    ("aten.where.self", where_),
    ("aten.where.ScalarSelf", where_),
    ("aten.where.ScalarOther", where_),
    ("aten.where.Scalar", where_),
    ("aten.rsub.Tensor", rsub),
    ("aten.rsub.Scalar", rsub),
    ("aten.isnan.default", |importer, call| {
        unary(importer, call, Unary::Isnan)
    }),
    ("aten.ldexp.Tensor", ldexp),
    ("aten.isinf.default", |importer, call| {
        unary(importer, call, Unary::Isinf)
    }),
];

fn unary(importer: &mut Importer, call: &Call, function: Unary) -> Result<Item, String> {
    let [x] = call.bind(["self"])?;
    let mut value = importer.value(&x)?;
    // Whole numbers become floats first where the function's result is one.
    let dtype = call.result_dtype()?;
    if dtype.is_float() {
        value = importer.builder.cast(value, dtype)?;
    }
    let result = importer.builder.unary(function, value)?;
    Ok(importer.fresh(result))
}

fn binary(importer: &mut Importer, call: &Call, function: Binary) -> Result<Item, String> {
    let [x, y, alpha] = call.bind(["self", "other", "alpha"])?;
    let (x, y) = match call.kwargs.iter().find(|(name, _)| *name == "exponent") {
        Some((_, exponent)) => (x, exponent.clone()),
        None => (x, y),
    };
    let result = call.result_dtype()?;
    let value = binary_value(importer, function, &x, &y, &alpha, result)?;
    Ok(importer.fresh(value))
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
        Item::Str(mode) if mode == "trunc" && result.is_float() => {
            return importer.compute(call, [&x, &y], |[x, y]| (x / y).trunc());
        }
        // Quotients of magnitudes are rounded the same way by both modes.
        Item::Str(mode) if mode == "trunc" => {
            return importer.compute(call, [&x, &y], |[x, y]| {
                let negative = x.clone().less(0.0).xor(y.clone().less(0.0));
                let magnitude = x.abs().floor_divide(y.abs());
                negative.choose(-magnitude.clone(), magnitude)
            });
        }
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
    shaped_like(importer, &target, value)
}

fn fill(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [target, value] = call.bind(["self", "value"])?;
    let like = importer.value(&target)?;
    let dtype = importer.builder.dtype(like);
    let value = match &value {
        Item::None => importer.builder.scalar(Scalar::Int(0), dtype),
        Item::Tensor(_) => importer.value(&value)?,
        other => importer.builder.scalar(other.scalar()?, dtype),
    };
    shaped_like(importer, &target, value)
}

/// The value in the dtype and shape of a tensor argument.
fn shaped_like(importer: &mut Importer, like: &Item, value: Value) -> Result<Item, String> {
    let like = importer.value(like)?;
    let builder = &mut importer.builder;
    let (dtype, shape) = (builder.dtype(like), builder.shape(like).to_vec());
    let value = builder.cast(value, dtype)?;
    let value = builder.broadcast(value, shape)?;
    Ok(importer.fresh(value))
}

fn where_(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [condition, x, y] = call.bind(["condition", "self", "other"])?;
    let value = select(importer, &condition, &x, &y, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

fn clamp(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, low, high] = call.bind(["self", "min", "max"])?;
    between(importer, call, &x, &low, &high)
}

fn clamp_min(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, low] = call.bind(["self", "min"])?;
    between(importer, call, &x, &low, &Item::None)
}

fn clamp_max(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, high] = call.bind(["self", "max"])?;
    between(importer, call, &x, &Item::None, &high)
}

fn between(
    importer: &mut Importer,
    call: &Call,
    x: &Item,
    low: &Item,
    high: &Item,
) -> Result<Item, String> {
    let dtype = call.result_dtype()?;
    let value = importer.value(x)?;
    let mut value = importer.builder.cast(value, dtype)?;
    for (bound, function) in [(low, Binary::Maximum), (high, Binary::Minimum)] {
        if !bound.is_none() {
            let bound = operand(importer, bound)?;
            value = arithmetic(importer, function, [Operand::Tensor(value), bound], dtype)?;
        }
    }
    Ok(importer.fresh(value))
}

fn addcmul(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, a, b, value] = call.bind(["self", "tensor1", "tensor2", "value"])?;
    let scale = value.float_or(1.0)?;
    importer.compute(call, [&x, &a, &b], |[x, a, b]| x + (a * b) * scale)
}

/// `x 2^y`
fn ldexp(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, y] = call.bind(["self", "other"])?;
    importer.compute(call, [&x, &y], |[x, y]| x * Formula::Number(2.0).pow(y))
}
