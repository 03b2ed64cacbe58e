// SPDX-License-Identifier: Apache-2.0
//! The one error type of the lowering.

use crate::ir::Source;
use thiserror::Error;

/// Why a document could not be lowered, or a plan not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The bytes are not what they should be.
    #[error("malformed {what}: {reason}")]
    Malformed { what: &'static str, reason: String },

    /// A node that the lowering does not know, where falling back to PyTorch is off.
    #[error(
        "{target} cannot be lowered: {reason}\n  at {location}\n  VLLM_METAL_FALLBACK=torch runs it in PyTorch."
    )]
    Unsupported {
        target: String,
        reason: String,
        location: Box<Source>,
    },

    /// A node that no fallback can run.
    #[error("{reason}\n  at {location}")]
    Node {
        reason: String,
        location: Box<Source>,
    },

    /// Nothing has the name that was asked for.
    #[error("no {what} is called {name:?}; near: {near}")]
    Unknown {
        what: &'static str,
        name: String,
        near: String,
    },

    /// The verifier found an ill-typed graph: a defect of the lowering, not of the model.
    #[error(
        "internal error after {stage}: {reason}; please report it with the output of `python -m vllm_metal.lower MODEL --stage captured --format json`"
    )]
    Verifier { stage: &'static str, reason: String },
}

/// Result of the lowering.
pub type Result<T, E = Error> = std::result::Result<T, E>;
