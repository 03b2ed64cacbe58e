// SPDX-License-Identifier: Apache-2.0
//! The operators of the IR. One enum from import to plan: a plan instruction is an `Op` with slots.
//!
//! Attributes are data of the operator, floats are bit patterns, so that two equal operators are
//! equal, hash alike and serialise to the same bytes. Operands of pointwise operators have one
//! common dtype; import inserts the casts that PyTorch's type promotion implies.

use super::{
    Activation, Binary, Convolution, DType, Dim, Float, Recurrence, Reduction, RopeStyle, Scalar,
    Scan, Scores, Unary,
};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

/// One operator. The comment gives operands, then result.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Op {
    // 1. Leaves
    /// `() -> x`: the graph's input of that index.
    Input(u32),
    /// `() -> w`: a parameter, buffer or load-time constant of that index.
    Parameter(u32),
    /// `() -> rank 0`.
    Scalar(Scalar),
    /// `() -> [shape]`, every element the value.
    Full { value: Scalar, shape: Vec<Dim> },
    /// `() -> [length]`: `start + step * i`.
    Arange { start: Dim, step: i64, length: Dim },

    // 2. Data movement
    /// `x -> x` with other sizes, elements in row-major order.
    Reshape { shape: Vec<Dim> },
    /// `x -> x` with axis `i` taken from axis `permutation[i]`.
    Transpose { permutation: Vec<usize> },
    /// `x -> x` broadcast to the shape.
    Broadcast { shape: Vec<Dim> },
    /// `x -> x[start:stop:step]` along the axis; `length` is the axis's size before the cut.
    Slice {
        axis: usize,
        start: Dim,
        stop: Dim,
        step: i64,
        length: Dim,
    },
    /// `x.. -> joined` along the axis.
    Concat { axis: usize },
    /// `x, indices -> x` gathered along the axis (`torch.index_select`, `embedding`); indices of any rank.
    Take { axis: usize },
    /// `x, indices -> x` gathered elementwise along the axis (`torch.gather`).
    TakeAlongAxis { axis: usize },
    /// `x, indices, updates -> x` with elements replaced along the axis (`torch.scatter`).
    PutAlongAxis { axis: usize },
    /// `x, indices, updates -> x` with updates added along the axis (`torch.scatter_add`).
    AddAlongAxis { axis: usize },
    /// `x -> x` with `low`, `high` elements of the value added at both ends of each axis.
    Pad {
        low: Vec<i64>,
        high: Vec<i64>,
        value: Scalar,
    },
    /// `x -> x` keeping elements with `column - row <= diagonal` (`torch.tril`).
    Tril { diagonal: i64 },
    /// `x -> x` keeping elements with `column - row >= diagonal` (`torch.triu`).
    Triu { diagonal: i64 },

    // 3. Pointwise
    /// `x -> x` in another dtype.
    Cast { dtype: DType },
    /// `x -> f(x)`
    Unary(Unary),
    /// `x, y -> f(x, y)`
    Binary(Binary),
    /// `condition, x, y -> x where condition else y`
    Where,

    // 4. Reductions and scans
    /// `x -> f(x)` over the axes.
    Reduce {
        function: Reduction,
        axes: Vec<usize>,
        keepdims: bool,
    },
    /// `x -> softmax(x)`; computed in float32.
    Softmax { axis: usize },
    /// `x -> running f(x)` along the axis.
    Scan { function: Scan, axis: usize },
    /// `x -> values, indices`, sorted along the axis.
    Sort { axis: usize, descending: bool },
    /// `x -> values, indices` of the `k` largest along the axis, descending.
    Topk { axis: usize, k: i64 },

    // 5. Products
    /// `x [.., m, k], y [.., k, n] -> [.., m, n]`
    Matmul,
    /// `x [.., m, k], w [k, n], b [n] -> x @ w + b`
    Addmm,
    /// `x [t, k | 1, m], w [e, n, m], experts [t, k] -> [t, k, n]`: each row by the weights of its
    /// expert, `w[experts[t, k]] @ x[t, k]` (MLX `gather_mm`). Other experts' weights are not read.
    ExpertMatmul,

    /// `x [n, .., c], w [m, .., c / groups] -> [n, .., m]`, channels last: in each group, sums over
    /// the windows of `x` (`torch.convolution` with its axes moved).
    Convolution(Convolution),

    // 6. Fused: what rewrite rules produce
    /// `x [.., n], w? [n] -> x / sqrt(mean(x^2) + eps) * w` (Zhang & Sennrich 2019), normalised in
    /// float32. A weight of x's dtype multiplies what was rounded to it; a float32 weight multiplies
    /// before the only rounding.
    RmsNorm { eps: Float },
    /// `x, residual, w? -> rms_norm(x + residual), x + residual`. The norm sees the sum after it is
    /// rounded to the operands' dtype, or before.
    AddRmsNorm { eps: Float, rounded_sum: bool },
    /// `x [.., n], w? [n], b? [n] -> (x - mean) / sqrt(var + eps) * w + b` (Ba et al. 2016).
    LayerNorm { eps: Float },
    /// `x, residual, w?, b? -> layer_norm(x + residual), x + residual`. The norm sees the sum after it
    /// is rounded to the operands' dtype.
    AddLayerNorm { eps: Float },
    /// `cos, sin, x [.., t, heads, d].. -> x..`, each with its first `rotary_dim = r` elements rotated
    /// (Su et al. 2021). `cos` and `sin` are `[.., t, r/2]` or, by the style, `[.., t, r]`; a batch
    /// axis of theirs may be 1.
    Rope { style: RopeStyle, rotary_dim: i64 },
    /// `x [.., 2n] -> f(x[.., :n]) * x[.., n:]`, or `gate, up -> f(gate) * up`; rounded once.
    GatedActivation { activation: Activation },
    /// `q [.., t, d], k [.., s, d], mask? -> [.., t, s]`, rounded once. The form in which rules gather
    /// an attention's scores.
    AttentionScores(Scores),
    /// `q [b, h, t, d], k [b, g, s, d], v [b, g, s, e], mask?, sinks? [h] -> [b, h, t, e]`:
    /// `softmax(scores) @ v` in float32, rounded once; `h / g` neighbouring queries share a key. A sink
    /// is one more score without a value (Xiao et al. 2023). A query that sees no key yields NaN in
    /// theory and nothing to rely on in practice.
    ScaledDotProductAttention { scores: Scores, sinks: bool },

    // 7. Effects, kept in order and outside rewriting
    /// `q [t, heads, d], k [t, kv_heads, d], v [t, kv_heads, d_v] -> [t, heads, d_v]`, without `v`
    /// where the first `d_v` elements of `k` are the values: writes K and V of
    /// the step to the layer's cache and attends over the block table (vLLM `unified_attention`).
    Attention { layer: u32 },
    /// As `Attention`, of the keys that `selected int32 [t, count]` names by their position in the
    /// request, -1 naming none: `q, selected, k, v? -> [t, heads, d_v]`. A token's row names no key
    /// twice and none behind it, and all that it sees where those are at most `count`.
    SparseAttention { layer: u32, count: i64 },
    /// `q [t, heads, d], k [t, 1, d], weights [t, heads] -> int32 [t, count]`: writes K of the step to
    /// the layer's cache, and names for each token the `count` keys of its request up to its own with
    /// the largest `sum_h weights_h relu(q_h . k)`, computed in float32 (the indexer of DeepSeek
    /// Sparse Attention, arXiv:2512.02556). In any order; -1 where there are fewer.
    SelectKeys { layer: u32, count: i64 },
    /// One of a state layer's recurrences; see [`Recurrence`] for operands and result. `state` is the
    /// index among the layer's states.
    Recurrence {
        function: Recurrence,
        layer: u32,
        state: u32,
    },

    // 8. Structure
    /// `tuple -> its element`; only inside rewriting.
    Project(u32),
    /// `operands -> results`: runs in PyTorch. `arguments` is the FX call with operands as `{"operand": i}`.
    Island { target: String, arguments: String },
}

impl Op {
    /// Reads or writes state; kept in program order.
    pub fn is_effect(&self) -> bool {
        matches!(
            self,
            Op::Attention { .. }
                | Op::SparseAttention { .. }
                | Op::SelectKeys { .. }
                | Op::Recurrence { .. }
        )
    }

    /// Takes no operands and costs nothing to name.
    pub fn is_leaf(&self) -> bool {
        matches!(self, Op::Input(_) | Op::Parameter(_) | Op::Scalar(_))
    }

    /// snake_case name of the operator, without attributes.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Unary(function) => function.name(),
            Op::Binary(function) => function.name(),
            Op::Reduce { function, .. } => function.name(),
            Op::Scan { function, .. } => function.name(),
            Op::Recurrence { function, .. } => function.name(),
            other => other.into(),
        }
    }
}
