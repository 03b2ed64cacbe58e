// SPDX-License-Identifier: Apache-2.0
//! What an operator launches and moves when the runtime builds it out of MLX's primitives.
//!
//! The table follows `src/runtime/executor`, without `mx.compile` or kernels of ours: each primitive
//! is one kernel that reads its operands and writes its result. Views (reshape, transpose, broadcast,
//! slice) launch nothing: at one token, what plans reshape is contiguous.

use crate::ir::{Activation, Binary, DType, Op, Reduction, TensorType, Unary};
use serde::Serialize;

/// Kernel launches, and bytes that they read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    pub launches: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Work {
    /// One kernel.
    pub(super) fn kernel(self, read: u64, written: u64) -> Work {
        self + Work {
            launches: 1,
            bytes_read: read,
            bytes_written: written,
        }
    }

    /// A chain of kernels, each reading what the one before wrote.
    pub(super) fn chain(self, kernels: u64, bytes: u64) -> Work {
        (0..kernels).fold(self, |work, _| work.kernel(bytes, bytes))
    }
}

impl std::ops::Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            launches: self.launches.saturating_add(other.launches),
            bytes_read: self.bytes_read.saturating_add(other.bytes_read),
            bytes_written: self.bytes_written.saturating_add(other.bytes_written),
        }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Work>>(all: I) -> Work {
        all.fold(Work::default(), |a, b| a + b)
    }
}

/// No tensor counts for more bytes, so that sums of what a damaged document claims stay in 64 bits.
const MOST_BYTES: u64 = 1 << 48;

/// Bytes of a tensor where every symbol is 1.
fn bytes(of: &TensorType) -> u64 {
    of.num_bytes(1).min(MOST_BYTES)
}

/// Bytes of the same elements in float32, in which 16-bit floats are computed.
fn wide(of: &TensorType) -> u64 {
    bytes(of) / of.dtype.size() as u64 * 4
}

/// Work of an instruction at one token on operands and results of these types. Effects on the KV cache are
/// [`super::cache_work`]'s, an island is PyTorch's.
pub fn work(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> Work {
    let none = Work::default();
    let read: u64 = operands.iter().map(|of| bytes(of)).sum();
    let written: u64 = results.iter().map(bytes).sum();
    let (Some(x), Some(result)) = (operands.first(), results.first()) else {
        return match op {
            // `mx.full` fills; numbers and ranges are made on the host.
            Op::Full { .. } => none.kernel(0, written),
            _ => none,
        };
    };
    let half = x.dtype.is_half();
    match op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => none,
        Op::Input(_) | Op::Parameter(_) | Op::Scalar(_) | Op::Project(_) => none,
        Op::Attention { .. } | Op::SparseAttention { .. } | Op::SelectKeys { .. } => none,
        Op::Island { .. } => none,
        // `Concatenate` copies each operand to its place.
        Op::Concat { .. } => operands
            .iter()
            .fold(none, |work, of| work.kernel(bytes(of), bytes(of))),
        // `Gather`, `GatherAxis`: the indices and the rows that they name.
        Op::Take { .. } | Op::TakeAlongAxis { .. } => {
            let indices = operands.get(1).map_or(0, |of| bytes(of));
            none.kernel(indices + written, written)
        }
        // `GatherMM`: the weights of the experts that are chosen, `[experts, n, m]` for `[t, k, n]`.
        Op::ExpertMatmul => {
            let per_expert = operands.get(1).map_or(0, |weights| {
                let count = weights.shape.first().and_then(|count| count.fixed());
                bytes(weights) / count.unwrap_or(1).max(1) as u64
            });
            let chosen = result.shape.get(1).and_then(|chosen| chosen.fixed());
            let weights = per_expert.saturating_mul(chosen.unwrap_or(1).max(1) as u64);
            let indices = operands.get(2).map_or(0, |of| bytes(of));
            none.kernel(bytes(x) + weights.min(MOST_BYTES) + indices, written)
        }
        // `addmm`; a cap is a division, a tanh and a product.
        Op::AttentionScores(scores) => none
            .kernel(read, written)
            .chain(3 * u64::from(scores.soft_cap.is_some()), written),
        // `ScatterAxis` on a copy.
        Op::PutAlongAxis { .. } => {
            let updates: u64 = operands[1..].iter().map(|of| bytes(of)).sum();
            none.kernel(bytes(x), bytes(x))
                .kernel(updates, updates.min(written))
        }
        // A fill, then a copy into it.
        Op::Pad { .. } => none.kernel(0, written).kernel(read, read),
        // Two ranges, their comparison, a select.
        Op::Tril { .. } | Op::Triu { .. } => none
            .kernel(0, 0)
            .kernel(0, 0)
            .kernel(0, written / x.dtype.size() as u64)
            .kernel(read, written),
        Op::Unary(function) => match half && !is_exact(*function) {
            true => none
                .kernel(bytes(x), wide(x))
                .chain(unary(*function), wide(x))
                .kernel(wide(x), written),
            false => none.chain(unary(*function), bytes(x)),
        },
        Op::Binary(function) => binary(*function, operands, result),
        // Sums of 16-bit floats are taken in float32; a mean is a sum and a multiplication.
        Op::Reduce { function, .. } => match function {
            Reduction::Argmax | Reduction::Argmin => {
                none.kernel(read, written).kernel(written, written)
            }
            Reduction::Sum | Reduction::Mean | Reduction::Prod => {
                let scaled = u64::from(*function == Reduction::Mean);
                match half {
                    true => none
                        .kernel(read, wide(x))
                        .kernel(wide(x), wide(result))
                        .chain(scaled, wide(result))
                        .kernel(wide(result), written),
                    false => none.kernel(read, written).chain(scaled, written),
                }
            }
            _ => none.kernel(read, written),
        },
        Op::Scan { .. } if half => none
            .kernel(read, wide(x))
            .kernel(wide(x), wide(x))
            .kernel(wide(x), written),
        // Keys turned round where the order is descending, `ArgSort`, a gather, the indices widened.
        Op::Sort { .. } | Op::Topk { .. } => {
            let turned = matches!(
                op,
                Op::Topk { .. }
                    | Op::Sort {
                        descending: true,
                        ..
                    }
            );
            none.chain(u64::from(turned), read)
                .kernel(read, read)
                .kernel(read, bytes(result))
                .kernel(bytes(result), results.get(1).map_or(0, bytes))
        }
        // A weight wider than x: the norm runs in float32.
        Op::RmsNorm { .. } => match operands.get(1) {
            Some(weight) if weight.dtype != x.dtype => none
                .kernel(bytes(x), wide(x))
                .kernel(wide(x) + bytes(weight), wide(x))
                .kernel(wide(x), written),
            _ => none.kernel(read, written),
        },
        Op::AddRmsNorm { rounded_sum, .. } => add_norm(*rounded_sum || !half, operands, x),
        Op::AddLayerNorm { .. } => {
            let sum = bytes(x);
            let parameters = operands.iter().skip(2).map(|of| bytes(of));
            none.kernel(2 * sum, sum)
                .kernel(sum + parameters.sum::<u64>(), sum)
        }
        Op::Rope { .. } => rope(operands),
        Op::GatedActivation { activation } => {
            let function = match activation {
                Activation::Silu => unary(Unary::Silu),
                Activation::Gelu => unary(Unary::Gelu),
                Activation::GeluTanh => unary(Unary::GeluTanh),
                Activation::Relu => unary(Unary::Relu),
                // `alpha * x`, its sigmoid, the product.
                Activation::Swish { .. } => 3,
            };
            let gate = if half { wide(result) } else { written };
            // Each half of a merged operand is cast by itself.
            let widened = match half {
                true => none.kernel(written, gate).kernel(written, gate),
                false => none,
            };
            let product = widened.chain(function, gate).kernel(2 * gate, gate);
            match half {
                true => product.kernel(gate, written),
                false => product,
            }
        }
        // One primitive: casts, selections, products, softmax, layer norm.
        _ => none.kernel(read, written),
    }
}

/// Functions that MLX computes in 16-bit floats as exactly as in float32.
fn is_exact(function: Unary) -> bool {
    use Unary::*;
    matches!(
        function,
        Neg | Abs
            | Sign
            | Square
            | Floor
            | Ceil
            | Round
            | Relu
            | LogicalNot
            | BitwiseNot
            | Isnan
            | Isinf
    )
}

/// Primitives of a function.
fn unary(function: Unary) -> u64 {
    match function {
        Unary::Silu => 2,
        Unary::Gelu => 5,
        Unary::GeluTanh => 9,
        _ => 1,
    }
}

fn binary(function: Binary, operands: &[&TensorType], result: &TensorType) -> Work {
    let read: u64 = operands.iter().map(|of| bytes(of)).sum();
    let written = bytes(result);
    let composite = matches!(
        function,
        Binary::FloorDivide | Binary::Remainder | Binary::Pow | Binary::Arctan2
    );
    if composite && operands[0].dtype.is_half() {
        let widened = operands
            .iter()
            .fold(Work::default(), |work, of| work.kernel(bytes(of), wide(of)));
        let wide_read = operands.iter().map(|of| wide(of)).sum();
        return widened
            .kernel(wide_read, wide(result))
            .kernel(wide(result), written);
    }
    let integral = operands[0].dtype.is_integral();
    match function {
        // Both operands as booleans, then compared.
        Binary::LogicalXor => Work::default().chain(2, written).kernel(read, written),
        // MLX divides integers towards zero: the remainder is taken off first.
        Binary::FloorDivide if integral => Work::default().chain(2, read).kernel(read, written),
        _ => Work::default().kernel(read, written),
    }
}

/// `x + residual`, then the norm, in float32 where the sum is not rounded before it.
fn add_norm(rounded: bool, operands: &[&TensorType], x: &TensorType) -> Work {
    let sum = bytes(x);
    let weight = operands.get(2);
    let read_weight = weight.map_or(0, |weight| bytes(weight));
    if rounded {
        let added = Work::default().kernel(2 * sum, sum);
        return match weight {
            Some(weight) if weight.dtype != x.dtype => added
                .kernel(sum, wide(x))
                .kernel(wide(x) + read_weight, wide(x))
                .kernel(wide(x), sum),
            _ => added.kernel(sum + read_weight, sum),
        };
    }
    // Both operands widened, then added, and their sum narrowed.
    let added = Work::default()
        .kernel(sum, wide(x))
        .kernel(sum, wide(x))
        .kernel(2 * wide(x), wide(x))
        .kernel(wide(x), sum);
    match weight {
        Some(weight) if weight.dtype == x.dtype => added
            .kernel(wide(x), wide(x))
            .kernel(wide(x), sum)
            .kernel(sum + read_weight, sum),
        _ => added
            .kernel(wide(x) + read_weight, wide(x))
            .kernel(wide(x), sum),
    }
}

/// Queries and keys of one head size are rotated as one array, and joined first. [`rope_table`] is
/// shared by all layers.
fn rope(operands: &[&TensorType]) -> Work {
    let joined = match operands {
        [_, _, q, k] if q.shape.last() == k.shape.last() => Work::default()
            .kernel(bytes(q), bytes(q))
            .kernel(bytes(k), bytes(k)),
        _ => Work::default(),
    };
    joined + rotation(operands)
}

/// Two products and a sum for what is rotated as one array.
pub fn rotation(operands: &[&TensorType]) -> Work {
    let [cos, _, rotated @ ..] = operands else {
        return Work::default();
    };
    let rotate = |total: u64, dtype: DType| {
        let scale = if cos.dtype.size() > dtype.size() {
            (cos.dtype.size() / dtype.size()) as u64
        } else {
            1
        };
        let product = total * scale;
        let work = Work::default()
            .kernel(total + product, product)
            .kernel(total + product, product)
            .kernel(2 * product, product);
        match scale {
            1 => work,
            _ => work.kernel(product, total),
        }
    };
    match rotated {
        [q, k] if q.shape.last() == k.shape.last() => rotate(bytes(q) + bytes(k), q.dtype),
        all => all.iter().map(|x| rotate(bytes(x), x.dtype)).sum(),
    }
}

/// Sines negated and joined with themselves, once a step for all layers that share them.
pub fn rope_table(sin: &TensorType) -> Work {
    Work::default().chain(3, bytes(sin))
}

/// Work of one launch of a kernel that reads and writes tensors of these types.
pub fn one_launch<'a>(
    read: impl IntoIterator<Item = &'a TensorType>,
    written: impl IntoIterator<Item = &'a TensorType>,
) -> Work {
    let total = |all: &mut dyn Iterator<Item = &'a TensorType>| all.map(bytes).sum();
    Work::default().kernel(
        total(&mut read.into_iter()),
        total(&mut written.into_iter()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Dim;

    fn bf16(shape: &[i64]) -> TensorType {
        let mut shape: Vec<Dim> = shape.iter().copied().map(Dim::Fixed).collect();
        shape.insert(0, Dim::symbol(0));
        TensorType {
            dtype: DType::Bfloat16,
            shape,
        }
    }

    fn of(launches: u64, bytes_read: u64, bytes_written: u64) -> Work {
        Work {
            launches,
            bytes_read,
            bytes_written,
        }
    }

    #[test]
    fn primitives_read_operands_and_write_results() {
        let (x, y) = (bf16(&[4]), bf16(&[6]));
        let weight = TensorType {
            dtype: DType::Bfloat16,
            shape: vec![4.into(), 6.into()],
        };
        let matmul = work(&Op::Matmul, &[&x, &weight], &[y]);
        assert_eq!(matmul, of(1, 8 + 48, 12));
        let shape = vec![Dim::symbol(0), 2.into(), 2.into()];
        let reshape = work(&Op::Reshape { shape }, &[&x], &[bf16(&[2, 2])]);
        assert_eq!(reshape, Work::default());
        let take = work(&Op::Take { axis: 0 }, &[&weight, &bf16(&[])], &[bf16(&[6])]);
        assert_eq!(take, of(1, 2 + 12, 12));
    }

    #[test]
    fn sixteen_bit_functions_are_computed_in_float32() {
        let (x, result) = (bf16(&[16]), bf16(&[8]));
        let activation = Activation::Silu;
        let gated = work(&Op::GatedActivation { activation }, &[&x], &[result]);
        // Casts, sigmoid, product, product, cast.
        let read = 32 + 32 + 32 + 64 + 32;
        assert_eq!(gated, of(6, read, 64 + 32 + 32 + 32 + 16));
    }

    #[test]
    fn experts_read_the_weights_of_those_chosen() {
        let fixed = |shape: &[i64]| TensorType {
            dtype: DType::Bfloat16,
            shape: shape.iter().copied().map(Dim::Fixed).collect(),
        };
        let (x, weights, chosen) = (bf16(&[1, 4]), fixed(&[8, 6, 4]), bf16(&[2]));
        let work = work(
            &Op::ExpertMatmul,
            &[&x, &weights, &chosen],
            &[bf16(&[2, 6])],
        );
        // int64 indices in a plan; any dtype will do here.
        assert_eq!(work.bytes_read, 8 + 2 * 48 + 4);
    }
}
