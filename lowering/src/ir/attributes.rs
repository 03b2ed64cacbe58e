// SPDX-License-Identifier: Apache-2.0
//! Attributes of operators.

use super::{Dim, Float};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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

impl Recurrence {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        self.into()
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
