// SPDX-License-Identifier: Apache-2.0
//! Result types of operators. Import, rewriting and the verifier all ask here, so they cannot disagree.

use super::{
    AttentionMask, Convolution, DType, Dim, Op, Reduction, RopeStyle, Scalar, Scores, TensorType,
    Unary, product,
};

/// Shape of a broadcast of two shapes, NumPy's rule; symbolic sizes must be equal or meet a 1.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let rank = a.len().max(b.len());
    let size = |shape: &[Dim], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .map_or(Dim::Fixed(1), |axis| shape[axis])
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            (x, y) => Err(format!("sizes {x} and {y} do not broadcast")),
        })
        .collect()
}

fn check_axis(axis: usize, rank: usize) -> Result<(), String> {
    if axis < rank {
        Ok(())
    } else {
        Err(format!("axis {axis} of a rank {rank} operand"))
    }
}

fn arity<const N: usize>(operands: &[&TensorType]) -> Result<[TensorType; N], String> {
    let array: Result<[&TensorType; N], _> = operands.try_into();
    array
        .map(|types| types.map(Clone::clone))
        .map_err(|_| format!("{} operands instead of {N}", operands.len()))
}

fn same_dtype(a: &TensorType, b: &TensorType) -> Result<(), String> {
    if a.dtype == b.dtype {
        Ok(())
    } else {
        Err(format!("operands {} and {}", a.dtype, b.dtype))
    }
}

fn typed(dtype: DType, shape: Vec<Dim>) -> Vec<TensorType> {
    vec![TensorType { dtype, shape }]
}

/// Normalised vectors and their weight: floats, and `w` is `[n]` where `x` is `[.., n]`.
fn check_weight(x: &TensorType, weights: &[&TensorType]) -> Result<(), String> {
    let floats = x.dtype.is_float() && weights.iter().all(|weight| weight.dtype.is_float());
    if !floats || x.rank() == 0 {
        return Err(format!("a weighted {x}"));
    }
    for weight in weights {
        if weight.rank() != 1 || weight.last() != x.last() {
            return Err(format!("weight {weight} for {x}"));
        }
    }
    Ok(())
}

/// Types of the results of `op` on operands of these types. Leaves, effects and islands carry their
/// own types and are not inferred (`None`).
pub fn infer(op: &Op, operands: &[&TensorType]) -> Option<Result<Vec<TensorType>, String>> {
    match op {
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
        | Op::Island { .. } => None,
        _ => Some(infer_pure(op, operands)),
    }
}

fn infer_pure(op: &Op, operands: &[&TensorType]) -> Result<Vec<TensorType>, String> {
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
        Op::ExpertMatmul => {
            let [x, weights, experts] = arity(operands)?;
            same_dtype(&x, &weights)?;
            let whole = matches!(experts.dtype, DType::Int32 | DType::Int64 | DType::Uint32);
            match (
                x.shape.as_slice(),
                weights.shape.as_slice(),
                experts.shape.as_slice(),
            ) {
                (&[tokens, slots, inner], &[count, columns, rows], &[t, k])
                    if whole
                        && x.dtype.is_float()
                        && inner == rows
                        && tokens == t
                        && (slots == k || slots == Dim::Fixed(1))
                        && count.fixed().is_some_and(|count| count > 0) =>
                {
                    Ok(typed(x.dtype, vec![t, k, columns]))
                }
                _ => Err(format!("{x} by the experts {experts} of {weights}")),
            }
        }
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
        Op::Rope { style, rotary_dim } => {
            let [cos, sin, rotated @ ..] = operands else {
                return Err("no cos and sin".into());
            };
            let columns = match style {
                RopeStyle::Neox | RopeStyle::Gptj => rotary_dim / 2,
                RopeStyle::RotateHalf | RopeStyle::RotatePairs => *rotary_dim,
            };
            for x in rotated {
                let rank = x.rank();
                let fits = rank >= 3
                    && x.dtype.is_float()
                    && cos.dtype.is_float()
                    && x.shape[rank - 1]
                        .fixed()
                        .is_some_and(|size| size >= *rotary_dim && *rotary_dim > 0)
                    && cos == sin
                    && rotary_dim % 2 == 0
                    && cos.rank() == rank - 1
                    && cos.last() == Some(Dim::Fixed(columns))
                    && cos.shape[rank - 3] == x.shape[rank - 3]
                    && (0..rank - 3)
                        .all(|axis| [x.shape[axis], Dim::Fixed(1)].contains(&cos.shape[axis]));
                if !fits {
                    return Err(format!("rope of {x} by {cos} and {sin}"));
                }
            }
            Ok(rotated.iter().map(|x| (*x).clone()).collect())
        }
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
            let [q, k, v, rest @ ..] = operands else {
                return Err(format!("{} operands", operands.len()));
            };
            let (mask, sinks) = match (sinks, rest) {
                (true, [mask @ .., sinks]) => (mask, Some(*sinks)),
                (true, []) => return Err("no sinks".into()),
                (false, mask) => (mask, None),
            };
            let weights = attention_scores(scores, q, k, mask)?;
            let &[batch, heads, queries, _] = q.shape.as_slice() else {
                return Err(format!("attention of {q}"));
            };
            let values = v.rank() == 4 && v.dtype == q.dtype && v.shape[..3] == k.shape[..3];
            if !values {
                return Err(format!("attention over {k} and {v}"));
            }
            if sinks.is_some_and(|sinks| sinks.shape != [heads] || !sinks.dtype.is_float()) {
                return Err(format!("sinks of {weights}"));
            }
            let shape = vec![batch, heads, queries, v.shape[3]];
            Ok(typed(q.dtype, shape))
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
        | Op::Island { .. } => Err("its type is not inferred".into()),
    }
}

/// `[.., t, s]` of queries `[.., h, t, d]` and keys `[.., g, s, d]`, where `g` divides `h`.
fn attention_scores(
    scores: &Scores,
    q: &TensorType,
    k: &TensorType,
    mask: &[&TensorType],
) -> Result<TensorType, String> {
    let rank = q.rank();
    let fits = rank >= 3
        && k.rank() == rank
        && q.dtype.is_float()
        && q.dtype == k.dtype
        && q.shape[..rank - 3] == k.shape[..rank - 3]
        && q.shape[rank - 1] == k.shape[rank - 1]
        && shares(q.shape[rank - 3], k.shape[rank - 3]);
    if !fits {
        return Err(format!("attention of {q} to {k}"));
    }
    let mut shape = q.shape.clone();
    shape[rank - 1] = k.shape[rank - 2];
    let accepts = |mask: &TensorType| {
        let dtype = match scores.mask {
            AttentionMask::Boolean { .. } => mask.dtype == DType::Bool,
            _ => mask.dtype.is_float(),
        };
        dtype && broadcast(&mask.shape, &shape).is_ok_and(|whole| whole == shape)
    };
    match (scores.mask.is_operand(), mask) {
        (false, []) => {}
        (true, [mask]) if accepts(mask) => {}
        _ => return Err(format!("{mask:?} masks {shape:?}")),
    }
    Ok(TensorType {
        dtype: q.dtype,
        shape,
    })
}

/// Whether so many query heads may share so many key heads.
fn shares(heads: Dim, kv_heads: Dim) -> bool {
    let divides = |kv_heads: i64| kv_heads > 0 && heads.checked_div(kv_heads).is_some();
    heads == kv_heads || kv_heads.fixed().is_some_and(divides)
}

fn check_indices(indices: &TensorType) -> Result<(), String> {
    match indices.dtype {
        DType::Int32 | DType::Int64 | DType::Uint32 => Ok(()),
        other => Err(format!("indices of dtype {other}")),
    }
}

/// Refuses bounds that are known to lie outside the axis.
pub(super) fn check_bounds(start: Dim, stop: Dim, length: Dim) -> Result<(), String> {
    let negative = |bound: Dim| bound.fixed().is_some_and(|bound| bound < 0);
    let beyond = length.checked_sub(stop).is_some_and(negative);
    match negative(start) || negative(stop) || beyond {
        true => Err(format!("slice {start}:{stop} of {length} elements")),
        false => Ok(()),
    }
}

/// Elements of `start:stop:step`; `None` where there is no such slice.
pub fn slice_length(start: Dim, stop: Dim, step: i64) -> Option<Dim> {
    let span = stop.checked_sub(start)?;
    if span.fixed().is_some_and(|span| span < 0) || step < 1 {
        return None;
    }
    span.checked_add(Dim::Fixed(step - 1))?
        .floor_div(Dim::Fixed(step))
}

/// Shape of a convolution's result.
fn convolved(attributes: &Convolution, x: &TensorType, weight: &TensorType) -> Option<Vec<Dim>> {
    let Convolution {
        stride,
        low,
        high,
        dilation,
        expansion,
        groups,
        ..
    } = attributes;
    let axes = x.rank().checked_sub(2).filter(|axes| *axes > 0)?;
    let lengths = [stride, low, high, dilation, expansion].map(Vec::len);
    let positive = [stride, dilation, expansion]
        .into_iter()
        .flatten()
        .chain([groups])
        .all(|number| (1..=MAX_STEP).contains(number));
    let padding = low
        .iter()
        .chain(high)
        .all(|zeros| (0..=MAX_STEP).contains(zeros));
    let channels = weight.last()?.checked_mul(Dim::Fixed(*groups))?;
    let fits = x.dtype.is_float()
        && weight.rank() == x.rank()
        && lengths == [axes; 5]
        && positive
        && padding
        && x.last() == Some(channels)
        && weight.shape[0].checked_div(*groups).is_some();
    if !fits {
        return None;
    }
    let mut shape = vec![x.shape[0]];
    for axis in 0..axes {
        let (size, window) = (x.shape[axis + 1], weight.shape[axis + 1]);
        let spread = |size: Dim, step: i64| {
            size.checked_sub(Dim::Fixed(1))?
                .checked_mul(Dim::Fixed(step))
        };
        let room = spread(size, expansion[axis])?
            .checked_sub(spread(window, dilation[axis])?)?
            .checked_add(Dim::Fixed(low[axis] + high[axis]))?;
        let windows = room
            .floor_div(Dim::Fixed(stride[axis]))?
            .checked_add(Dim::Fixed(1))?;
        if windows.fixed().is_some_and(|windows| windows < 1) {
            return None;
        }
        shape.push(windows);
    }
    shape.push(weight.shape[0]);
    Some(shape)
}

/// Strides and paddings beyond this are mistakes.
const MAX_STEP: i64 = 1 << 20;

fn matmul(x: &TensorType, y: &TensorType) -> Result<TensorType, String> {
    same_dtype(x, y)?;
    let (m, n) = (x.rank(), y.rank());
    if m < 2 || n < 2 || x.shape[m - 1] != y.shape[n - 2] {
        return Err(format!("product of {x} and {y}"));
    }
    let mut shape = broadcast(&x.shape[..m - 2], &y.shape[..n - 2])?;
    shape.extend([x.shape[m - 2], y.shape[n - 1]]);
    Ok(TensorType {
        dtype: x.dtype,
        shape,
    })
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
