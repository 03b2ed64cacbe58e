// SPDX-License-Identifier: Apache-2.0
//! Activations of `torch.nn.functional`.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use crate::ir::Unary;

/// Activations that have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.celu.default", celu),
    ("aten.elu.default", elu),
    ("aten.hardsigmoid.default", hardsigmoid),
    ("aten.hardswish.default", hardswish),
    ("aten.hardtanh.default", hardtanh),
    ("aten.leaky_relu.default", leaky_relu),
    ("aten.mish.default", mish),
    ("aten.threshold.default", threshold),
];

/// Activations without one, and GELU, whose in-place form is not ATen's.
pub const CLAIMS: Claims = &[
    ("aten._prelu_kernel.default", prelu),
    ("aten.gelu.default", gelu),
    ("aten.glu.default", glu),
    ("aten.hardshrink.default", hardshrink),
    ("aten.log_sigmoid_forward.default", log_sigmoid),
    ("aten.rrelu_with_noise.default", rrelu),
    ("aten.softplus.default", softplus),
    ("aten.softshrink.default", softshrink),
];

fn gelu(importer: &mut Importer, call: &Call) -> Lowered {
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

/// `max(low, min(high, x))`
fn hardtanh(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, low, high] = call.bind(["self", "min_val", "max_val"])?;
    let (low, high) = (low.float_or(-1.0)?, high.float_or(1.0)?);
    importer.compute(call, [&x], |[x]| x.maximum(low).minimum(high))
}

fn leaky_relu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, slope] = call.bind(["self", "negative_slope"])?;
    let slope = slope.float_or(0.01)?;
    importer.compute(call, [&x], |[x]| {
        x.clone().greater(0.0).choose(x.clone(), x * slope)
    })
}

/// `x where x > 0 else weight * x`
fn prelu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, weight] = call.bind(["self", "weight"])?;
    importer.compute(call, [&x, &weight], |[x, weight]| {
        x.clone().greater(0.0).choose(x.clone(), x * weight)
    })
}

/// `scale * x where x > 0 else alpha * scale * (exp(input_scale * x) - 1)`
fn elu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, alpha, scale, input_scale] = call.bind(["self", "alpha", "scale", "input_scale"])?;
    let scale = scale.float_or(1.0)?;
    let (alpha, input_scale) = (alpha.float_or(1.0)?, input_scale.float_or(1.0)?);
    importer.compute(call, [&x], |[x]| {
        let below = (x.clone() * input_scale).expm1() * (alpha * scale);
        x.clone().less_equal(0.0).choose(below, x * scale)
    })
}

/// `x where x > 0 else alpha * (exp(x / alpha) - 1)`
fn celu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, alpha] = call.bind(["self", "alpha"])?;
    let alpha = alpha.float_or(1.0)?;
    importer.compute(call, [&x], |[x]| {
        let below = (x.clone() / alpha).expm1() * alpha;
        x.clone().less_equal(0.0).choose(below, x)
    })
}

/// `min(max(x + 3, 0), 6) / 6`
fn hard_gate(x: Formula) -> Formula {
    (x + 3.0).maximum(0.0).minimum(6.0) / 6.0
}

fn hardsigmoid(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    importer.compute(call, [&x], |[x]| hard_gate(x))
}

fn hardswish(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    importer.compute(call, [&x], |[x]| {
        (x.clone() * (x + 3.0).maximum(0.0).minimum(6.0)) / 6.0
    })
}

/// `x tanh(log(1 + e^x))`
fn mish(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    importer.compute(call, [&x], |[x]| x.clone() * x.softplus().tanh())
}

/// `x where x > threshold else value`; a NaN stays.
fn threshold(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, threshold, value] = call.bind(["self", "threshold", "value"])?;
    let (threshold, value) = (threshold.float()?, value.float()?);
    importer.compute(call, [&x], |[x]| {
        x.clone().less_equal(threshold).choose(value, x)
    })
}

/// `a * sigmoid(b)` of the halves of an axis.
fn glu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, dim] = call.bind(["self", "dim"])?;
    let value = importer.value(&x)?;
    let shape = importer.builder.shape(value).to_vec();
    let axis = dim.axis(shape.len(), -1)?;
    let size = *shape.get(axis).ok_or("a gate of rank 0")?;
    let half = size.checked_div(2).ok_or("halves of an odd size")?;
    let a = importer.builder.slice(value, axis, 0.into(), half, 1)?;
    let b = importer.builder.slice(value, axis, half, size, 1)?;
    let (a, b) = (importer.fresh(a), importer.fresh(b));
    importer.compute(call, [&a, &b], |[a, b]| a * b.sigmoid())
}

/// `x` outside `[-lambd, lambd]`, 0 inside.
fn hardshrink(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, lambd] = call.bind(["self", "lambd"])?;
    let lambd = lambd.float_or(0.5)?;
    importer.compute(call, [&x], |[x]| {
        let inside = x.clone().abs().less_equal(lambd);
        inside.choose(0.0, x)
    })
}

/// `x` moved towards 0 by `lambd`, 0 where it is nearer than that.
fn softshrink(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, lambd] = call.bind(["self", "lambd"])?;
    let lambd = lambd.float_or(0.5)?;
    importer.compute(call, [&x], |[x]| {
        // A NaN is neither above nor below; multiplied by 0 it stays one.
        let inside = x.clone() * 0.0;
        let below = x.clone().less(-lambd).choose(x.clone() + lambd, inside);
        x.clone().greater(lambd).choose(x - lambd, below)
    })
}

/// `log(1 + exp(beta * x)) / beta`, and `x` where `beta * x > threshold`.
fn softplus(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, beta, threshold] = call.bind(["self", "beta", "threshold"])?;
    let (beta, threshold) = (beta.float_or(1.0)?, threshold.float_or(20.0)?);
    importer.compute(call, [&x], |[x]| {
        let scaled = x.clone() * beta;
        let linear = scaled.clone().greater(threshold);
        linear.choose(x, scaled.softplus() / beta)
    })
}

/// `-log(1 + exp(-x))`; the buffer that comes with it is for training.
fn log_sigmoid(importer: &mut Importer, call: &Call) -> Lowered {
    let [x] = call.bind(["self"])?;
    let dtype = importer.value(&x)?;
    let dtype = importer.builder.dtype(dtype);
    let value = importer.compute_value([&x], dtype, |[x]| -((-x).softplus()))?;
    Ok(Item::Tuple(vec![importer.fresh(value), Item::None]))
}

/// The randomised leaky ReLU as inference has it: the slope is the middle of its range.
fn rrelu(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, _, lower, upper, training, _] =
        call.bind(["self", "noise", "lower", "upper", "training", "generator"])?;
    if training.bool_or(false)? {
        return Err("training, which is random".into());
    }
    let slope = (lower.float_or(0.125)? + upper.float_or(1.0 / 3.0)?) / 2.0;
    importer.compute(call, [&x], |[x]| {
        x.clone().less_equal(0.0).choose(x.clone() * slope, x)
    })
}
