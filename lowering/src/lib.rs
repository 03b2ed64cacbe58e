// SPDX-License-Identifier: Apache-2.0
//! Lowers FX graphs of PyTorch models to plans for MLX. Knows neither MLX nor Python.

pub mod diff;
pub mod dump;
pub mod error;
pub mod explain;
pub mod import;
pub mod interpret;
pub mod ir;
pub mod kernels;
pub mod lower;
pub mod plan;
pub mod report;
pub mod rewrite;
pub mod rules;

/// SHA-256 of this crate's sources, in hexadecimal: rules, cost table and format of the plans that it
/// makes. Another value means that a stored plan may not be what this build would make.
pub const SOURCE_SHA256: &str = env!("LOWERING_SOURCE_SHA256");
