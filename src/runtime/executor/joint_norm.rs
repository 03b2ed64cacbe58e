// SPDX-License-Identifier: Apache-2.0
//! Queries and keys that are normalised by head before they are rotated (vLLM `Qwen3Attention.q_norm`,
//! `k_norm`). They are rotated as one array, so they are normalised as one, too:
//!
//! ```text
//! rope(rms_norm(q, w_q), rms_norm(k, w_k)) = rope(rms_norm([q, k]) * [w_q, .., w_k, ..])
//! ```
//! The roundings are the same: `mx.fast.rms_norm` rounds before it multiplies with a weight of the
//! operand's dtype.

use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, Mlx, dtype};
use lowering::ir::{Op, TensorType};
use lowering::plan::{Instruction, Region};

/// Two norms of one call that are computed with the rotation that alone reads them.
pub struct JointNorm {
    /// Positions of the rotation and of the norms of its operands among the region's instructions.
    pub rope: usize,
    pub norms: [usize; 2],
    pub eps: f64,
    /// A row for each head of both, `[heads + kv_heads, d]`.
    pub weight: Array,
}

/// The norms of a region's call with such parameters that may be joined.
pub fn find<'a>(
    mlx: &Mlx,
    region: &Region,
    parameter: impl Fn(u32) -> Option<&'a Array>,
) -> Result<Vec<JointNorm>> {
    let mut found = Vec::new();
    for (position, rope) in region.instructions.iter().enumerate() {
        let (Op::Rope { .. }, [_, _, q, k]) = (&rope.op, rope.inputs.as_slice()) else {
            continue;
        };
        let (Some(query), Some(key)) = (norm_of(region, *q), norm_of(region, *k)) else {
            continue;
        };
        let norms = [query, key].map(|position| &region.instructions[position]);
        let weights = norms.map(|norm| parameter(norm.inputs[1].checked_sub(region.num_inputs)?));
        let [Some(query_weight), Some(key_weight)] = weights else {
            continue;
        };
        let (Some(eps), [Some(heads), Some(kv_heads)]) = (eps(norms), norms.map(heads)) else {
            continue;
        };
        let same = |weight: &Array, of: &TensorType| dtype(weight) == Some(of.dtype);
        if !same(query_weight, &norms[0].types[0]) || !same(key_weight, &norms[1].types[0]) {
            continue;
        }
        let size = query_weight.size() as i32;
        let rows = [
            mlx.broadcast_to(query_weight, &[heads, size])?,
            mlx.broadcast_to(key_weight, &[kv_heads, size])?,
        ];
        found.push(JointNorm {
            rope: position,
            norms: [query, key],
            eps,
            weight: mlx.concatenate(&[&rows[0], &rows[1]], 0)?,
        });
    }
    Ok(found)
}

/// Where a register is written by a norm with a weight, and read once.
fn norm_of(region: &Region, register: u32) -> Option<usize> {
    let position = (region.instructions.iter())
        .position(|instruction| instruction.outputs.contains(&register))?;
    let norm = &region.instructions[position];
    let reads = (region.instructions.iter())
        .flat_map(|instruction| &instruction.inputs)
        .chain(&region.outputs)
        .filter(|read| **read == register)
        .count();
    let joinable = matches!(norm.op, Op::RmsNorm { .. }) && norm.kernel.is_none();
    (joinable && norm.inputs.len() == 2 && reads == 1).then_some(position)
}

/// The eps of both, where operands are `[.., heads, d]` with one `d` and one dtype.
fn eps([query, key]: [&Instruction; 2]) -> Option<f64> {
    let (Op::RmsNorm { eps }, Op::RmsNorm { eps: other }) = (&query.op, &key.op) else {
        return None;
    };
    let (query, key) = (query.types.first()?, key.types.first()?);
    let same = query.dtype == key.dtype && query.rank() == key.rank() && query.rank() > 2;
    (same && query.last() == key.last() && eps == other).then_some(eps.get())
}

fn heads(norm: &Instruction) -> Option<i32> {
    let shape = &norm.types.first()?.shape;
    let heads = shape.get(shape.len().checked_sub(2)?)?.fixed()?;
    i32::try_from(heads).ok()
}
