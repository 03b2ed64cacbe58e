// SPDX-License-Identifier: Apache-2.0
//! Rotary embedding from given rows of cosines and sines.
//!
//! With the two halves of each rotated pair on an axis of their own, a rotation is
//! `x * cos + flip(x) * [-sin, sin]`: six operations, and the widened cosines and sines are shared
//! by all layers of a run.

use super::instruction::Outputs;
use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, Mlx, dtype};
use lowering::ir::RopeStyle;

/// Cosines and sines ready to multiply with.
pub struct RopeTable {
    style: RopeStyle,
    /// NeoX `[t, 1, 1, r/2]`, GPT-J `[t, 1, r/2, 1]`.
    cos: Array,
    /// `[-sin, sin]` on the axis of the pair: NeoX `[t, 1, 2, r/2]`, GPT-J `[t, 1, r/2, 2]`.
    sin: Array,
}

/// Which values a table was made from.
pub type TableKey = (u64, u64, RopeStyle);

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
        RopeStyle::Neox => 2,
        RopeStyle::Gptj => 3,
    }
}

/// Widens `cos [t, r/2]` and `sin [t, r/2]`.
pub fn table(mlx: &Mlx, style: RopeStyle, cos: &Array, sin: &Array) -> Result<RopeTable> {
    let pair = pair_axis(style);
    let &[tokens, half] = cos.shape() else {
        return Err(Error::Unsupported("cosines of rank 2 expected".into()));
    };
    let wide = match style {
        RopeStyle::Neox => [tokens, 1, 1, half],
        RopeStyle::Gptj => [tokens, 1, half, 1],
    };
    let cos = mlx.reshape(cos, &wide)?;
    let sin = mlx.reshape(sin, &wide)?;
    let sin = mlx.concatenate(&[&mlx.negative(&sin)?, &sin], pair)?;
    Ok(RopeTable { style, cos, sin })
}

/// Rotates the first `rotary_dim` elements of each head of `x [t, heads, d]`; the rest passes.
fn rotate(mlx: &Mlx, rotary_dim: i64, x: &Array, table: &RopeTable) -> Result<Array> {
    let &[tokens, heads, size] = x.shape() else {
        return Err(Error::Unsupported("rope takes rank 3".into()));
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
        RopeStyle::Neox => [tokens, heads, 2, size / 2],
        RopeStyle::Gptj => [tokens, heads, size / 2, 2],
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

/// Rotates every operand.
pub fn rotate_all(
    mlx: &Mlx,
    rotary_dim: i64,
    operands: &[&Array],
    table: &RopeTable,
) -> Result<Outputs> {
    match operands {
        [x] => Ok(Outputs::One(rotate(mlx, rotary_dim, x, table)?)),
        [q, k] => Ok(Outputs::Two(
            rotate(mlx, rotary_dim, q, table)?,
            rotate(mlx, rotary_dim, k, table)?,
        )),
        many => {
            let rotated = many.iter().map(|x| rotate(mlx, rotary_dim, x, table));
            Ok(Outputs::Many(rotated.collect::<Result<_>>()?))
        }
    }
}
