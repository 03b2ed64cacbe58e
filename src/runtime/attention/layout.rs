// SPDX-License-Identifier: Apache-2.0
//! A step's attention as padded batches: index arrays and masks that all layers of a kind share.

use super::Metadata;
use super::mask::{Mask, mask};
use super::paged_step::Paged;
use super::pieces::{Kind, Piece, Source, groups, pieces};
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, int_array};

/// Pieces of similar size, padded to one.
pub struct Batch {
    pub size: i32,
    /// Queries of a piece.
    pub rows: i32,
    /// Keys of a piece.
    pub keys: i32,
    /// Rows of the step `[size * rows]`; `None` is all of them in order.
    pub query_rows: Option<Array>,
    /// Rows of the cache, or of the step, `[size, keys]`.
    pub key_rows: Array,
    pub mask: Mask,
}

/// Rows of a request that count as decoding: one token, or a few that are verified.
const MAX_DECODE_ROWS: usize = 8;

/// Keys that a batch of decodes is padded to, so that consecutive steps have the same shapes:
/// multiples of 64, from 512 keys on of an eighth of the power of two below.
fn padded_keys(keys: usize) -> usize {
    keys.next_multiple_of(64.max((keys + 1).next_power_of_two() / 16))
}

/// All batches of a step for layers of one kind.
pub struct Layout {
    pub batches: Vec<Batch>,
    /// For each token, its row among the batches' results, one after the other; `None` is in order.
    pub result_rows: Option<Array>,
    /// Where a kernel reads the cache instead; there are no batches then.
    pub paged: Option<Paged>,
}

impl Layout {
    /// Lays out a checked step of `num_tokens` tokens, padding included.
    pub fn new(metadata: &Metadata, kind: &Kind, num_tokens: usize) -> Result<Layout> {
        if let Some(paged) = paged(metadata, kind, num_tokens)? {
            return Ok(Layout {
                batches: Vec::new(),
                result_rows: None,
                paged: Some(paged),
            });
        }
        let groups = groups(pieces(metadata, kind), kind.max_scores);
        // Padding tokens read the first result: its value is never used.
        let mut result_rows = vec![0i32; num_tokens];
        let mut batches = Vec::with_capacity(groups.len());
        let mut next_row = 0;
        for group in &groups {
            let rows = group
                .iter()
                .map(|piece| piece.rows.len())
                .max()
                .unwrap_or(0);
            let keys = group
                .iter()
                .map(|piece| piece.keys.len())
                .max()
                .unwrap_or(0);
            let decodes = kind.source != Source::Step && rows <= MAX_DECODE_ROWS;
            let keys = if decodes { padded_keys(keys) } else { keys };
            let mut query_rows = Vec::with_capacity(group.len() * rows);
            for piece in group {
                for row in 0..rows {
                    if row < piece.rows.len() {
                        result_rows[piece.rows.start + row] = next_row;
                    }
                    query_rows.push((piece.rows.start + row.min(piece.rows.len() - 1)) as i32);
                    next_row += 1;
                }
            }
            batches.push(Batch {
                size: group.len() as i32,
                rows: rows as i32,
                keys: keys as i32,
                query_rows: indices(query_rows, num_tokens)?,
                key_rows: key_rows(metadata, kind, group, keys)?,
                mask: mask(kind, group, rows, keys, decodes)?,
            });
        }
        Ok(Layout {
            batches,
            result_rows: indices(result_rows, next_row as usize)?,
            paged: None,
        })
    }

    /// Whether every request decodes.
    pub fn is_decode(&self) -> bool {
        let mut batches = self.batches.iter();
        let paged = self.paged.as_ref();
        batches.all(|batch| batch.rows <= MAX_DECODE_ROWS as i32)
            && paged.is_none_or(|paged| paged.rows <= MAX_DECODE_ROWS)
    }

    /// The arrays, which differ between steps of one shape.
    pub fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        let batches = self.batches.iter_mut().flat_map(|batch| {
            let mask = match &mut batch.mask {
                Mask::Array(mask) => Some(mask),
                Mask::None | Mask::Causal => None,
            };
            let rows = batch.query_rows.iter_mut();
            rows.chain([&mut batch.key_rows]).chain(mask)
        });
        let paged = self.paged.iter_mut().flat_map(Paged::arrays_mut);
        batches.chain(&mut self.result_rows).chain(paged)
    }

    /// All that decides the graph of an attention but the shapes and dtypes of the arrays.
    pub fn shape(&self) -> impl Iterator<Item = i32> {
        let batches = self.batches.iter().flat_map(|batch| {
            let mask = match batch.mask {
                Mask::None => 0,
                Mask::Causal => 1,
                Mask::Array(_) => 2,
            };
            let is_gathered = i32::from(batch.query_rows.is_some());
            [batch.size, batch.rows, batch.keys, is_gathered, mask]
        });
        let is_gathered = i32::from(self.result_rows.is_some());
        let paged = self.paged.iter().flat_map(Paged::shape);
        batches
            .chain([is_gathered, self.batches.len() as i32])
            .chain(paged)
    }
}

/// The step as a kernel reads it, where one does.
fn paged(metadata: &Metadata, kind: &Kind, num_tokens: usize) -> Result<Option<Paged>> {
    let Source::Cache { block_size } = kind.source else {
        return Ok(None);
    };
    if kind.kernel
        && let Some(paged) = Paged::new(metadata, block_size)?
    {
        return Ok(Some(paged));
    }
    match &kind.prefill {
        Some(sizes) => Paged::prompts(metadata, block_size, num_tokens, sizes),
        None => Ok(None),
    }
}

/// An index array, or `None` where it would copy all `length` rows in order.
fn indices(rows: Vec<i32>, length: usize) -> Result<Option<Array>> {
    let in_order = rows
        .iter()
        .enumerate()
        .all(|(index, row)| index as i32 == *row);
    if in_order && rows.len() == length {
        return Ok(None);
    }
    Ok(Some(int_array(&rows, &[rows.len() as i32])?))
}

/// Padding repeats a piece's last key: a foreign row could hold a NaN, which no mask stops.
fn key_rows(metadata: &Metadata, kind: &Kind, group: &[Piece], keys: usize) -> Result<Array> {
    let mut rows = Vec::with_capacity(group.len() * keys);
    for piece in group {
        for column in 0..keys {
            let key = (piece.keys.start + column).min(piece.keys.end - 1);
            rows.push(match kind.source {
                Source::Cache { block_size } => metadata.slot(piece.request, key, block_size),
                Source::Step => (metadata.rows(piece.request).start + key) as i32,
            });
        }
    }
    Ok(int_array(&rows, &[group.len() as i32, keys as i32])?)
}
