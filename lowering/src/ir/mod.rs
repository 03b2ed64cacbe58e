// SPDX-License-Identifier: Apache-2.0
//! The typed intermediate representation.

mod attributes;
mod builder;
mod dim;
mod dtype;
mod function;
mod graph;
mod infer;
mod op;
mod polynomial;
mod scalar;
mod verify;

pub use attributes::{Activation, AttentionMask, Convolution, Recurrence, RopeStyle, Scores};
pub use builder::{Builder, widens};
pub use dim::{Dim, SymbolId, product};
pub use dtype::DType;
pub use function::{Binary, Reduction, Scan, Unary};
pub use graph::{Graph, MAX_SIZE, Node, NodeId, Operands, Source, TensorType, Value};
pub use infer::{broadcast, infer, scalar_dtype, slice_length};
pub use op::Op;
pub use scalar::{Float, Scalar};
pub use verify::verify;
