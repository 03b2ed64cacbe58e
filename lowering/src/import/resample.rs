// SPDX-License-Identifier: Apache-2.0
//! Resampling of grids, and windows of images as columns.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::index::in_range;
use crate::ir::{DType, Dim, Op, Value, product};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten._upsample_nearest_exact1d.default", |i, call| {
        resample(i, call, nearest_exact)
    }),
    ("aten._upsample_nearest_exact2d.default", |i, call| {
        resample(i, call, nearest_exact)
    }),
    ("aten._upsample_nearest_exact3d.default", |i, call| {
        resample(i, call, nearest_exact)
    }),
    ("aten.im2col.default", im2col),
    ("aten.upsample_bicubic2d.default", |i, call| {
        resample(i, call, cubic)
    }),
    ("aten.upsample_bilinear2d.default", |i, call| {
        resample(i, call, linear)
    }),
    ("aten.upsample_linear1d.default", |i, call| {
        resample(i, call, linear)
    }),
    ("aten.upsample_nearest1d.default", |i, call| {
        resample(i, call, nearest)
    }),
    ("aten.upsample_nearest2d.default", |i, call| {
        resample(i, call, nearest)
    }),
    ("aten.upsample_nearest3d.default", |i, call| {
        resample(i, call, nearest)
    }),
    ("aten.upsample_trilinear3d.default", |i, call| {
        resample(i, call, linear)
    }),
];

/// One axis of a resampling.
struct Grid {
    from: i64,
    to: i64,
    /// Distance of two results in the source, where it is given.
    step: Option<f64>,
    align_corners: bool,
}

impl Grid {
    fn step(&self) -> f64 {
        // PyTorch divides in float32.
        self.step
            .unwrap_or_else(|| f64::from(self.from as f32 / self.to as f32))
    }

    /// Where result `i` lies in the source.
    fn place(&self, i: Formula) -> Formula {
        match (self.align_corners, self.to) {
            (true, ..=1) => i * 0.0,
            (true, to) => i * f64::from((self.from - 1) as f32 / (to - 1) as f32),
            (false, _) => (i + 0.5) * self.step() - 0.5,
        }
    }
}

/// Source places of result `i` as float32, each with its weight; no weight means the only one.
type Taps = fn(&Grid, Formula) -> Vec<(Formula, Option<Formula>)>;

fn nearest(grid: &Grid, i: Formula) -> Vec<(Formula, Option<Formula>)> {
    vec![((i * grid.step()).floor(), None)]
}

fn nearest_exact(grid: &Grid, i: Formula) -> Vec<(Formula, Option<Formula>)> {
    vec![(((i + 0.5) * grid.step()).floor(), None)]
}

fn linear(grid: &Grid, i: Formula) -> Vec<(Formula, Option<Formula>)> {
    let place = grid.place(i).maximum(0.0);
    let low = place.clone().floor();
    let part = place - low.clone();
    let rest = Formula::Number(1.0) - part.clone();
    vec![(low.clone(), Some(rest)), (low + 1.0, Some(part))]
}

/// Keys' convolution of four elements with `a = -3/4` (Keys 1981), as PyTorch has it.
fn cubic(grid: &Grid, i: Formula) -> Vec<(Formula, Option<Formula>)> {
    const A: f64 = -0.75;
    let place = grid.place(i);
    let low = place.clone().floor();
    let t = place - low.clone();
    // ((a + 2) x - (a + 3)) x^2 + 1 up to 1, ((a x - 5a) x + 8a) x - 4a from there to 2.
    let near = |x: Formula| ((x.clone() * (A + 2.0)) - (A + 3.0)) * x.square() + 1.0;
    let far = |x: Formula| (((x.clone() * A) - 5.0 * A) * x.clone() + 8.0 * A) * x - 4.0 * A;
    let s = Formula::Number(1.0) - t.clone();
    vec![
        (low.clone() - 1.0, Some(far(t.clone() + 1.0))),
        (low.clone(), Some(near(t))),
        (low.clone() + 1.0, Some(near(s.clone()))),
        (low + 2.0, Some(far(s + 1.0))),
    ]
}

/// A grid resampled axis by axis: the weights of an element are products of the axes' weights.
fn resample(importer: &mut Importer, call: &Call, taps: Taps) -> Lowered {
    let names: &[&str] = match call.target().contains("nearest") {
        true => &["self", "output_size"],
        false => &["self", "output_size", "align_corners"],
    };
    let given = |index: usize| call.args.get(index).cloned().unwrap_or(Item::None);
    if !call.kwargs.is_empty() {
        return Err("keyword arguments".into());
    }
    let x = importer.value(&given(0))?;
    let dtype = importer.builder.dtype(x);
    let sizes = given(1).dims()?;
    let align_corners = match names.len() {
        3 => given(2).bool_or(false)?,
        _ => false,
    };
    let rank = importer.builder.shape(x).len();
    let first = rank
        .checked_sub(sizes.len())
        .ok_or("a grid of more axes than the tensor has")?;
    let mut value = match dtype.is_half() {
        true => importer.builder.cast(x, DType::Float32)?,
        false => x,
    };
    for (number, size) in sizes.iter().enumerate() {
        let axis = first + number;
        let source = importer.builder.shape(value)[axis].fixed();
        let scale = given(names.len() + number);
        let grid = Grid {
            from: source.ok_or("a symbolic size that is resampled")?,
            to: size.fixed().ok_or("a symbolic size to resample to")?,
            step: match scale.is_none() {
                true => None,
                false => Some(f64::from((1.0 / scale.float()?) as f32)),
            },
            align_corners,
        };
        value = along(importer, value, axis, &grid, taps)?;
    }
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}

fn along(
    importer: &mut Importer,
    value: Value,
    axis: usize,
    grid: &Grid,
    taps: Taps,
) -> Result<Value, String> {
    let dtype = importer.builder.dtype(value);
    let shape = importer.builder.shape(value);
    let mut column = vec![Dim::Fixed(1); shape.len()];
    column[axis] = Dim::Fixed(grid.to);
    let range = importer.range(Dim::Fixed(grid.to))?;
    let range = importer.builder.cast(range, DType::Float32)?;
    let mut total: Option<Value> = None;
    for (place, weight) in taps(grid, Formula::Value(range)) {
        // A tap before the first element is not one counted from the end.
        let place = importer.formula(&place.maximum(0.0), DType::Float32)?;
        let place = importer.builder.cast(place, DType::Int64)?;
        let place = in_range(importer, place, Dim::Fixed(grid.from))?;
        let taken = importer.builder.add(Op::Take { axis }, &[value, place])?;
        let Some(weight) = weight else {
            return Ok(taken);
        };
        let weight = importer.formula(&weight, DType::Float32)?;
        let weight = importer.builder.reshape(weight, column.clone())?;
        let weight = importer.builder.cast(weight, dtype)?;
        let term = Formula::Value(taken) * Formula::Value(weight);
        let sum = match total {
            None => term,
            Some(total) => Formula::Value(total) + term,
        };
        total = Some(importer.formula(&sum, dtype)?);
    }
    total.ok_or_else(|| "no taps".into())
}

/// More places of a kernel than any image operator has.
const MAX_KERNEL: i64 = 1 << 10;

/// Windows of an image `[n?, c, h, w]` as columns `[n?, c * kh * kw, windows]`: a strided slice for
/// each place of the kernel.
fn im2col(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, kernel, dilation, padding, stride] =
        call.bind(["self", "kernel_size", "dilation", "padding", "stride"])?;
    let pair = |item: &Item, default: i64| -> Result<[i64; 2], String> {
        match item.list()? {
            [] => Ok([default; 2]),
            [one] => Ok([one.int()?; 2]),
            [height, width] => Ok([height.int()?, width.int()?]),
            _ => Err("a size of more than two axes".into()),
        }
    };
    let (kernel, dilation) = (pair(&kernel, 1)?, pair(&dilation, 1)?);
    let (padding, stride) = (pair(&padding, 0)?, pair(&stride, 1)?);
    let x = importer.value(&x)?;
    let shape = importer.builder.shape(x).to_vec();
    let [lead @ .., channels, height, width] = shape.as_slice() else {
        return Err("an image of less than three axes".into());
    };
    let n = lead.len();
    let mut low = vec![0; n + 1];
    low.extend(padding);
    let pad = Op::Pad {
        low: low.clone(),
        high: low,
        value: crate::ir::Scalar::Int(0),
    };
    let padded = importer.builder.add(pad, &[x])?;
    let mut counts = [0; 2];
    for (i, size) in [height, width].into_iter().enumerate() {
        let size = size.fixed().ok_or("an image of a symbolic size")?;
        let reach = dilation[i]
            .checked_mul(kernel[i] - 1)
            .and_then(|reach| (size + 2 * padding[i]).checked_sub(reach + 1))
            .filter(|free| *free >= 0 && stride[i] > 0 && kernel[i] > 0 && dilation[i] > 0);
        counts[i] = reach.ok_or("a kernel larger than its image")? / stride[i] + 1;
    }
    if kernel[0].saturating_mul(kernel[1]) > MAX_KERNEL {
        return Err(format!("a kernel of {kernel:?}"));
    }
    let mut parts = Vec::new();
    for row in 0..kernel[0] {
        for column in 0..kernel[1] {
            let mut part = padded;
            for (i, place) in [row, column].into_iter().enumerate() {
                let start = place * dilation[i];
                let stop = start + (counts[i] - 1) * stride[i] + 1;
                let axis = n + 1 + i;
                part = importer
                    .builder
                    .slice(part, axis, start.into(), stop.into(), stride[i])?;
            }
            parts.push(importer.builder.expand_dims(part, n + 1)?);
        }
    }
    let windows = importer.builder.concat(&parts, n + 1)?;
    let rows = channels
        .checked_mul(Dim::Fixed(kernel[0] * kernel[1]))
        .ok_or("too many columns")?;
    let places = product(&[Dim::Fixed(counts[0]), Dim::Fixed(counts[1])]);
    let joined = [lead, &[rows, places.ok_or("too many windows")?]].concat();
    let value = importer.builder.reshape(windows, joined)?;
    Ok(importer.fresh(value))
}
