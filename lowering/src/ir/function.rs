// SPDX-License-Identifier: Apache-2.0
//! Functions of pointwise operators, reductions and scans.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

/// Pointwise functions of one operand. Sixteen-bit floats are computed in float32 and rounded once,
/// as PyTorch does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
    /// snake_case name.
    pub fn name(self) -> &'static str {
        self.into()
    }

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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Scan {
    #[strum(serialize = "cumsum")]
    Sum,
    #[strum(serialize = "cumprod")]
    Prod,
    #[strum(serialize = "cummax")]
    Max,
    #[strum(serialize = "cummin")]
    Min,
}

impl Unary {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl Reduction {
    /// snake_case name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl Scan {
    /// `torch`'s name.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
