// SPDX-License-Identifier: Apache-2.0
//! Result types of operators. Import, rewriting and the verifier all ask here, so they cannot disagree.

mod attention;
mod check;
mod product;
mod slice;

use super::{DType, Dim, Op, Reduction, Scalar, TensorType, Unary, product};
use attention::{attention, attention_scores, rope};
use check::{arity, check_axis, check_indices, check_weight, same_dtype, typed};
use product::{convolved, expert_matmul, matmul};

pub use check::broadcast;
pub(super) use slice::check_bounds;
pub use slice::slice_length;

/// Types of the results of `op` on operands of these types. Leaves, effects and islands carry their
/// own types and are not inferred (`None`).
pub fn infer(op: &Op, operands: &[&TensorType]) -> Option<Result<Vec<TensorType>, String>> {
    match types_of(op, operands) {
        Ok(types) if types.is_empty() => None,
        result => Some(result),
    }
}

/// The types, none of an operator that carries its own.
fn types_of(op: &Op, operands: &[&TensorType]) -> Result<Vec<TensorType>, String> {
    match op {
        Op::Reshape { shape } => {
            let [x] = arity(operands)?;
            match (product(&x.shape), product(shape)) {
                // Where whole quotients are involved, the reshape itself finds out.
                (Some(before), Some(after)) if !before.differs(after) => {
                    Ok(typed(x.dtype, shape.clone()))
                }
                _ => Err(format!("reshape of {x} to {shape:?}")),
            }
        }
        Op::Transpose { permutation } => {
            let [x] = arity(operands)?;
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            if sorted != (0..x.rank()).collect::<Vec<_>>() {
                return Err(format!(
                    "{permutation:?} is no permutation of the axes of {x}"
                ));
            }
            Ok(typed(
                x.dtype,
                permutation.iter().map(|axis| x.shape[*axis]).collect(),
            ))
        }
        Op::Broadcast { shape } => {
            let [x] = arity(operands)?;
            if broadcast(&x.shape, shape)? != *shape {
                return Err(format!("{x} does not broadcast to {shape:?}"));
            }
            Ok(typed(x.dtype, shape.clone()))
        }
        Op::Slice {
            axis,
            start,
            stop,
            step,
            length,
        } => {
            let [x] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            if x.shape[*axis] != *length || *step < 1 {
                return Err(format!("slice of {length} elements by {step} of {x}"));
            }
            check_bounds(*start, *stop, *length)?;
            let size = slice_length(*start, *stop, *step)
                .ok_or_else(|| format!("slice {start}:{stop}:{step} has no length"))?;
            let mut shape = x.shape;
            shape[*axis] = size;
            Ok(typed(x.dtype, shape))
        }
        Op::Concat { axis } => {
            let first = operands.first().ok_or("nothing to concatenate")?;
            check_axis(*axis, first.rank())?;
            let mut shape = first.shape.clone();
            for other in &operands[1..] {
                same_dtype(first, other)?;
                let agrees = other.rank() == shape.len()
                    && (0..shape.len()).all(|i| i == *axis || other.shape[i] == shape[i]);
                if !agrees {
                    return Err(format!("concatenation of {first} and {other} along {axis}"));
                }
                shape[*axis] = shape[*axis]
                    .checked_add(other.shape[*axis])
                    .ok_or("a concatenated size overflows")?;
            }
            Ok(typed(first.dtype, shape))
        }
        Op::Take { axis } => {
            let [x, indices] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            check_indices(&indices)?;
            let mut shape = x.shape[..*axis].to_vec();
            shape.extend(&indices.shape);
            shape.extend(&x.shape[axis + 1..]);
            Ok(typed(x.dtype, shape))
        }
        Op::TakeAlongAxis { axis } => {
            let [x, indices] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            check_indices(&indices)?;
            if indices.rank() != x.rank() {
                return Err(format!("indices {indices} into {x}"));
            }
            Ok(typed(x.dtype, indices.shape))
        }
        Op::PutAlongAxis { axis } | Op::AddAlongAxis { axis } => {
            let [x, indices, updates] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            check_indices(&indices)?;
            same_dtype(&x, &updates)?;
            Ok(vec![x])
        }
        Op::Pad { low, high, .. } => {
            let [x] = arity(operands)?;
            if low.len() != x.rank() || high.len() != x.rank() {
                return Err(format!("padding of {} axes for {x}", low.len()));
            }
            let shape: Option<Vec<Dim>> = (0..x.rank())
                .map(|i| x.shape[i].checked_add(Dim::Fixed(low[i].checked_add(high[i])?)))
                .collect();
            Ok(typed(x.dtype, shape.ok_or("a padded size overflows")?))
        }
        Op::Tril { .. } | Op::Triu { .. } => {
            let [x] = arity(operands)?;
            check_axis(1, x.rank())?;
            Ok(vec![x])
        }
        Op::Cast { dtype } => {
            let [x] = arity(operands)?;
            Ok(typed(*dtype, x.shape))
        }
        Op::Unary(function) => {
            let [x] = arity(operands)?;
            let dtype = match function {
                Unary::LogicalNot | Unary::Isnan | Unary::Isinf => DType::Bool,
                _ => x.dtype,
            };
            Ok(typed(dtype, x.shape))
        }
        Op::Binary(function) => {
            let [x, y] = arity(operands)?;
            same_dtype(&x, &y)?;
            let dtype = if function.is_predicate() {
                DType::Bool
            } else {
                x.dtype
            };
            Ok(typed(dtype, broadcast(&x.shape, &y.shape)?))
        }
        Op::Where => {
            let [condition, x, y] = arity(operands)?;
            same_dtype(&x, &y)?;
            if condition.dtype != DType::Bool {
                return Err(format!("condition {condition}"));
            }
            let shape = broadcast(&condition.shape, &broadcast(&x.shape, &y.shape)?)?;
            Ok(typed(x.dtype, shape))
        }
        Op::Reduce {
            function,
            axes,
            keepdims,
        } => {
            let [x] = arity(operands)?;
            for axis in axes {
                check_axis(*axis, x.rank())?;
            }
            let dtype = match function {
                Reduction::All | Reduction::Any => DType::Bool,
                Reduction::Argmax | Reduction::Argmin => DType::Int64,
                _ => x.dtype,
            };
            let shape = x.shape.iter().enumerate().filter_map(|(axis, size)| {
                match (axes.contains(&axis), keepdims) {
                    (false, _) => Some(*size),
                    (true, true) => Some(Dim::Fixed(1)),
                    (true, false) => None,
                }
            });
            Ok(typed(dtype, shape.collect()))
        }
        Op::Softmax { axis } | Op::Scan { axis, .. } => {
            let [x] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            Ok(vec![x])
        }
        Op::Sort { axis, .. } => {
            let [x] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            let indices = TensorType {
                dtype: DType::Int64,
                shape: x.shape.clone(),
            };
            Ok(vec![x, indices])
        }
        Op::Topk { axis, k } => {
            let [mut x] = arity(operands)?;
            check_axis(*axis, x.rank())?;
            x.shape[*axis] = Dim::Fixed(*k);
            let indices = TensorType {
                dtype: DType::Int64,
                shape: x.shape.clone(),
            };
            Ok(vec![x, indices])
        }
        Op::Matmul => {
            let [x, y] = arity(operands)?;
            Ok(vec![matmul(&x, &y)?])
        }
        Op::Addmm => {
            let [x, weight, bias] = arity(operands)?;
            same_dtype(&x, &bias)?;
            let result = matmul(&x, &weight)?;
            check_weight(&result, &[&bias])?;
            Ok(vec![result])
        }
        Op::ExpertMatmul => Ok(vec![expert_matmul(operands)?]),
        Op::Convolution(attributes) => {
            let [x, weight] = arity(operands)?;
            same_dtype(&x, &weight)?;
            let shape = convolved(attributes, &x, &weight)
                .ok_or_else(|| format!("{attributes:?} of {x} by {weight}"))?;
            Ok(typed(x.dtype, shape))
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            let x = operands.first().ok_or("no operand")?;
            let most = if matches!(op, Op::RmsNorm { .. }) {
                2
            } else {
                3
            };
            if operands.len() > most {
                return Err(format!("{} operands", operands.len()));
            }
            check_weight(x, &operands[1..])?;
            Ok(vec![(*x).clone()])
        }
        Op::AddRmsNorm { .. } | Op::AddLayerNorm { .. } => {
            let most = if matches!(op, Op::AddRmsNorm { .. }) {
                3
            } else {
                4
            };
            let (x, residual) = match operands {
                [x, residual, ..] if operands.len() <= most => (*x, *residual),
                _ => return Err(format!("{} operands", operands.len())),
            };
            if x != residual {
                return Err(format!("residual {residual} for {x}"));
            }
            check_weight(x, &operands[2..])?;
            Ok(vec![x.clone(), x.clone()])
        }
        Op::Rope { style, rotary_dim } => rope(*style, *rotary_dim, operands),
        Op::GatedActivation { .. } if operands.len() == 2 => {
            let [gate, up] = arity(operands)?;
            same_dtype(&gate, &up)?;
            match gate.dtype.is_float() {
                true => Ok(typed(gate.dtype, broadcast(&gate.shape, &up.shape)?)),
                false => Err(format!("a gated {up}")),
            }
        }
        Op::GatedActivation { .. } => {
            let [mut x] = arity(operands)?;
            let half = x
                .last()
                .and_then(|size| size.checked_div(2))
                .filter(|_| x.dtype.is_float())
                .ok_or_else(|| format!("a gated {x}"))?;
            let last = x.rank() - 1;
            x.shape[last] = half;
            Ok(vec![x])
        }
        Op::AttentionScores(scores) => {
            let [q, k, mask @ ..] = operands else {
                return Err(format!("{} operands", operands.len()));
            };
            Ok(vec![attention_scores(scores, q, k, mask)?])
        }
        Op::ScaledDotProductAttention { scores, sinks } => {
            Ok(vec![attention(scores, *sinks, operands)?])
        }
        Op::Input(_)
        | Op::Parameter(_)
        | Op::Scalar(_)
        | Op::Full { .. }
        | Op::Arange { .. }
        | Op::Attention { .. }
        | Op::SparseAttention { .. }
        | Op::SelectKeys { .. }
        | Op::Recurrence { .. }
        | Op::Project(_)
        | Op::Island { .. } => Ok(Vec::new()),
    }
}

/// The dtype of a scalar constant that is not given one.
pub fn scalar_dtype(scalar: Scalar) -> DType {
    match scalar {
        Scalar::Bool(_) => DType::Bool,
        Scalar::Int(_) | Scalar::Size(_) => DType::Int64,
        Scalar::Float(_) => DType::Float32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, Float};

    fn of(dtype: DType, shape: &[i64]) -> TensorType {
        TensorType {
            dtype,
            shape: shape.iter().copied().map(Dim::Fixed).collect(),
        }
    }

    #[test]
    fn slices_stay_inside_their_axis() {
        let x = of(DType::Float32, &[4]);
        let slice = |start: i64, stop: i64| Op::Slice {
            axis: 0,
            start: start.into(),
            stop: stop.into(),
            step: 1,
            length: 4.into(),
        };
        assert!(infer(&slice(1, 4), &[&x]).unwrap().is_ok());
        assert!(infer(&slice(1, 5), &[&x]).unwrap().is_err());
        assert!(infer(&slice(-1, 4), &[&x]).unwrap().is_err());
        assert_eq!(slice_length(0.into(), i64::MAX.into(), i64::MAX), None);
    }

    #[test]
    fn a_slice_of_a_slice_does_not_reach_beyond_the_first() {
        let mut builder = Builder::default();
        let node = builder.node(Op::Input(0), &[], vec![of(DType::Float32, &[8])]);
        let x = crate::ir::Value { node, output: 0 };
        let first = builder.slice(x, 0, 0.into(), 2.into(), 1).unwrap();
        assert!(builder.slice(first, 0, 0.into(), 4.into(), 1).is_err());
    }

    #[test]
    fn norms_take_floats_with_an_axis() {
        let norm = Op::RmsNorm {
            eps: Float::new(1e-6),
        };
        let accepts = |x: TensorType| infer(&norm, &[&x]).unwrap().is_ok();
        assert!(accepts(of(DType::Bfloat16, &[3, 8])));
        assert!(!accepts(of(DType::Int64, &[3, 8])));
        assert!(!accepts(of(DType::Float32, &[])));
    }

    #[test]
    fn experts_take_a_row_for_each_choice_or_one_for_all() {
        let weights = of(DType::Float32, &[4, 6, 8]);
        let experts = of(DType::Int32, &[5, 2]);
        let result = |x: &[i64], experts: &TensorType| {
            infer(
                &Op::ExpertMatmul,
                &[&of(DType::Float32, x), &weights, experts],
            )
            .unwrap()
        };
        for slots in [1, 2] {
            let found = result(&[5, slots, 8], &experts);
            assert_eq!(found, Ok(vec![of(DType::Float32, &[5, 2, 6])]));
        }
        assert!(result(&[5, 3, 8], &experts).is_err());
        assert!(result(&[4, 1, 8], &experts).is_err());
        assert!(result(&[5, 1, 6], &experts).is_err());
        assert!(result(&[5, 1, 8], &of(DType::Float32, &[5, 2])).is_err());
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(of(DType::Float32, &[0, 1 << 40]).check_sizes().is_ok());
        assert!(of(DType::Float32, &[-1]).check_sizes().is_err());
        assert!(of(DType::Float32, &[i64::MAX]).check_sizes().is_err());
        assert_eq!(Dim::Fixed(i64::MIN).checked_div(-1), None);
    }
}
