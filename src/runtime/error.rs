// SPDX-License-Identifier: Apache-2.0
//! The one error type of the runtime.

use super::mlx::MlxError;
use thiserror::Error;

/// Result of the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; decides the Python exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An argument, a file, a plan: the caller can correct it.
    BadInput,
    /// Too little memory.
    Memory,
    /// Everything else.
    Failure,
}

/// Why something could not be loaded or run.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    /// MLX refused or failed.
    #[error(transparent)]
    Mlx(#[from] MlxError),

    /// An instruction of a plan failed.
    #[error("graph {graph:?}, {place}, {op}: {cause}")]
    Instruction {
        graph: String,
        place: String,
        op: String,
        cause: Box<Error>,
    },

    /// The plan asks for what the executor cannot do.
    #[error("{0}")]
    Unsupported(String),

    /// A graph that the plan does not have.
    #[error("the plan has no graph {name:?}; it has {known:?}")]
    UnknownGraph { name: String, known: Vec<String> },

    /// An input that a graph needs or does not know.
    #[error("graph {graph:?}: {reason}")]
    Inputs { graph: String, reason: String },

    /// A parameter that is missing or not as the plan says.
    #[error("parameter {path:?}{origin}: {reason}")]
    Parameter {
        path: String,
        origin: String,
        reason: String,
    },

    /// A weight file that cannot be read.
    #[error("weight file {path}: {reason}")]
    WeightFile { path: String, reason: String },

    /// A plan file that cannot be read.
    #[error("plan file {path}: {reason}")]
    PlanFile { path: String, reason: String },

    /// Attention metadata that would read or write outside the cache.
    #[error("attention metadata: {field}: {reason}")]
    Metadata { field: &'static str, reason: String },

    /// A wrong description of the KV cache.
    #[error("KV cache: {0}")]
    KvCache(String),

    /// More memory than allowed.
    #[error(
        "{what} needs {need} bytes, and {available} of the limit of {limit} bytes are free; {remedy}"
    )]
    Memory {
        what: String,
        need: u64,
        available: u64,
        limit: u64,
        remedy: &'static str,
    },

    /// A tensor of another framework that cannot be taken over.
    #[error("tensor: {0}")]
    Tensor(String),

    /// The PyTorch code of an island failed.
    #[error("island {target}: {reason}")]
    Island { target: String, reason: String },

    /// A Metal kernel that cannot be launched so.
    #[error("kernel {name:?}: {reason}")]
    Kernel { name: String, reason: String },

    /// The runtime was closed.
    #[error("the runtime is closed")]
    Closed,

    /// The runtime was called from the code of an island, where it is busy.
    #[error("the runtime cannot be called from inside an island")]
    Reentrant,

    /// A defect of this library.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::UnknownGraph { .. }
            | Error::Inputs { .. }
            | Error::Parameter { .. }
            | Error::WeightFile { .. }
            | Error::PlanFile { .. }
            | Error::Metadata { .. }
            | Error::KvCache(_)
            | Error::Tensor(_)
            | Error::Unsupported(_) => ErrorKind::BadInput,
            Error::Memory { .. } => ErrorKind::Memory,
            // MLX has one exception type; its allocator's messages begin like this.
            Error::Mlx(MlxError(text)) if text.contains("[malloc") => ErrorKind::Memory,
            Error::Instruction { cause, .. } => cause.kind(),
            Error::Mlx(_)
            | Error::Island { .. }
            | Error::Kernel { .. }
            | Error::Closed
            | Error::Reentrant
            | Error::Internal(_) => ErrorKind::Failure,
        }
    }
}
