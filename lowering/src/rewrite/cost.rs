// SPDX-License-Identifier: Apache-2.0
//! What an operator costs, in launches of a kernel.

use crate::ir::Op;

/// One kernel launch. Movements that are views cost 1, so that of two forms with equal launches the
/// shorter one is taken.
pub const LAUNCH: u64 = 1_000;

/// Cost of an operator on Metal, where each is one launch unless it only renames elements.
pub fn cost(op: &Op) -> u64 {
    match op {
        Op::Input(_) | Op::Parameter(_) | Op::Scalar(_) | Op::Project(_) => 0,
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => 1,
        // One launch by `addmm`, if it is not capped. Dearer than the plain product of a transposed
        // operand, so that products that are no attention keep their name.
        Op::AttentionScores(scores) => {
            LAUNCH + 2 + 3 * LAUNCH * u64::from(scores.soft_cap.is_some())
        }
        Op::Sort { .. } | Op::Topk { .. } => 2 * LAUNCH,
        // Leaves the process's device.
        Op::Island { .. } => 1_000 * LAUNCH,
        _ => LAUNCH,
    }
}
