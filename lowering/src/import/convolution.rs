// SPDX-License-Identifier: Apache-2.0
//! Convolutions. PyTorch has channels first, the IR last: the axes are moved around each, and what
//! moves back and forth between two of them cancels.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Binary, Builder, Convolution, DType, Dim, Op, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[("aten.convolution.default", convolution)];

fn convolution(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [
        x,
        weight,
        bias,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
    ] = call.bind([
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "dilation",
        "transposed",
        "output_padding",
        "groups",
    ])?;
    let (x, weight) = (importer.value(&x)?, importer.value(&weight)?);
    let axes = importer.builder.shape(x).len().saturating_sub(2);
    let stride = per_axis(&stride, axes, 1)?;
    let padding = per_axis(&padding, axes, 0)?;
    let dilation = per_axis(&dilation, axes, 1)?;
    let groups = groups.int_or(1)?;
    if groups != 1 && axes > 2 {
        return Err("groups in three dimensions, which MLX has not".into());
    }
    let x = channels_last(importer, x)?;
    let (attributes, weight) = if transposed.bool_or(false)? {
        let extra = per_axis(&output_padding, axes, 0)?;
        transposed_convolution(importer, weight, stride, padding, dilation, &extra, groups)?
    } else {
        let attributes = Convolution {
            stride,
            low: padding.clone(),
            high: padding,
            dilation,
            expansion: vec![1; axes],
            groups,
            flip: false,
        };
        (attributes, channels_last(importer, weight)?)
    };
    let convolution = Op::Convolution(attributes);
    let value = if bias.is_none() {
        importer.builder.add(convolution, &[x, weight])?
    } else {
        let bias = importer.value(&bias)?;
        biased(&mut importer.builder, convolution, [x, weight, bias])?
    };
    let value = channels_first(importer, value)?;
    Ok(importer.fresh(value))
}

/// The sums and the bias, rounded once to the operands' dtype.
fn biased(builder: &mut Builder, convolution: Op, operands: [Value; 3]) -> Result<Value, String> {
    let dtype = builder.type_of(operands[0]).dtype;
    let mut wide = operands;
    if dtype.is_half() {
        for operand in &mut wide {
            *operand = builder.cast(*operand, DType::Float32)?;
        }
    }
    let [x, weight, bias] = wide;
    let sums = builder.add(convolution, &[x, weight])?;
    let shifted = builder.binary(Binary::Add, sums, bias)?;
    builder.cast(shifted, dtype)
}

/// The gradient of a convolution with respect to its input, as a convolution of the spread input.
fn transposed_convolution(
    importer: &mut Importer,
    weight: Value,
    stride: Vec<i64>,
    padding: Vec<i64>,
    dilation: Vec<i64>,
    extra: &[i64],
    groups: i64,
) -> Result<(Convolution, Value), String> {
    let axes = stride.len();
    let shape = importer.builder.shape(weight).to_vec();
    let [inputs, outputs, window @ ..] = shape.as_slice() else {
        return Err("a weight of rank 1".into());
    };
    let mut low = Vec::with_capacity(axes);
    for axis in 0..axes {
        let size = window.get(axis).and_then(|size| size.fixed());
        let size = size.ok_or("a window of a symbolic size")?;
        low.push(dilation[axis] * (size - 1) - padding[axis]);
    }
    let high: Vec<i64> = low
        .iter()
        .zip(extra)
        .map(|(low, extra)| low + extra)
        .collect();
    // [groups * c, m, ..] to [groups * m, .., c].
    let per_group = inputs
        .checked_div(groups)
        .ok_or("groups that do not divide the channels")?;
    let split = [&[Dim::Fixed(groups), per_group, *outputs], window].concat();
    let joined = outputs
        .checked_mul(Dim::Fixed(groups))
        .ok_or("a number of channels that overflows")?;
    let order = [0, 2].into_iter().chain(3..3 + axes).chain([1]).collect();
    let builder = &mut importer.builder;
    let weight = builder.reshape(weight, split)?;
    let weight = builder.transpose(weight, order)?;
    let weight = builder.reshape(weight, [&[joined], window, &[per_group]].concat())?;
    let attributes = Convolution {
        stride: vec![1; axes],
        low,
        high,
        dilation,
        expansion: stride,
        groups,
        flip: true,
    };
    Ok((attributes, weight))
}

/// A number for each axis; one number is for all.
pub(super) fn per_axis(item: &Item, axes: usize, default: i64) -> Result<Vec<i64>, String> {
    let given: Result<Vec<i64>, String> = item.list()?.iter().map(Item::int).collect();
    match given?.as_slice() {
        [] => Ok(vec![default; axes]),
        [one] => Ok(vec![*one; axes]),
        all if all.len() == axes => Ok(all.to_vec()),
        all => Err(format!("{all:?} for {axes} axes")),
    }
}

fn channels_last(importer: &mut Importer, x: Value) -> Result<Value, String> {
    let rank = importer.builder.shape(x).len();
    let order = [0].into_iter().chain(2..rank).chain([1]).collect();
    importer.builder.transpose(x, order)
}

fn channels_first(importer: &mut Importer, x: Value) -> Result<Value, String> {
    let last = importer.builder.shape(x).len().saturating_sub(1);
    let order = [0, last].into_iter().chain(1..last).collect();
    importer.builder.transpose(x, order)
}
