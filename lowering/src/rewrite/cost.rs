// SPDX-License-Identifier: Apache-2.0
//! What an operator costs, by which extraction chooses: launches of a kernel, and bytes moved.
//!
//! A fused operator counts as the one launch that a kernel for it is, whatever MLX makes of it today:
//! [`crate::plan::decode`] counts that.

use crate::ir::{Op, TensorType};

/// Version of this table: plans chosen by another one may differ.
pub const COST_VERSION: u32 = 1;

/// Bytes that memory moves in the time of one launch, about 2 us at 500 GB/s: the unit is a byte.
pub const LAUNCH_BYTES: u64 = 1 << 20;

/// A movement that is a view moves nothing: it costs this much, so that of two forms with equal
/// launches the shorter one is taken.
pub const VIEW_BYTES: u64 = 1;

/// An island leaves MLX: the device is waited for, and PyTorch computes.
pub const ISLAND_LAUNCHES: u64 = 1_000;

/// Value of every symbol: one token, as in a decode step at batch 1.
const SYMBOL: i64 = 1;

/// Cost of an operator on operands and results of these types.
pub fn cost(op: &Op, operands: &[&TensorType], results: &[TensorType]) -> u64 {
    let mut views = 0;
    let launches: u64 = match op {
        Op::Input(_) | Op::Parameter(_) | Op::Scalar(_) | Op::Project(_) => return 0,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => {
            return VIEW_BYTES;
        }
        // One launch by `addmm`, if it is not capped. Dearer than the plain product of a transposed
        // operand, so that products that are no attention keep their name.
        Op::AttentionScores(scores) => {
            views = 2;
            1 + 3 * u64::from(scores.soft_cap.is_some())
        }
        Op::Sort { .. } | Op::Topk { .. } => 2,
        Op::Island { .. } => ISLAND_LAUNCHES,
        _ => 1,
    };
    let written = results.iter().map(bytes).fold(0, u64::saturating_add);
    let read = match op {
        // Reads the rows that it gathers.
        Op::Take { .. } | Op::TakeAlongAxis { .. } => written,
        _ => operands
            .iter()
            .map(|operand| bytes(operand))
            .fold(0, u64::saturating_add),
    };
    (launches * LAUNCH_BYTES + views * VIEW_BYTES)
        .saturating_add(read)
        .saturating_add(written)
}

/// Bytes of a tensor at one token.
fn bytes(of: &TensorType) -> u64 {
    of.num_bytes(SYMBOL)
}
