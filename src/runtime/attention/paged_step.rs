// SPDX-License-Identifier: Apache-2.0
//! A step as the kernels that read the paged cache in place take it.

use super::Metadata;
use crate::runtime::error::Result;
use crate::runtime::mlx::{Array, int_array};
use lowering::plan::PromptSizes;

/// A step, as a kernel reads it.
pub struct Paged {
    /// Block ids `[requests, max_blocks]`, their columns padded to a power of two so that
    /// consecutive steps have one shape.
    pub block_table: Array,
    /// `[requests + 1]`
    pub query_start: Array,
    /// `[requests]`
    pub seq_lens: Array,
    pub requests: usize,
    pub max_blocks: usize,
    pub block_size: usize,
    /// Where the kernel of prompts runs, what it works through: `[tiles, 2]`. Without, every request
    /// decodes a token.
    pub tiles: Option<Array>,
    /// Most rows of a request.
    pub rows: usize,
}

/// Queries of a tile: rows and heads of a KV head's group, side by side.
const TILE: usize = 32;

impl Paged {
    /// The step, if the kernel that decodes takes it: requests that decode a token each, which sees
    /// those before.
    pub fn new(metadata: &Metadata, block_size: usize) -> Result<Option<Paged>> {
        match is_causal(metadata) && most_rows(metadata) <= 1 {
            true => Ok(Some(Paged::of(metadata, block_size)?)),
            false => Ok(None),
        }
    }

    /// The step of `num_tokens` tokens, padding included, if the kernel of prompts takes it and moves
    /// less than the reference: causal requests, some of more than one token. The choice is one for the
    /// whole step.
    pub fn prompts(
        metadata: &Metadata,
        block_size: usize,
        num_tokens: usize,
        sizes: &PromptSizes,
    ) -> Result<Option<Paged>> {
        let requests = metadata.num_reqs();
        let rows = |request: usize| metadata.rows(request).len();
        let costs = (0..requests).map(|of| (rows(of) as u64, metadata.seq_lens[of].max(0) as u64));
        if !is_causal(metadata) || most_rows(metadata) <= 1 || !sizes.prefers_kernel(costs) {
            return Ok(None);
        }
        let of_request = |request: usize| {
            let queries = (rows(request) * sizes.group()).div_ceil(TILE);
            (0..queries).map(move |tile| [request as i32, (tile * TILE) as i32])
        };
        let mut tiles: Vec<[i32; 2]> = (0..requests).flat_map(of_request).collect();
        if (metadata.query_start_loc[requests] as usize) < num_tokens {
            tiles.push([requests as i32, 0]);
        }
        let shape = [tiles.len() as i32, 2];
        let mut step = Paged::of(metadata, block_size)?;
        step.tiles = Some(int_array(tiles.as_flattened(), &shape)?);
        Ok(Some(step))
    }

    fn of(metadata: &Metadata, block_size: usize) -> Result<Paged> {
        let requests = metadata.num_reqs();
        let used: Vec<usize> = (0..requests)
            .map(|request| match metadata.rows(request).len() {
                0 => 0,
                _ => (metadata.seq_lens[request] as usize).div_ceil(block_size),
            })
            .collect();
        let max_blocks = used.iter().copied().max().unwrap_or(0).next_power_of_two();
        let mut table = vec![0; requests * max_blocks];
        let rows = table.chunks_mut(max_blocks).zip(&used).enumerate();
        for (request, (row, used)) in rows {
            let blocks = &metadata.block_table[request * metadata.max_blocks..];
            row[..*used].copy_from_slice(&blocks[..*used]);
        }
        Ok(Paged {
            block_table: int_array(&table, &[requests as i32, max_blocks as i32])?,
            query_start: int_array(&metadata.query_start_loc, &[requests as i32 + 1])?,
            seq_lens: int_array(&metadata.seq_lens, &[requests as i32])?,
            requests,
            max_blocks,
            block_size,
            tiles: None,
            rows: most_rows(metadata),
        })
    }

    /// The arrays, which differ between steps of one shape.
    pub fn arrays_mut(&mut self) -> impl Iterator<Item = &mut Array> {
        [
            &mut self.block_table,
            &mut self.query_start,
            &mut self.seq_lens,
        ]
        .into_iter()
        .chain(&mut self.tiles)
    }

    /// How many tiles there are.
    pub fn num_tiles(&self) -> i32 {
        let tiles = self.tiles.as_ref();
        tiles.map_or(0, |tiles| tiles.shape()[0])
    }

    /// What decides the launches besides the layer.
    pub fn shape(&self) -> [i32; 4] {
        let [requests, max_blocks, block_size] =
            [self.requests, self.max_blocks, self.block_size].map(|size| size as i32);
        [requests, max_blocks, block_size, self.num_tiles()]
    }
}

fn most_rows(metadata: &Metadata) -> usize {
    let rows = (0..metadata.num_reqs()).map(|request| metadata.rows(request).len());
    rows.max().unwrap_or(0)
}

/// Whether there are requests, and every token sees those before it alone.
fn is_causal(metadata: &Metadata) -> bool {
    let causal = metadata.causal.iter().all(|causal| *causal);
    metadata.num_reqs() > 0 && causal && metadata.spans.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::{cpu, values};
    use lowering::plan::{AttentionLayer, Reference};

    /// Requests of such rows and lengths; their blocks of 16 count up.
    fn metadata(requests: &[(i32, i32)]) -> Metadata {
        let blocks = requests.iter().map(|(_, length)| (length + 15) / 16);
        let max_blocks = blocks.max().unwrap_or(0) as usize;
        let mut starts = vec![0];
        for (rows, _) in requests {
            starts.push(starts[starts.len() - 1] + rows);
        }
        Metadata {
            block_table: (0..(requests.len() * max_blocks) as i32).collect(),
            max_blocks,
            num_actual_tokens: starts[requests.len()] as usize,
            query_start_loc: starts,
            seq_lens: requests.iter().map(|(_, length)| *length).collect(),
            causal: vec![true; requests.len()],
            ..Metadata::default()
        }
    }

    fn sizes(reference: Reference) -> PromptSizes {
        PromptSizes::new(&AttentionLayer::decoder("attn", [12, 4], 64), 2, reference)
    }

    fn prompts(requests: &[(i32, i32)], num_tokens: usize) -> Option<Paged> {
        let sizes = sizes(Reference::Products);
        Paged::prompts(&metadata(requests), 16, num_tokens, &sizes).unwrap()
    }

    #[test]
    fn block_tables_are_padded_to_shapes_that_stay() {
        let step = |length: i32| Paged::new(&metadata(&[(1, length), (1, 5)]), 16).unwrap();
        let shape = |length: i32| step(length).unwrap().shape();
        assert_eq!(shape(65), [2, 8, 16, 0]);
        assert_eq!(shape(65), shape(128));
        assert_ne!(shape(128), shape(129));
        // Three blocks and one of padding; a block, and padding.
        let table = values(&cpu(), &step(33).unwrap().block_table);
        assert_eq!(table, [0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_tile_is_of_one_request() {
        // Three heads a group: 21 rows are 63 queries. A request without rows has none.
        let mut step = prompts(&[(21, 21), (0, 7), (1, 40), (11, 90)], 33).unwrap();
        let tiles = values(&cpu(), step.tiles.as_ref().unwrap());
        let expected = [0.0, 0.0, 0.0, 32.0, 2.0, 0.0, 3.0, 0.0, 3.0, 32.0];
        assert_eq!(tiles, expected);
        assert_eq!((step.num_tiles(), step.rows), (5, 21));
        assert_eq!(step.arrays_mut().count(), 4);
        // Padding is a tile behind the last request.
        let padded = prompts(&[(21, 21), (0, 7), (1, 40), (11, 90)], 40).unwrap();
        let tiles = values(&cpu(), padded.tiles.as_ref().unwrap());
        assert_eq!(tiles[10..], [4.0, 0.0]);
    }

    #[test]
    fn what_a_kernel_does_not_take_or_does_worse_is_left() {
        assert!(Paged::new(&metadata(&[(2, 9)]), 16).unwrap().is_none());
        assert!(prompts(&[(1, 9), (1, 4)], 2).is_none());
        assert!(prompts(&[], 2).is_none());
        let mut seeing = metadata(&[(1, 9), (1, 4)]);
        seeing.causal[1] = false;
        assert!(Paged::new(&seeing, 16).unwrap().is_none());
        let mut spanned = metadata(&[(9, 9)]);
        spanned.spans.push((0, 2, 4));
        let products = sizes(Reference::Products);
        let of = |metadata: &Metadata, sizes: &PromptSizes| {
            Paged::prompts(metadata, 16, 600, sizes).unwrap()
        };
        assert!(of(&spanned, &products).is_none());
        let long = metadata(&[(600, 600)]);
        assert!(of(&long, &products).is_some());
        // MLX's own attention rereads less.
        assert!(of(&long, &sizes(Reference::Fused)).is_none());
    }
}
