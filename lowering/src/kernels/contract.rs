// SPDX-License-Identifier: Apache-2.0
//! What a kernel takes, gives and needs. Written in TOML beside the kernel's body, because the tests
//! that run the kernels read it too.

use super::expression::{Expression, Sizes};
use crate::ir::DType;
use serde::Deserialize;
use std::collections::BTreeMap;

/// How a result relates to the reference's; as the classes of rewrite rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numerics {
    /// The same bits.
    Exact,
    /// The same roundings, sums in another order.
    SameRounding,
    /// Fewer roundings.
    Improves,
}

/// Which strides an input may have. What MLX cannot give is copied before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Strides {
    /// Row-major without gaps.
    #[default]
    #[serde(rename = "contiguous")]
    Contiguous,
    /// Elements of the last axis lie side by side.
    #[serde(rename = "last is 1")]
    LastIsOne,
    /// Any.
    #[serde(rename = "any")]
    Any,
}

/// An array that a kernel reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub name: String,
    /// A dtype, or one of the contract's `dtypes`.
    pub dtype: String,
    pub shape: Vec<Expression>,
    #[serde(default)]
    pub strides: Strides,
}

/// An array that a kernel writes, all of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<Expression>,
}

/// A template parameter of the body: one of the three.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub name: String,
    pub dtype: Option<String>,
    pub value: Option<Expression>,
    /// A boolean.
    pub flag: Option<Expression>,
}

/// Largest distance `absolute + relative * |expected|` from the float64 result.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    pub absolute: f64,
    pub relative: f64,
}

/// Sizes with the launch that they give.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub sizes: Sizes,
    pub grid: [i64; 3],
    pub threadgroup: [i64; 3],
}

/// A kernel's contract.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub name: String,
    /// The operator of the IR that it computes, or a part of.
    pub operator: String,
    pub summary: String,
    /// Papers.
    #[serde(default)]
    pub sources: Vec<String>,
    /// What computes the same without Metal.
    pub reference: String,
    pub numerics: Numerics,
    /// Files beside the body that hold its functions.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Integers that the plan or the step chooses, with their meaning.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Dtypes that vary, each with what it may be.
    pub dtypes: BTreeMap<String, Vec<DType>>,
    /// Integers derived of sizes and parameters, in order.
    #[serde(default, rename = "let")]
    pub derived: Vec<(String, Expression)>,
    /// What must be true, that is not 0.
    pub requires: Vec<Expression>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    #[serde(default)]
    pub template: Vec<Template>,
    /// Threads, not threadgroups.
    pub grid: [Expression; 3],
    pub threadgroup: [Expression; 3],
    pub tolerance: BTreeMap<DType, Tolerance>,
    pub examples: Vec<Example>,
}
