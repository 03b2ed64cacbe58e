// SPDX-License-Identifier: Apache-2.0
//! What an operator launches and moves when the runtime builds it out of MLX's primitives.
//!
//! The table follows `src/runtime/executor`, without `mx.compile` or kernels of ours: each primitive
//! is one kernel that reads its operands and writes its result. Views (reshape, transpose, broadcast,
//! slice) launch nothing: at one token, what plans reshape is contiguous.

use super::AttentionLayer;
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
    fn kernel(self, read: u64, written: u64) -> Work {
        self + Work {
            launches: 1,
            bytes_read: read,
            bytes_written: written,
        }
    }

    /// A chain of kernels, each reading what the one before wrote.
    fn chain(self, kernels: u64, bytes: u64) -> Work {
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

/// No tensor counts for more bytes, and no layer has more heads or elements in one, so that sums and
/// products of what a damaged document claims stay in 64 bits.
const MOST_BYTES: u64 = 1 << 48;
const MOST_HEADS: i64 = 1 << 16;

/// Bytes of a tensor where every symbol is 1.
fn bytes(of: &TensorType) -> u64 {
    of.num_bytes(1).min(MOST_BYTES)
}

/// Bytes of the same elements in float32, in which 16-bit floats are computed.
fn wide(of: &TensorType) -> u64 {
    bytes(of) / of.dtype.size() as u64 * 4
}

/// Work of an instruction at one token on operands and results of these types. Attention is
/// [`attention`]'s, an island is PyTorch's.
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
            let widened = match half {
                true => operands
                    .iter()
                    .fold(none, |work, of| work.kernel(bytes(of), wide(of))),
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

/// Two products and a sum for what is rotated as one array: queries and keys of one head size are
/// joined first. [`rope_table`] is shared by all layers.
fn rope(operands: &[&TensorType]) -> Work {
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
        [q, k] if q.shape.last() == k.shape.last() => {
            let joined = Work::default()
                .kernel(bytes(q), bytes(q))
                .kernel(bytes(k), bytes(k));
            joined + rotate(bytes(q) + bytes(k), q.dtype)
        }
        all => all.iter().map(|x| rotate(bytes(x), x.dtype)).sum(),
    }
}

/// Sines negated and joined with themselves, once a step for all layers that share them.
pub fn rope_table(sin: &TensorType) -> Work {
    Work::default().chain(3, bytes(sin))
}

/// Work of selecting `count` of the keys of a request of `context` tokens, whose cache holds elements
/// of `size` bytes.
pub fn key_selection(layer: &AttentionLayer, context: u64, count: i64, size: u64) -> Work {
    let heads = layer.num_heads.clamp(0, MOST_HEADS) as u64;
    let row = layer.head_size.clamp(0, MOST_HEADS) as u64 * size;
    let written = Work::default().kernel(row, row);
    if context <= count.max(0) as u64 {
        return written;
    }
    let scores = heads * context * 4;
    // Keys gathered, products, their positive parts, the weighted sum, its mask; order and names.
    written
        .kernel(context * row, context * row)
        .kernel(context * row + heads * row, scores)
        .kernel(scores, scores)
        .kernel(scores, context * 4)
        .chain(2, context * 4)
        .kernel(context * 4, count.max(0) as u64 * 4)
}

/// Work of an attention layer, part by part.
#[derive(Clone, Copy, Debug)]
pub struct AttentionWork {
    /// Of writing the step's keys and values to the cache.
    pub write: Work,
    /// Of the attention itself, on rows gathered from the cache.
    pub attend: Work,
    /// Of the attention by the kernel that reads the cache in place.
    pub paged: Work,
}

impl AttentionWork {
    /// Without kernels.
    pub fn reference(self) -> Work {
        self.write + self.attend
    }
}

/// Work of one attention layer that decodes one token of a request of `context` tokens, whose cache
/// holds elements of `size` bytes.
pub fn attention(layer: &AttentionLayer, context: u64, size: u64) -> AttentionWork {
    let count = |number: i64| number.clamp(0, MOST_HEADS) as u64;
    let heads = count(layer.num_heads);
    let width = if layer.value_in_key {
        count(layer.head_size)
    } else {
        count(layer.head_size) + count(layer.head_size_v)
    };
    let row = count(layer.num_kv_heads) * width * size;
    let query = heads * count(layer.head_size) * size;
    let result = heads * count(layer.head_size_v) * size;
    let tokens = layer
        .sliding_window
        .map_or(context, |window| context.min(window.max(0) as u64));
    let keys_values = tokens * row;
    // Keys and values, which come joined, are scattered into the cache.
    let cached = layer.kv_sharing_target.is_none() && !layer.attn_type.starts_with("encoder");
    let write = match cached {
        true => Work::default().kernel(row, row),
        false => Work::default(),
    };
    let paged = Work::default().kernel(keys_values + query, result);
    let gathered = Work::default().kernel(keys_values, keys_values);
    let capped = layer.logits_soft_cap.is_some_and(|cap| cap.get() != 0.0);
    if !capped && layer.alibi_slopes.is_none() && layer.head_size == layer.head_size_v {
        let attend = gathered.kernel(keys_values + query, result);
        return AttentionWork {
            write,
            attend,
            paged,
        };
    }
    // Written out in float32: scaled queries, scores, softmax, values.
    let wide_factor = if size < 4 { 4 / size.max(1) } else { 1 };
    let scores = heads * tokens * 4;
    let widened = match wide_factor {
        1 => gathered,
        factor => gathered
            .kernel(keys_values / 2, keys_values / 2 * factor)
            .kernel(keys_values / 2, keys_values / 2 * factor),
    };
    let products = keys_values / 2 * wide_factor;
    let mut work = widened
        .kernel(query, query * wide_factor)
        .kernel(query * wide_factor + products, scores);
    work = work.chain(2 * u64::from(capped), scores);
    work = work.chain(u64::from(layer.alibi_slopes.is_some()), scores);
    work = work.chain(2 * u64::from(layer.sinks.is_some()), scores);
    work = work
        .kernel(scores, scores)
        .kernel(scores + products, result * wide_factor);
    let attend = match wide_factor {
        1 => work,
        factor => work.kernel(result * factor, result),
    };
    AttentionWork {
        write,
        attend,
        paged,
    }
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
    use crate::ir::{Dim, Float};

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
        // Cast, sigmoid, product, product, cast.
        let read = 32 + 32 + 32 + 64 + 32;
        assert_eq!(gated, of(5, read, 64 + 32 + 32 + 32 + 16));
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

    #[test]
    fn attention_reads_the_cache_within_its_window() {
        let mut layer = AttentionLayer {
            name: "attn".into(),
            num_heads: 4,
            num_kv_heads: 2,
            head_size: 8,
            head_size_v: 8,
            scale: Float::new(1.0),
            sliding_window: None,
            logits_soft_cap: None,
            alibi_slopes: None,
            alibi_sqrt: false,
            sinks: None,
            attn_type: "decoder".into(),
            kv_sharing_target: None,
            value_in_key: false,
            kernel: None,
        };
        let row = 2 * (8 + 8) * 2;
        let of = |layer: &AttentionLayer| attention(layer, 16, 2).reference();
        let whole = of(&layer);
        // A scatter of a row, a gather, attention itself.
        assert_eq!(whole.launches, 3);
        assert_eq!(whole.bytes_read, row + 16 * row + 16 * row + 64);
        assert_eq!(whole.bytes_written, row + 16 * row + 64);
        // The kernel gathers nothing.
        let paged = attention(&layer, 16, 2).paged;
        assert_eq!((paged.launches, paged.bytes_read), (1, 16 * row + 64));
        layer.sliding_window = Some(4);
        assert_eq!(of(&layer).bytes_read, row + 8 * row + 64);
        layer.kv_sharing_target = Some("other".into());
        assert_eq!(of(&layer).launches, 2);
        layer.logits_soft_cap = Some(Float::new(30.0));
        assert!(of(&layer).launches > 8);
    }
}
