// SPDX-License-Identifier: Apache-2.0
//! Every operator against its definition.

use super::instruction::{Context, Outputs, execute};
use crate::runtime::mlx::{self, Array, Mlx};
use crate::runtime::testing::{Random, cpu, difference, floats, longs, values};
use lowering::ir::{
    Activation, Binary, DType, Dim, Float, Op, Reduction, RopeStyle, Scalar, Scan, TensorType,
    Unary,
};

mod convolution;
mod experts;
mod joint_norm;
mod movement;
mod norm;
mod pointwise;
mod reduction;
mod rope;

const SYMBOLS: [i64; 1] = [3];

fn fixed(dtype: DType, shape: &[i32]) -> TensorType {
    let shape = shape
        .iter()
        .map(|size| Dim::Fixed(i64::from(*size)))
        .collect();
    TensorType { dtype, shape }
}

/// All results of an operator whose first result has that dtype.
fn run_all(mlx: &Mlx, op: &Op, operands: &[&Array], dtype: DType) -> Vec<Array> {
    let context = Context {
        mlx,
        symbols: &SYMBOLS,
    };
    let types = [TensorType {
        dtype,
        shape: Vec::new(),
    }];
    match execute(context, op, operands, &types).unwrap() {
        Outputs::One(array) => vec![array],
        Outputs::Two(first, second) => vec![first, second],
        Outputs::Many(arrays) => arrays,
    }
}

fn run(mlx: &Mlx, op: &Op, operands: &[&Array], dtype: DType) -> Array {
    let mut results = run_all(mlx, op, operands, dtype);
    assert_eq!(results.len(), 1);
    let result = results.remove(0);
    assert_eq!(mlx::dtype(&result), Some(dtype), "{op:?}");
    result
}

fn half(mlx: &Mlx, array: &Array, dtype: DType) -> Array {
    mlx.cast(array, dtype).unwrap()
}
