// SPDX-License-Identifier: Apache-2.0
//! Matrix products, summed in float64 and rounded once.

use super::round::Precision;
use super::tensor::{Data, Tensor, elements, indices, offset};

/// `x @ y + bias`
pub(super) fn matmul(
    precision: Precision,
    x: &Tensor,
    y: &Tensor,
    bias: Option<&Tensor>,
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let ([.., inner], [.., rows, columns]) = (x.shape.as_slice(), y.shape.as_slice()) else {
        return Err("a product of vectors".into());
    };
    if inner != rows || x.shape.len() < 2 || shape.len() < 2 {
        return Err(format!("product of {:?} and {:?}", x.shape, y.shape));
    }
    let batch = &shape[..shape.len() - 2];
    let wide = |t: &Tensor| {
        let own = &t.shape[t.shape.len() - 2..];
        t.broadcast(&[batch, own].concat())
    };
    let (x, y) = (wide(x)?, wide(y)?);
    let (a, b) = (x.as_floats()?, y.as_floats()?);
    let bias = bias.map(Tensor::as_floats).transpose()?;
    let mut result = Vec::with_capacity(elements(&shape)?);
    for index in indices(&shape) {
        let [outer @ .., row, column] = index.as_slice() else {
            return Err("a product of rank 1".into());
        };
        let mut total = 0.0;
        for k in 0..*inner {
            let left = a[offset(&[outer, &[*row, k]].concat(), &x.shape)?];
            let right = b[offset(&[outer, &[k, *column]].concat(), &y.shape)?];
            total += left * right;
        }
        if let Some(bias) = bias {
            total += bias.get(column % columns).ok_or("a short bias")?;
        }
        result.push(precision.round(x.dtype, total));
    }
    Ok(Tensor {
        dtype: x.dtype,
        shape,
        data: Data::Float(result),
    })
}

/// `x[t, k | 0] @ w[experts[t, k]]^T`
pub(super) fn expert_matmul(
    precision: Precision,
    x: &Tensor,
    weights: &Tensor,
    experts: &Tensor,
    shape: Vec<usize>,
) -> Result<Tensor, String> {
    let (&[tokens, slots, inner], &[count, columns, rows], &[t, k]) = (
        x.shape.as_slice(),
        weights.shape.as_slice(),
        experts.shape.as_slice(),
    ) else {
        return Err("experts of another rank".into());
    };
    if inner != rows || tokens != t || (slots != k && slots != 1) {
        return Err(format!("{:?} by experts {:?}", x.shape, experts.shape));
    }
    let (a, w, chosen) = (x.as_floats()?, weights.as_floats()?, experts.as_ints()?);
    let mut result = Vec::with_capacity(elements(&shape)?);
    for token in 0..t {
        for slot in 0..k {
            let expert = usize::try_from(chosen[token * k + slot])
                .ok()
                .filter(|expert| *expert < count)
                .ok_or("an expert that does not exist")?;
            let row = (token * slots + slot.min(slots - 1)) * inner;
            for column in 0..columns {
                let weight = (expert * columns + column) * inner;
                let total: f64 = (0..inner).map(|i| a[row + i] * w[weight + i]).sum();
                result.push(precision.round(x.dtype, total));
            }
        }
    }
    Ok(Tensor {
        dtype: x.dtype,
        shape,
        data: Data::Float(result),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    #[test]
    fn rows_meet_their_experts_weights() {
        let weights = Tensor::floats(DType::Float32, vec![2, 1, 2], vec![1.0, 0.0, 0.0, 10.0]);
        let product = |slots: usize, x: Vec<f64>, experts: Vec<i64>| {
            let x = Tensor::floats(DType::Float32, vec![1, slots, 2], x);
            let experts = Tensor::ints(DType::Int32, vec![1, 2], experts);
            let shape = vec![1, 2, 1];
            expert_matmul(Precision::Rounded, &x, &weights, &experts, shape)
        };
        let shared = product(1, vec![3.0, 4.0], vec![1, 0]).unwrap();
        assert_eq!(shared.to_f64(), [40.0, 3.0]);
        let own = product(2, vec![3.0, 4.0, 5.0, 6.0], vec![1, 0]).unwrap();
        assert_eq!(own.to_f64(), [40.0, 5.0]);
        assert!(product(1, vec![3.0, 4.0], vec![2, 0]).is_err());
    }
}
