// SPDX-License-Identifier: Apache-2.0
//! The operators of the IR. One enum from import to plan: a plan instruction is an `Op` with slots.
//!
//! Attributes are data of the operator, floats are bit patterns, so that two equal operators are
//! equal, hash alike and serialise to the same bytes. Operands of pointwise operators have one
//! common dtype; import inserts the casts that PyTorch's type promotion implies.

use super::{DType, Dim};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A float attribute, compared and hashed by its bits and written so that it reads back exactly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Float(u64);

impl Float {
    /// The bits of `value`.
    pub fn new(value: f64) -> Float {
        Float(value.to_bits())
    }

    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl Serialize for Float {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:?}", self.get()))
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Float, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map(Float::new)
            .map_err(serde::de::Error::custom)
    }
}

/// A rank-0 constant. The dtype stands in the node's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    Bool(bool),
    Int(i64),
    Float(Float),
    /// The value of a symbolic size.
    Size(Dim),
}

impl Scalar {
    /// The number as a float; `None` for a size that only a step knows.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Scalar::Bool(value) => Some(f64::from(u8::from(value))),
            Scalar::Int(value) => Some(value as f64),
            Scalar::Float(value) => Some(value.get()),
            Scalar::Size(dim) => dim.fixed().map(|value| value as f64),
        }
    }
}

/// Pointwise functions of one operand. Sixteen-bit floats are computed in float32 and rounded once,
/// as PyTorch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unary {
    Neg,
    Abs,
    Sign,
    Square,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Exp,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    Sin,
    Cos,
    Tan,
    Sinh,
    Cosh,
    Tanh,
    Arcsin,
    Arccos,
    Arctan,
    Arcsinh,
    Arccosh,
    Arctanh,
    Erf,
    Erfinv,
    Floor,
    Ceil,
    Round,
    Sigmoid,
    Silu,
    /// `x * 0.5 * (1 + erf(x / sqrt 2))`
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
    Softplus,
    LogicalNot,
    BitwiseNot,
    Isnan,
    Isinf,
}

/// Pointwise functions of two operands of one dtype, with broadcasting as in NumPy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// Rounds towards minus infinity.
    FloorDivide,
    /// Sign of the divisor, as Python's `%`.
    Remainder,
    Pow,
    Maximum,
    Minimum,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    LogicalAnd,
    LogicalOr,
    LogicalXor,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    LeftShift,
    RightShift,
    Arctan2,
}

impl Binary {
    /// The result is boolean whatever the operands are.
    pub fn is_predicate(self) -> bool {
        use Binary::*;
        matches!(
            self,
            Equal
                | NotEqual
                | Less
                | LessEqual
                | Greater
                | GreaterEqual
                | LogicalAnd
                | LogicalOr
                | LogicalXor
        )
    }
}

/// Reductions over axes. Sixteen-bit floats accumulate in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    All,
    Any,
    Argmax,
    Argmin,
}

/// Running reductions along an axis, each element of the result that of the elements up to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scan {
    Sum,
    Prod,
    Max,
    Min,
}

/// Which pairs of elements a rotary embedding rotates, and how wide its `cos` and `sin` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeStyle {
    /// `(x[i], x[i + n/2])`, GPT-NeoX and most models; `cos` and `sin` are `[t, n/2]`.
    Neox,
    /// `(x[2i], x[2i + 1])`, GPT-J; `cos` and `sin` are `[t, n/2]`.
    Gptj,
    /// As `Neox`, with `cos` and `sin` of `[t, n]`, a value for each element (Hugging Face
    /// `apply_rotary_pos_emb`): `x * cos + [-x2, x1] * sin`.
    RotateHalf,
    /// As `Gptj`, with `cos` and `sin` of `[t, n]` (Hugging Face Cohere and GLM).
    RotatePairs,
}

/// The gate's function in a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    Silu,
    Gelu,
    GeluTanh,
    Relu,
    /// `x * sigmoid(alpha * x)`: QuickGELU, the gate of gpt-oss.
    Swish {
        alpha: Float,
    },
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Query `i` sees key `j` if `j <= i + offset`: 0 aligns the first query with the first key
    /// (`torch.nn.functional.scaled_dot_product_attention(is_causal=True)`), `s - t` the last with the
    /// last (MLX `"causal"`).
    Causal { offset: Dim },
    /// An operand that is added to the scaled scores.
    Additive,
    /// A boolean operand: where it is false the score is the number.
    Boolean { fill: Float },
}

impl AttentionMask {
    /// The mask is an operand.
    pub fn is_operand(self) -> bool {
        matches!(
            self,
            AttentionMask::Additive | AttentionMask::Boolean { .. }
        )
    }
}

/// How queries and keys make scores: `q @ k^T * scale`, capped by `cap * tanh(score / cap)`, masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scores {
    pub scale: Float,
    /// Gemma 2 `attn_logit_softcapping`.
    pub soft_cap: Option<Float>,
    pub mask: AttentionMask,
}

/// Attributes of a convolution, one number for each axis between the first and the last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Steps from window to window.
    pub stride: Vec<i64>,
    /// Zeros in front of the input.
    pub low: Vec<i64>,
    /// Zeros behind it.
    pub high: Vec<i64>,
    /// Steps between the elements of a window.
    pub dilation: Vec<i64>,
    /// The input's elements stand this far apart, with zeros between (transposed convolutions).
    pub expansion: Vec<i64>,
    pub groups: i64,
    /// The weight is applied back to front.
    pub flip: bool,
}

/// Recurrences over the tokens of each request, with a state that is kept between steps. `S` is the
/// request's state before and after token `t`; all is computed in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recurrence {
    /// `x [t, c], w [c, n] -> [t, c]`: depthwise causal convolution, `y_t = sum_j w[:, j] x_{t-n+1+j}`;
    /// the state is the last `n - 1` inputs.
    CausalConv,
    /// `q [t, g, n], k [t, g, n], v [t, h, p], decay [t, h] -> [t, h, p]`, `g` dividing `h`:
    /// `S = e^decay S + v k^T`, `y = S q` (Mamba-2, arXiv:2405.21060; lightning attention).
    LinearScan,
    /// `q [t, g, n], k [t, g, n], v [t, h, p], decay [t, h] or [t, h, n], beta [t, h] -> [t, h, p]`:
    /// `S = S diag(e^decay)`, `S = S + beta (v - S k) k^T`, `y = S q` (gated delta rule,
    /// arXiv:2412.06464; with a decay per channel, Kimi Delta Attention, arXiv:2510.26692).
    DeltaScan,
    /// `x [t, d], dt [t, d], a [d, n], b [t, n], c [t, n] -> [t, d]`: `S = e^(dt a) S + dt x b^T`,
    /// `y = S c` (Mamba, arXiv:2312.00752).
    SelectiveScan,
}

/// One operator. The comment gives operands, then result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
            Op::Input(_) => "input",
            Op::Parameter(_) => "parameter",
            Op::Scalar(_) => "scalar",
            Op::Full { .. } => "full",
            Op::Arange { .. } => "arange",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Broadcast { .. } => "broadcast",
            Op::Slice { .. } => "slice",
            Op::Concat { .. } => "concat",
            Op::Take { .. } => "take",
            Op::TakeAlongAxis { .. } => "take_along_axis",
            Op::PutAlongAxis { .. } => "put_along_axis",
            Op::AddAlongAxis { .. } => "add_along_axis",
            Op::Pad { .. } => "pad",
            Op::Tril { .. } => "tril",
            Op::Triu { .. } => "triu",
            Op::Cast { .. } => "cast",
            Op::Unary(function) => function.name(),
            Op::Binary(function) => function.name(),
            Op::Where => "where",
            Op::Reduce { function, .. } => function.name(),
            Op::Softmax { .. } => "softmax",
            Op::Scan { function, .. } => function.name(),
            Op::Sort { .. } => "sort",
            Op::Topk { .. } => "topk",
            Op::Matmul => "matmul",
            Op::Addmm => "addmm",
            Op::Convolution(_) => "convolution",
            Op::ExpertMatmul => "expert_matmul",
            Op::RmsNorm { .. } => "rms_norm",
            Op::AddRmsNorm { .. } => "add_rms_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::AddLayerNorm { .. } => "add_layer_norm",
            Op::Rope { .. } => "rope",
            Op::GatedActivation { .. } => "gated_activation",
            Op::AttentionScores(_) => "attention_scores",
            Op::ScaledDotProductAttention { .. } => "scaled_dot_product_attention",
            Op::Attention { .. } => "attention",
            Op::SparseAttention { .. } => "sparse_attention",
            Op::SelectKeys { .. } => "select_keys",
            Op::Recurrence { function, .. } => function.name(),
            Op::Project(_) => "project",
            Op::Island { .. } => "island",
        }
    }
}

impl Unary {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Square => "square",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Reciprocal => "reciprocal",
            Unary::Exp => "exp",
            Unary::Expm1 => "expm1",
            Unary::Log => "log",
            Unary::Log1p => "log1p",
            Unary::Log2 => "log2",
            Unary::Log10 => "log10",
            Unary::Sin => "sin",
            Unary::Cos => "cos",
            Unary::Tan => "tan",
            Unary::Sinh => "sinh",
            Unary::Cosh => "cosh",
            Unary::Tanh => "tanh",
            Unary::Arcsin => "arcsin",
            Unary::Arccos => "arccos",
            Unary::Arctan => "arctan",
            Unary::Arcsinh => "arcsinh",
            Unary::Arccosh => "arccosh",
            Unary::Arctanh => "arctanh",
            Unary::Erf => "erf",
            Unary::Erfinv => "erfinv",
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Round => "round",
            Unary::Sigmoid => "sigmoid",
            Unary::Silu => "silu",
            Unary::Gelu => "gelu",
            Unary::GeluTanh => "gelu_tanh",
            Unary::Relu => "relu",
            Unary::Softplus => "softplus",
            Unary::LogicalNot => "logical_not",
            Unary::BitwiseNot => "bitwise_not",
            Unary::Isnan => "isnan",
            Unary::Isinf => "isinf",
        }
    }
}

impl Binary {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::FloorDivide => "floor_divide",
            Binary::Remainder => "remainder",
            Binary::Pow => "pow",
            Binary::Maximum => "maximum",
            Binary::Minimum => "minimum",
            Binary::Equal => "equal",
            Binary::NotEqual => "not_equal",
            Binary::Less => "less",
            Binary::LessEqual => "less_equal",
            Binary::Greater => "greater",
            Binary::GreaterEqual => "greater_equal",
            Binary::LogicalAnd => "logical_and",
            Binary::LogicalOr => "logical_or",
            Binary::LogicalXor => "logical_xor",
            Binary::BitwiseAnd => "bitwise_and",
            Binary::BitwiseOr => "bitwise_or",
            Binary::BitwiseXor => "bitwise_xor",
            Binary::LeftShift => "left_shift",
            Binary::RightShift => "right_shift",
            Binary::Arctan2 => "arctan2",
        }
    }
}

impl Recurrence {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Recurrence::CausalConv => "causal_conv",
            Recurrence::LinearScan => "linear_scan",
            Recurrence::DeltaScan => "delta_scan",
            Recurrence::SelectiveScan => "selective_scan",
        }
    }

    /// How many operands it takes.
    pub fn num_operands(self) -> usize {
        match self {
            Recurrence::CausalConv => 2,
            Recurrence::LinearScan => 4,
            Recurrence::DeltaScan | Recurrence::SelectiveScan => 5,
        }
    }
}

impl Reduction {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Mean => "mean",
            Reduction::Max => "max",
            Reduction::Min => "min",
            Reduction::Prod => "prod",
            Reduction::All => "all",
            Reduction::Any => "any",
            Reduction::Argmax => "argmax",
            Reduction::Argmin => "argmin",
        }
    }
}

impl Scan {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        match self {
            Scan::Sum => "cumsum",
            Scan::Prod => "cumprod",
            Scan::Max => "cummax",
            Scan::Min => "cummin",
        }
    }
}
