// SPDX-License-Identifier: Apache-2.0
//! Rotary embedding from given rows of cosines and sines.
//!
//! With the two halves of each rotated pair on an axis of their own, a rotation is
//! `x * cos + flip(x) * [-sin, sin]`. Queries and keys are rotated as one array, and the widened
//! cosines and sines are shared by all layers of a run.

use super::instruction::Outputs;
use super::joint_norm::JointNorm;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, dtype};
use lowering::ir::RopeStyle;

/// Cosines and sines ready to multiply with.
pub struct RopeTable {
    style: RopeStyle,
    /// As wide as the pairs: GPT-J `[t, heads, r/2, 2]`, the others `[t, heads, 2, r/2]`.
    cos: Array,
    /// As `cos`, with `-sin` for the first of each pair.
    sin: Array,
}

/// Which values a table was made from, for how many heads and tokens.
pub type TableKey = (u64, u64, RopeStyle, i32, i32);

/// The tables of one run. A model has one or two.
#[derive(Default)]
pub struct RopeTables(Vec<(TableKey, RopeTable)>);

impl RopeTables {
    pub fn get(&self, key: TableKey) -> Option<&RopeTable> {
        self.0
            .iter()
            .find(|(other, _)| *other == key)
            .map(|(_, table)| table)
    }

    pub fn insert(&mut self, key: TableKey, table: RopeTable) {
        self.0.push((key, table));
    }
}

/// The axis of the pair among `[t, heads, ..]`.
fn pair_axis(style: RopeStyle) -> i32 {
    match style {
        RopeStyle::Neox | RopeStyle::RotateHalf => 2,
        RopeStyle::Gptj | RopeStyle::RotatePairs => 3,
    }
}

/// Heads of the array that the operands are rotated as, which a table is made for; 1, for any
/// number, where they are rotated one by one.
pub fn joint_heads(operands: &[&Array]) -> i32 {
    match operands.iter().map(|x| x.shape()).collect::<Vec<_>>()[..] {
        [[.., heads, _]] => *heads,
        [[.., heads, size], [.., kv_heads, other]] if size == other => heads + kv_heads,
        _ => 1,
    }
}

/// Tokens of all batches that an operand `[.., t, heads, d]` holds.
pub fn tokens(operands: &[&Array]) -> i32 {
    match operands.first().map(|x| x.shape()) {
        Some([outer @ .., _, _]) => outer.iter().product(),
        _ => 0,
    }
}

/// Widens cosines and sines, `[.., t, c]`, to the pairs of so many heads and to the batches of `x`.
pub fn table(
    mlx: &Mlx,
    style: RopeStyle,
    heads: i32,
    [cos, sin]: [&Array; 2],
    x: &Array,
) -> Result<RopeTable> {
    let pair = pair_axis(style);
    let ([.., columns], [outer @ .., _, _]) = (cos.shape(), x.shape()) else {
        return Err(Error::Unsupported("cosines of rank 2 expected".into()));
    };
    let (columns, tokens) = (*columns, outer.iter().product::<i32>());
    let batched = [outer, &[columns]].concat();
    let (cos, sin) = (
        &mlx.broadcast_to(cos, &batched)?,
        &mlx.broadcast_to(sin, &batched)?,
    );
    let wide = match style {
        RopeStyle::Neox => [tokens, 1, 1, columns],
        RopeStyle::Gptj => [tokens, 1, columns, 1],
        RopeStyle::RotateHalf => [tokens, 1, 2, columns / 2],
        RopeStyle::RotatePairs => [tokens, 1, columns / 2, 2],
    };
    let cos = mlx.reshape(cos, &wide)?;
    let sin = mlx.reshape(sin, &wide)?;
    let sin = match style {
        RopeStyle::RotateHalf | RopeStyle::RotatePairs => {
            let first = mlx.slice(&sin, pair as usize, 0, 1, 1)?;
            let second = mlx.slice(&sin, pair as usize, 1, 2, 1)?;
            mlx.concatenate(&[&mlx.negative(&first)?, &second], pair)?
        }
        _ => mlx.concatenate(&[&mlx.negative(&sin)?, &sin], pair)?,
    };
    // Once here, and not by every multiplication.
    let whole = match style {
        RopeStyle::Neox => [tokens, heads, 2, columns],
        RopeStyle::Gptj => [tokens, heads, columns, 2],
        RopeStyle::RotateHalf => [tokens, heads, 2, columns / 2],
        RopeStyle::RotatePairs => [tokens, heads, columns / 2, 2],
    };
    let cos = mlx.broadcast_to(&cos, &whole)?;
    let sin = mlx.broadcast_to(&sin, &whole)?;
    Ok(RopeTable { style, cos, sin })
}

/// Rotates the first `rotary_dim` elements of each head of `x [.., t, heads, d]`; the rest passes.
fn rotate(mlx: &Mlx, rotary_dim: i64, x: &Array, table: &RopeTable) -> Result<Array> {
    let &[tokens, heads, size] = x.shape() else {
        let [outer @ .., heads, size] = x.shape() else {
            return Err(Error::Unsupported("rope takes rank 3 or more".into()));
        };
        let flat = mlx.reshape(x, &[outer.iter().product(), *heads, *size])?;
        let rotated = rotate(mlx, rotary_dim, &flat, table)?;
        return Ok(mlx.reshape(&rotated, x.shape())?);
    };
    let rotary = rotary_dim as i32;
    if rotary == size {
        return rotate_whole(mlx, [tokens, heads, size], x, table);
    }
    let rotated = mlx.slice(x, 2, 0, rotary, 1)?;
    let passed = mlx.slice(x, 2, rotary, size, 1)?;
    let rotated = rotate_whole(mlx, [tokens, heads, rotary], &rotated, table)?;
    Ok(mlx.concatenate(&[&rotated, &passed], 2)?)
}

fn rotate_whole(mlx: &Mlx, shape: [i32; 3], x: &Array, table: &RopeTable) -> Result<Array> {
    let [tokens, heads, size] = shape;
    let pairs = match table.style {
        RopeStyle::Neox | RopeStyle::RotateHalf => [tokens, heads, 2, size / 2],
        RopeStyle::Gptj | RopeStyle::RotatePairs => [tokens, heads, size / 2, 2],
    };
    let pair = pair_axis(table.style) as usize;
    let paired = mlx.reshape(x, &pairs)?;
    let flipped = mlx.slice(&paired, pair, 1, -3, -1)?;
    let rotated = mlx.add(
        &mlx.multiply(&paired, &table.cos)?,
        &mlx.multiply(&flipped, &table.sin)?,
    )?;
    let rotated = mlx.reshape(&rotated, &shape)?;
    // Cosines of a wider dtype promote the products.
    match dtype(x) {
        Some(dtype) => Ok(mlx.ensure(rotated, dtype)?),
        None => Ok(rotated),
    }
}

/// Rotates every operand `[.., t, heads, d]`; `norm` is that of queries and keys, to be taken before.
pub fn rotate_all(
    mlx: &Mlx,
    rotary_dim: i64,
    operands: &[&Array],
    norm: Option<&JointNorm>,
    table: &RopeTable,
) -> Result<Outputs> {
    let [q, k] = operands else {
        let rotated = operands.iter().map(|x| rotate(mlx, rotary_dim, x, table));
        return Ok(Outputs::Many(rotated.collect::<Result<_>>()?));
    };
    let (heads, kv_heads) = match (q.shape(), k.shape()) {
        ([.., heads, size], [.., kv_heads, other]) if size == other => (*heads, *kv_heads),
        _ => {
            let rotated = [
                rotate(mlx, rotary_dim, q, table)?,
                rotate(mlx, rotary_dim, k, table)?,
            ];
            return Ok(Outputs::Many(rotated.into()));
        }
    };
    let axis = q.ndim() - 2;
    let mut both = mlx.join_heads(q, k)?;
    if let Some(norm) = norm {
        both = mlx.multiply(&mlx.rms_norm(&both, None, norm.eps)?, &norm.weight)?;
    }
    let both = rotate(mlx, rotary_dim, &both, table)?;
    let queries = mlx.slice(&both, axis, 0, heads, 1)?;
    let keys = mlx.slice(&both, axis, heads, heads + kv_heads, 1)?;
    Ok(Outputs::Two(queries, keys))
}
