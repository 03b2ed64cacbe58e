// SPDX-License-Identifier: Apache-2.0
//! Masks of a batch of pieces.

use super::pieces::{Kind, Piece};
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, host_array};
use lowering::ir::DType;

/// How a batch is masked.
pub enum Mask {
    /// Every query sees every key.
    None,
    /// Query `i` of `l` sees keys `0..=s - l + i` of `s`.
    Causal,
    /// Fused: bool `[b, 1, l, s]`, true is seen. Else: float32 `[b, 1, 1 | heads, l, s]`, added.
    Array(Array),
}

/// The mask of pieces padded to `rows` queries and `keys` keys. With `always` it is an array even
/// where one could do without.
pub fn mask(kind: &Kind, pieces: &[Piece], rows: usize, keys: usize, always: bool) -> Result<Mask> {
    let padded = pieces
        .iter()
        .any(|piece| piece.keys.len() != keys || piece.rows.len() != rows);
    if kind.alibi_slopes.is_none() && !padded && !always {
        if pieces.iter().all(|piece| sees_all(kind, piece)) {
            return Ok(Mask::None);
        }
        let plain = pieces.iter().all(|piece| is_plainly_causal(kind, piece));
        if plain && kind.fused {
            return Ok(Mask::Causal);
        }
    }
    let array = match &kind.alibi_slopes {
        None if kind.fused => visible(kind, pieces, rows, keys)?,
        None => additive(kind, pieces, rows, keys, &[0.0])?,
        Some(slopes) => {
            let slopes: Vec<f32> = slopes.iter().map(|slope| slope.get() as f32).collect();
            additive(kind, pieces, rows, keys, &slopes)?
        }
    };
    Ok(Mask::Array(array))
}

fn sees_all(kind: &Kind, piece: &Piece) -> bool {
    let last = piece.position + piece.rows.len() - 1;
    piece
        .keys
        .clone()
        .next()
        .zip(piece.keys.clone().next_back())
        .is_none_or(|(low, high)| {
            [piece.position, last]
                .into_iter()
                .all(|query| piece.sees(kind, query, low) && piece.sees(kind, query, high))
        })
}

/// No window cuts the keys of any row, and no span widens them.
fn is_plainly_causal(kind: &Kind, piece: &Piece) -> bool {
    piece.causal
        && piece.spans.is_empty()
        && piece.keys.start == 0
        && kind
            .sliding_window
            .is_none_or(|window| piece.position + piece.rows.len() <= window)
}

/// Calls `f` with each element in row-major order: its query's position, its key's position, and
/// whether the one sees the other; padding is never seen. A padding query copies the last real one, so that no row
/// is without keys.
fn for_each(
    kind: &Kind,
    pieces: &[Piece],
    rows: usize,
    keys: usize,
    mut f: impl FnMut(usize, usize, bool),
) {
    for piece in pieces {
        for row in 0..rows {
            let query = piece.position + row.min(piece.rows.len() - 1);
            for key in piece.keys.start..piece.keys.start + keys {
                f(
                    query,
                    key,
                    key < piece.keys.end && piece.sees(kind, query, key),
                );
            }
        }
    }
}

fn visible(kind: &Kind, pieces: &[Piece], rows: usize, keys: usize) -> Result<Array> {
    let mut bytes = Vec::with_capacity(pieces.len() * rows * keys);
    for_each(kind, pieces, rows, keys, |_, _, seen| {
        bytes.push(u8::from(seen))
    });
    let shape = [pieces.len() as i32, 1, rows as i32, keys as i32];
    Ok(host_array(&bytes, &shape, DType::Bool)?)
}

fn additive(
    kind: &Kind,
    pieces: &[Piece],
    rows: usize,
    keys: usize,
    slopes: &[f32],
) -> Result<Array> {
    let mut bytes = Vec::with_capacity(pieces.len() * slopes.len() * rows * keys * 4);
    for piece in pieces {
        for slope in slopes {
            for_each(
                kind,
                std::slice::from_ref(piece),
                rows,
                keys,
                |query, key, seen| {
                    let distance = match kind.alibi_sqrt {
                        true => -(query.abs_diff(key) as f32).sqrt(),
                        false => key as f32 - query as f32,
                    };
                    let bias = if seen {
                        slope * distance
                    } else {
                        f32::NEG_INFINITY
                    };
                    bytes.extend_from_slice(&bias.to_ne_bytes());
                },
            );
        }
    }
    let [pieces, heads] = [pieces.len() as i32, slopes.len() as i32];
    let shape = [pieces, 1, heads, rows as i32, keys as i32];
    Ok(host_array(&bytes, &shape, DType::Float32)?)
}
