// SPDX-License-Identifier: Apache-2.0
//! Matrix products.

use super::call::{Call, Item};
use super::dispatch::{Claims, Lowered};
use super::formula::Formula;
use super::graph::Importer;
use super::moments::norm;
use crate::ir::{Binary, DType, Dim, Op, Reduction, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten._cdist_forward.default", cdist),
    ("aten._trilinear.default", trilinear),
    ("aten._euclidean_dist.default", cdist),
    ("aten.bmm.default", product),
    ("aten.dot.default", product),
    ("aten.linalg_cross.default", cross),
    ("aten.linear.default", linear),
    ("aten.matmul.default", product),
    ("aten.mm.default", product),
    ("aten.mv.default", product),
    ("aten.vdot.default", product),
];

/// Sums with products have an in-place form.
pub const WITH_IN_PLACE: Claims = &[
    ("aten.addbmm.default", addbmm),
    ("aten.addmm.default", addmm),
    ("aten.addmv.default", addmv),
    ("aten.addr.default", addr),
    ("aten.baddbmm.default", baddbmm),
];

fn product(importer: &mut Importer, call: &Call) -> Lowered {
    let second = match call.target() {
        "aten.mm.default" | "aten.bmm.default" => "mat2",
        "aten.mv.default" => "vec",
        "aten.dot.default" => "tensor",
        _ => "other",
    };
    let [x, y] = call.bind(["self", second])?;
    let (x, y) = (importer.value(&x)?, importer.value(&y)?);
    let value = matmul(importer, x, y)?;
    Ok(importer.fresh(value))
}

/// `torch.matmul` with its treatment of vectors.
pub fn matmul(importer: &mut Importer, x: Value, y: Value) -> Result<Value, String> {
    let builder = &mut importer.builder;
    let (x_rank, y_rank) = (builder.shape(x).len(), builder.shape(y).len());
    if x_rank == 0 || y_rank == 0 {
        return Err("a product of rank 0".into());
    }
    let a = if x_rank == 1 {
        builder.expand_dims(x, 0)?
    } else {
        x
    };
    let b = if y_rank == 1 {
        builder.expand_dims(y, 1)?
    } else {
        y
    };
    let value = matrix_product(importer, a, b)?;
    let builder = &mut importer.builder;
    let mut shape = builder.shape(value).to_vec();
    if y_rank == 1 {
        shape.pop();
    }
    if x_rank == 1 {
        shape.remove(shape.len() - if y_rank == 1 { 1 } else { 2 });
    }
    builder.reshape(value, shape)
}

/// `x [.., m, k] @ y [.., k, n]`. MLX multiplies matrices of floats only: others are summed up.
fn matrix_product(importer: &mut Importer, x: Value, y: Value) -> Result<Value, String> {
    let builder = &mut importer.builder;
    let dtype = builder.dtype(x);
    if dtype.is_float() {
        return builder.matmul(x, y);
    }
    let x_rank = builder.shape(x).len();
    let y_rank = builder.shape(y).len();
    let (Some(inner), Some(other)) = (
        builder.shape(x).get(x_rank.wrapping_sub(1)),
        builder.shape(y).get(y_rank.wrapping_sub(2)),
    ) else {
        return Err("a product of vectors".into());
    };
    if inner != other || x_rank < 2 || builder.dtype(y) != dtype {
        return Err("a product of matrices that do not fit".into());
    }
    let x = builder.expand_dims(x, x_rank)?;
    let y = builder.expand_dims(y, y_rank - 2)?;
    let terms = builder.binary(Binary::Mul, x, y)?;
    let axis = builder.shape(terms).len() - 2;
    builder.reduce(Reduction::Sum, terms, vec![axis], false)
}

/// `x @ w.T`
fn linear_product(importer: &mut Importer, x: Value, weight: Value) -> Result<Value, String> {
    let weight = match importer.builder.shape(weight).len() {
        1 => weight,
        _ => importer.builder.transpose(weight, vec![1, 0])?,
    };
    matmul(importer, x, weight)
}

fn linear(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, weight, bias] = call.bind(["input", "weight", "bias"])?;
    let (x, weight) = (importer.value(&x)?, importer.value(&weight)?);
    let mut value = linear_product(importer, x, weight)?;
    if !bias.is_none() {
        let bias = importer.value(&bias)?;
        value = importer.builder.binary(Binary::Add, value, bias)?;
    }
    Ok(importer.fresh(value))
}

/// `beta * c + alpha * product`, in float32 for sixteen-bit floats. With `beta` 0, NaN in `c` do not count.
fn scaled_sum(
    importer: &mut Importer,
    call: &Call,
    c: &Item,
    product: Value,
    [beta, alpha]: [&Item; 2],
) -> Lowered {
    let (beta, alpha) = (beta.float_or(1.0)?, alpha.float_or(1.0)?);
    let product = importer.fresh(product);
    let dtype = call.result_dtype()?;
    let value = importer.compute_value([c, &product], dtype, |[c, product]| {
        let product = match alpha {
            1.0 => product,
            alpha => product * alpha,
        };
        match beta {
            0.0 => product,
            1.0 => product + c,
            beta => product + c * beta,
        }
    })?;
    let shape = importer.value(c)?;
    let shape = importer.builder.shape(shape).to_vec();
    let full = importer.builder.shape(value).to_vec();
    let shape = crate::ir::broadcast(&shape, &full)?;
    let value = importer.builder.broadcast(value, shape)?;
    Ok(importer.fresh(value))
}

/// An operand in float32 where it has sixteen bits: for products that are scaled before they are
/// rounded.
fn unrounded(importer: &mut Importer, x: &Item) -> Result<Value, String> {
    let x = importer.value(x)?;
    match importer.builder.dtype(x).is_half() {
        true => importer.builder.cast(x, DType::Float32),
        false => Ok(x),
    }
}

fn is_plain(beta: &Item, alpha: &Item) -> Result<bool, String> {
    Ok(beta.float_or(1.0)? == 1.0 && alpha.float_or(1.0)? == 1.0)
}

fn addmm(importer: &mut Importer, call: &Call) -> Lowered {
    let [bias, x, y, beta, alpha] = call.bind(["self", "mat1", "mat2", "beta", "alpha"])?;
    let (c, a, b) = (
        importer.value(&bias)?,
        importer.value(&x)?,
        importer.value(&y)?,
    );
    let builder = &mut importer.builder;
    let columns = builder.shape(b).last().copied().unwrap_or(Dim::Fixed(0));
    let fits = builder.shape(c) == [columns] && builder.dtype(a).is_float();
    if is_plain(&beta, &alpha)? && fits {
        let value = builder.add(Op::Addmm, &[a, b, c])?;
        return Ok(importer.fresh(value));
    }
    let (a, b) = (unrounded(importer, &x)?, unrounded(importer, &y)?);
    let product = matrix_product(importer, a, b)?;
    scaled_sum(importer, call, &bias, product, [&beta, &alpha])
}

fn baddbmm(importer: &mut Importer, call: &Call) -> Lowered {
    let [c, x, y, beta, alpha] = call.bind(["self", "batch1", "batch2", "beta", "alpha"])?;
    let (a, b) = (unrounded(importer, &x)?, unrounded(importer, &y)?);
    let product = matrix_product(importer, a, b)?;
    scaled_sum(importer, call, &c, product, [&beta, &alpha])
}

/// A product summed over its batch.
fn addbmm(importer: &mut Importer, call: &Call) -> Lowered {
    let [c, x, y, beta, alpha] = call.bind(["self", "batch1", "batch2", "beta", "alpha"])?;
    let (a, b) = (unrounded(importer, &x)?, unrounded(importer, &y)?);
    let product = matrix_product(importer, a, b)?;
    let product = importer
        .builder
        .reduce(Reduction::Sum, product, vec![0], false)?;
    scaled_sum(importer, call, &c, product, [&beta, &alpha])
}

fn addmv(importer: &mut Importer, call: &Call) -> Lowered {
    let [c, x, y, beta, alpha] = call.bind(["self", "mat", "vec", "beta", "alpha"])?;
    let (a, b) = (unrounded(importer, &x)?, unrounded(importer, &y)?);
    let product = matmul(importer, a, b)?;
    scaled_sum(importer, call, &c, product, [&beta, &alpha])
}

/// With the outer product of two vectors.
fn addr(importer: &mut Importer, call: &Call) -> Lowered {
    let [c, x, y, beta, alpha] = call.bind(["self", "vec1", "vec2", "beta", "alpha"])?;
    let (a, b) = (unrounded(importer, &x)?, unrounded(importer, &y)?);
    let a = importer.builder.expand_dims(a, 1)?;
    let product = match importer.builder.dtype(a) {
        DType::Bool => importer.builder.binary(Binary::LogicalAnd, a, b)?,
        _ => importer.builder.binary(Binary::Mul, a, b)?,
    };
    if importer.builder.dtype(product) == DType::Bool {
        let (beta, alpha) = (beta.float_or(1.0)? != 0.0, alpha.float_or(1.0)? != 0.0);
        let c = importer.value(&c)?;
        let shape = importer.builder.shape(product).to_vec();
        let mut value = importer
            .builder
            .scalar(crate::ir::Scalar::Bool(false), DType::Bool);
        for (counts, part) in [(beta, c), (alpha, product)] {
            if counts {
                value = importer.builder.binary(Binary::LogicalOr, value, part)?;
            }
        }
        let value = importer.builder.broadcast(value, shape)?;
        return Ok(importer.fresh(value));
    }
    scaled_sum(importer, call, &c, product, [&beta, &alpha])
}

/// Distances of order `p` between all pairs of rows `[.., m, k]` and `[.., n, k]`.
fn cdist(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, p] = match call.target() {
        "aten._euclidean_dist.default" => {
            let [x, y] = call.bind(["x1", "x2"])?;
            [x, y, Item::None]
        }
        _ => {
            let [x, y, p, _] = call.bind(["x1", "x2", "p", "compute_mode"])?;
            [x, y, p]
        }
    };
    let (x, y) = (importer.value(&x)?, importer.value(&y)?);
    let (x_rank, y_rank) = (
        importer.builder.shape(x).len(),
        importer.builder.shape(y).len(),
    );
    if x_rank < 2 || y_rank < 2 {
        return Err("distances of vectors".into());
    }
    let x = importer.builder.expand_dims(x, x_rank - 1)?;
    let y = importer.builder.expand_dims(y, y_rank - 2)?;
    let (x, y) = (importer.fresh(x), importer.fresh(y));
    let gap = importer.compute_value([&x, &y], DType::Float32, |[x, y]| x - y)?;
    let axis = importer.builder.shape(gap).len() - 1;
    let empty = importer.builder.shape(gap)[axis] == Dim::Fixed(0);
    let p = match empty {
        true => 2.0,
        false => p.float_or(2.0)?,
    };
    let value = norm(importer, gap, p, vec![axis], false)?;
    let value = importer.builder.cast(value, call.result_dtype()?)?;
    Ok(importer.fresh(value))
}

/// `x[1] y[2] - x[2] y[1]` and so on, along an axis of three.
fn cross(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, dim] = call.bind(["self", "other", "dim"])?;
    let (x, y) = (importer.value(&x)?, importer.value(&y)?);
    let shape = crate::ir::broadcast(importer.builder.shape(x), importer.builder.shape(y))?;
    let axis = dim.axis(shape.len(), -1)?;
    let x = importer.builder.broadcast(x, shape.clone())?;
    let y = importer.builder.broadcast(y, shape)?;
    let mut turned = |value, by| super::movement::rolled(importer, value, axis, by);
    let (x1, x2) = (turned(x, -1)?, turned(x, -2)?);
    let (y1, y2) = (turned(y, -1)?, turned(y, -2)?);
    let items = [x1, y2, x2, y1].map(|value| importer.fresh(value));
    let [x1, y2, x2, y1] = &items;
    let formula = |[x1, y2, x2, y1]: [Formula; 4]| x1 * y2 - x2 * y1;
    importer.compute(call, [x1, y2, x2, y1], formula)
}

/// Products of three tensors, each with axes of size 1 inserted, summed over some axes.
fn trilinear(importer: &mut Importer, call: &Call) -> Lowered {
    let [x, y, z, expand_x, expand_y, expand_z, sum, _] = call.bind([
        "i1",
        "i2",
        "i3",
        "expand1",
        "expand2",
        "expand3",
        "sumdim",
        "unroll_dim",
    ])?;
    let mut items = Vec::new();
    for (item, axes) in [(&x, &expand_x), (&y, &expand_y), (&z, &expand_z)] {
        let mut value = importer.value(item)?;
        for axis in axes.dims()? {
            let axis = axis.fixed().and_then(|axis| usize::try_from(axis).ok());
            let axis = axis.ok_or("an axis that is no number")?;
            value = importer.builder.expand_dims(value, axis)?;
        }
        items.push(importer.fresh(value));
    }
    let [x, y, z] = items.as_slice() else {
        return Err("other than three operands".into());
    };
    let dtype = call.result_dtype()?;
    let compute = match dtype.is_half() {
        true => DType::Float32,
        false => dtype,
    };
    let value = importer.compute_value([x, y, z], compute, |[x, y, z]| x * y * z)?;
    let rank = importer.builder.shape(value).len();
    let axes: Result<Vec<usize>, String> = sum.list()?.iter().map(|i| i.axis(rank, 0)).collect();
    let value = importer
        .builder
        .reduce(Reduction::Sum, value, axes?, false)?;
    let value = importer.builder.cast(value, dtype)?;
    Ok(importer.fresh(value))
}
