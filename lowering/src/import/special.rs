// SPDX-License-Identifier: Apache-2.0
//! Pointwise functions that are formulas of others.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::{DType, Reduction, Unary};
use std::f64::consts::{LN_2, LOG2_E, PI};

/// Claims that are a formula of one operand.
macro_rules! of_one {
    ($($target:literal => $formula:expr,)*) => {
        &[$(($target, |importer, call| {
            let [x] = call.bind(["self"])?;
            importer.compute(call, [&x], |[x]| $formula(x))
        })),*]
    };
}

/// Claims that are a formula of two operands.
macro_rules! of_two {
    ($($target:literal => $formula:expr,)*) => {
        &[$(($target, |importer, call| {
            let [x, y] = call.bind(["self", "other"])?;
            importer.compute(call, [&x, &y], |[x, y]| $formula(x, y))
        })),*]
    };
}

/// Functions of one operand.
pub const UNARY: Claims = of_one! {
    "aten.exp2.default" => |x: Formula| Formula::Number(2.0).pow(x),
    "aten.erfc.default" => |x: Formula| Formula::Number(1.0) - x.erf(),
    "aten.trunc.default" => trunc,
    "aten.fix.default" => trunc,
    "aten.frac.default" => |x: Formula| x.clone() - x.trunc(),
    "aten.sinc.default" => sinc,
    "aten.deg2rad.default" => |x: Formula| x * (PI / 180.0),
    "aten.rad2deg.default" => |x: Formula| x * (180.0 / PI),
};

/// Functions of one operand without an in-place form.
pub const UNARY_ONLY: Claims = of_one! {
    "aten.isposinf.default" => |x: Formula| x.clone().infinite().and(x.greater(0.0)),
    "aten.isneginf.default" => |x: Formula| x.clone().infinite().and(x.less(0.0)),
    "aten.angle.default" => angle,
    "aten.special_entr.default" => entr,
};

/// Functions of two operands.
pub const BINARY: Claims = of_two! {
    "aten.fmod.Tensor" => fmod,
    "aten.fmod.Scalar" => fmod,
    "aten.copysign.Tensor" => copysign,
    "aten.copysign.Scalar" => copysign,
    "aten.hypot.default" => hypot,
    "aten.xlogy.Tensor" => xlogy,
    "aten.xlogy.Scalar_Other" => xlogy,
};

/// Functions of two operands without an in-place form.
pub const BINARY_ONLY: Claims = of_two! {
    "aten.xlogy.Scalar_Self" => xlogy,
    "aten.special_xlog1py.default" => xlog1py,
    "aten.special_xlog1py.self_scalar" => xlog1py,
    "aten.special_xlog1py.other_scalar" => xlog1py,
    "aten.fmax.default" => |x: Formula, y: Formula| numbers_first(x.clone(), y.clone(), x.maximum(y)),
    "aten.fmin.default" => |x: Formula, y: Formula| numbers_first(x.clone(), y.clone(), x.minimum(y)),
    "aten.logaddexp.default" => |x: Formula, y: Formula| log_add(x, y, 1.0),
    "aten.logaddexp2.default" => |x: Formula, y: Formula| log_add(x, y, LN_2),
};

/// Others that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.nan_to_num.default", nan_to_num),
    ("aten.logit.default", logit),
    ("aten.round.decimals", round_decimals),
    ("aten.lerp.Scalar", lerp),
    ("aten.lerp.Tensor", lerp),
    ("aten.addcdiv.default", addcdiv),
    ("aten.heaviside.default", heaviside),
];

/// Those without.
pub const CLAIMS: Claims = &[
    ("aten.special_logit.default", logit),
    ("aten.signbit.default", signbit),
    ("aten.isin.Tensor_Tensor", isin),
    ("aten.isin.Tensor_Scalar", isin),
    ("aten.isin.Scalar_Tensor", isin),
];

fn signbit(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x] = call.bind(["self"])?;
    let of = importer.value(&x)?;
    let whole = importer.builder.dtype(of).is_integral();
    importer.compute(call, [&x], |[x]| match whole {
        true => x.less(0.0),
        false => x.sign_bit(),
    })
}

fn trunc(x: Formula) -> Formula {
    x.trunc()
}

/// `sin(pi x) / (pi x)`, 1 at 0.
fn sinc(x: Formula) -> Formula {
    let angle = x.clone() * PI;
    let ratio = angle.clone().sin() / angle;
    x.equal(0.0).choose(1.0, ratio)
}

/// `-x log x`, 0 at 0 and minus infinity below.
fn entr(x: Formula) -> Formula {
    let inside = -(x.clone() * x.clone().log());
    let edge = x.clone().equal(0.0).choose(0.0, f64::NEG_INFINITY);
    let outside = x.clone().less_equal(0.0).choose(edge, inside);
    x.clone().nan().choose(x, outside)
}

/// 0 or, for negative numbers, pi.
fn angle(x: Formula) -> Formula {
    let angle = x.clone().less(0.0).choose(PI, Formula::Number(0.0));
    x.clone().nan().choose(x, angle)
}

/// The remainder with the sign of `x`, exact: that of the magnitudes is.
fn fmod(x: Formula, y: Formula) -> Formula {
    let rest = x.clone().abs().remainder(y.abs());
    x.less(0.0).choose(-rest.clone(), rest)
}

fn copysign(x: Formula, y: Formula) -> Formula {
    let magnitude = x.abs();
    y.sign_bit().choose(-magnitude.clone(), magnitude)
}

/// `sqrt(x^2 + y^2)`, scaled by the larger so that no square overflows.
fn hypot(x: Formula, y: Formula) -> Formula {
    let (a, b) = (x.abs(), y.abs());
    let large = a.clone().maximum(b.clone());
    let ratio = a.minimum(b) / large.clone();
    let length = large.clone() * (ratio.square() + 1.0).sqrt();
    let plain = large.clone().equal(0.0).or(large.clone().infinite());
    plain.choose(large, length)
}

/// `x log y`, 0 where `x` is.
fn xlogy(x: Formula, y: Formula) -> Formula {
    let product = x.clone() * y.clone().log();
    let number = x.equal(0.0).choose(0.0, product);
    y.clone().nan().choose(y, number)
}

/// `x log(1 + y)`, 0 where `x` is.
fn xlog1py(x: Formula, y: Formula) -> Formula {
    let product = x.clone() * y.clone().log1p();
    let number = x.equal(0.0).choose(0.0, product);
    y.clone().nan().choose(y, number)
}

/// The operand that is a number where only one is, else `both`.
fn numbers_first(x: Formula, y: Formula, both: Formula) -> Formula {
    let second = y.clone().nan().choose(x.clone(), both);
    x.nan().choose(y, second)
}

/// `log(b^x + b^y)` to the base `b = e^base`.
pub fn log_add(x: Formula, y: Formula, base: f64) -> Formula {
    let gap = -((x.clone() - y.clone()).abs());
    let (gap, back) = match base {
        1.0 => (gap, 1.0),
        base => (gap * base, LOG2_E),
    };
    let sum = x.clone().maximum(y.clone()) + gap.exp().log1p() * back;
    // The gap of two equal infinities is no number.
    let same = x.clone().infinite().and(x.clone().equal(y));
    same.choose(x, sum)
}

fn nan_to_num(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, nan, above, below] = call.bind(["self", "nan", "posinf", "neginf"])?;
    let dtype = call.result_dtype()?;
    if !dtype.is_float() {
        let value = importer.value(&x)?;
        return Ok(importer.fresh(value));
    }
    let largest = match dtype {
        DType::Float16 => 65504.0,
        DType::Bfloat16 => f64::from(f32::from_bits(0x7f7f_0000)),
        _ => f64::from(f32::MAX),
    };
    let (nan, above, below) = (
        nan.float_or(0.0)?,
        above.float_or(largest)?,
        below.float_or(-largest)?,
    );
    importer.compute(call, [&x], |[x]| {
        let finite = x.clone().equal(f64::NEG_INFINITY).choose(below, x.clone());
        let finite = x.clone().equal(f64::INFINITY).choose(above, finite);
        x.nan().choose(nan, finite)
    })
}

fn logit(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, eps] = call.bind(["self", "eps"])?;
    let eps = match eps.is_none() {
        true => None,
        false => Some(eps.float()?),
    };
    importer.compute(call, [&x], |[x]| {
        // Above 1/2, the bounds cross and the lower one counts.
        let x = match eps {
            Some(eps) => {
                let below_high = x.clone().greater(1.0 - eps).choose(1.0 - eps, x.clone());
                x.less(eps).choose(eps, below_high)
            }
            None => x,
        };
        (x.clone() / (Formula::Number(1.0) - x)).log()
    })
}

/// ATen's own formula: `round(x * 10^d) / 10^d`.
fn round_decimals(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, decimals] = call.bind(["self", "decimals"])?;
    let decimals = decimals.int_or(0)?;
    let scale = 10f64.powi(i32::try_from(decimals.abs()).map_err(|_| "too many decimals")?);
    importer.compute(call, [&x], |[x]| match decimals {
        0 => x.round(),
        1.. => (x * scale).round() / scale,
        _ => (x / scale).round() * scale,
    })
}

/// ATen's own formula, which is exact at both ends.
fn lerp(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, end, weight] = call.bind(["self", "end", "weight"])?;
    importer.compute(call, [&x, &end, &weight], |[x, end, weight]| {
        let span = end.clone() - x.clone();
        let from_start = x + weight.clone() * span.clone();
        let from_end = end - span * (Formula::Number(1.0) - weight.clone());
        weight.abs().less(0.5).choose(from_start, from_end)
    })
}

fn addcdiv(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, a, b, value] = call.bind(["self", "tensor1", "tensor2", "value"])?;
    let scale = value.float_or(1.0)?;
    importer.compute(call, [&x, &a, &b], |[x, a, b]| x + (a / b) * scale)
}

/// 0 below 0, 1 above it, `y` at it.
fn heaviside(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, y] = call.bind(["self", "values"])?;
    importer.compute(call, [&x, &y], |[x, y]| {
        let step = x.clone().greater(0.0).indicator();
        x.equal(0.0).choose(y, step)
    })
}

/// Whether each element is among the test elements: all pairs are compared.
fn isin(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let names = match call.target() {
        "aten.isin.Tensor_Scalar" => ["elements", "test_element"],
        "aten.isin.Scalar_Tensor" => ["element", "test_elements"],
        _ => ["elements", "test_elements"],
    };
    let [x, tests, _, invert] = call.bind([names[0], names[1], "assume_unique", "invert"])?;
    let spread = match &x {
        Item::Tensor(_) => {
            let value = importer.value(&x)?;
            let rank = importer.builder.shape(value).len();
            let value = importer.builder.expand_dims(value, rank)?;
            importer.fresh(value)
        }
        number => number.clone(),
    };
    let tests = match &tests {
        Item::Tensor(_) => {
            let value = importer.value(&tests)?;
            let total = importer
                .builder
                .num_elements(value)
                .ok_or("a size that overflows")?;
            let value = importer.builder.reshape(value, vec![total])?;
            importer.fresh(value)
        }
        number => number.clone(),
    };
    let pairs = importer.compute_value([&spread, &tests], DType::Bool, |[x, y]| x.equal(y))?;
    let axis = importer.builder.shape(pairs).len().checked_sub(1);
    let mut found = match axis {
        Some(axis) => importer
            .builder
            .reduce(Reduction::Any, pairs, vec![axis], false)?,
        None => pairs,
    };
    if invert.bool_or(false)? {
        found = importer.builder.unary(Unary::LogicalNot, found)?;
    }
    Ok(importer.fresh(found))
}
