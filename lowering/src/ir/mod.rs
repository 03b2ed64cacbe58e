// SPDX-License-Identifier: Apache-2.0
//! The typed intermediate representation.

mod builder;
mod dim;
mod dtype;
mod graph;
mod infer;
mod op;
mod polynomial;
mod verify;

pub use builder::{Builder, widens};
pub use dim::{Dim, SymbolId, product};
pub use dtype::DType;
pub use graph::{Graph, MAX_SIZE, Node, NodeId, Operands, Source, TensorType, Value};
pub use infer::{broadcast, infer, scalar_dtype, slice_length};
pub use op::{
    Activation, AttentionMask, Binary, Convolution, Float, Op, Recurrence, Reduction, RopeStyle,
    Scalar, Scan, Scores, Unary,
};
pub use verify::verify;
