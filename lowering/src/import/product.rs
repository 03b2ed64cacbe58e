// SPDX-License-Identifier: Apache-2.0
//! Matrix products.

use super::call::{Call, Item};
use super::dispatch::Claims;
use super::graph::Importer;
use crate::ir::{Binary, Dim, Op, Value};

/// Operators of this family.
pub const CLAIMS: Claims = &[
    ("aten.mm.default", product),
    ("aten.bmm.default", product),
    ("aten.matmul.default", product),
    ("aten.linear.default", linear),
    ("aten.addmm.default", addmm),
    ("aten.baddbmm.default", addmm),
];

fn product(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let second = match call.target() {
        "aten.matmul.default" => "other",
        _ => "mat2",
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
    let value = builder.matmul(a, b)?;
    let mut shape = builder.shape(value).to_vec();
    if y_rank == 1 {
        shape.pop();
    }
    if x_rank == 1 {
        shape.remove(shape.len() - if y_rank == 1 { 1 } else { 2 });
    }
    builder.reshape(value, shape)
}

/// `x @ w.T`
fn linear_product(importer: &mut Importer, x: Value, weight: Value) -> Result<Value, String> {
    let transposed = importer.builder.transpose(weight, vec![1, 0])?;
    matmul(importer, x, transposed)
}

fn linear(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [x, weight, bias] = call.bind(["input", "weight", "bias"])?;
    let (x, weight) = (importer.value(&x)?, importer.value(&weight)?);
    let mut value = linear_product(importer, x, weight)?;
    if !bias.is_none() {
        let bias = importer.value(&bias)?;
        value = importer.builder.binary(Binary::Add, value, bias)?;
    }
    Ok(importer.fresh(value))
}

fn addmm(importer: &mut Importer, call: &Call) -> Result<Item, String> {
    let [bias, x, y, beta, alpha] = call.bind(["self", "mat1", "mat2", "beta", "alpha"])?;
    if beta.float_or(1.0)? != 1.0 || alpha.float_or(1.0)? != 1.0 {
        return Err(format!("beta={beta:?}, alpha={alpha:?}"));
    }
    let (bias, x, y) = (
        importer.value(&bias)?,
        importer.value(&x)?,
        importer.value(&y)?,
    );
    let builder = &mut importer.builder;
    let columns = builder.shape(y).last().copied().unwrap_or(Dim::Fixed(0));
    let value = if builder.shape(bias) == [columns] && builder.shape(y).len() == 2 {
        builder.add(Op::Addmm, &[x, y, bias])?
    } else {
        let value = builder.matmul(x, y)?;
        builder.binary(Binary::Add, value, bias)?
    };
    Ok(importer.fresh(value))
}
