// SPDX-License-Identifier: Apache-2.0
//! Which tokens of a step belong to which request. Checked here, because MLX's gather and scatter
//! check no index and a wrong one reads or writes foreign memory.

use crate::runtime::error::{Error, Result};

/// vLLM's attention metadata of one KV-cache group, on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Block ids of each request, row-major `[num_reqs, max_blocks]`; unused entries are anything.
    pub block_table: Vec<i32>,
    /// Columns of `block_table`.
    pub max_blocks: usize,
    /// Where each token's key and value go, -1 for nowhere; `[num_tokens]` or shorter.
    pub slot_mapping: Vec<i64>,
    /// First token of each request, then the end: `[num_reqs + 1]`.
    pub query_start_loc: Vec<i32>,
    /// Tokens of each request so far, the step's included: `[num_reqs]`.
    pub seq_lens: Vec<i32>,
    /// Tokens that are not padding.
    pub num_actual_tokens: usize,
    /// Whether the tokens of a request see only those before them and themselves: `[num_reqs]`.
    pub causal: Vec<bool>,
    /// `(request, first, last)`: positions of an image or such, whose tokens all see each other.
    pub spans: Vec<(usize, usize, usize)>,
}

/// Size of a paged cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Blocks that requests may use.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

impl Pages {
    /// Slots that requests may use. The next one is the first of the dump block.
    pub fn num_slots(self) -> usize {
        self.num_blocks * self.block_size
    }
}

fn wrong(field: &'static str, reason: String) -> Error {
    Error::Metadata { field, reason }
}

impl Metadata {
    /// Number of requests.
    pub fn num_reqs(&self) -> usize {
        self.seq_lens.len()
    }

    /// Tokens of a request in this step, as a range of rows.
    pub fn rows(&self, request: usize) -> std::ops::Range<usize> {
        self.query_start_loc[request] as usize..self.query_start_loc[request + 1] as usize
    }

    /// Checks that the requests tile the step's tokens. Must pass before anything else is asked.
    ///
    /// # Errors
    /// Names the field and the request.
    pub fn check_queries(&self, num_tokens: usize) -> Result<()> {
        let starts = &self.query_start_loc;
        if starts.len() != self.num_reqs() + 1 {
            let reason = format!("{} entries for {} requests", starts.len(), self.num_reqs());
            return Err(wrong("query_start_loc", reason));
        }
        if self.num_actual_tokens > num_tokens {
            let reason = format!("{} of {num_tokens} tokens", self.num_actual_tokens);
            return Err(wrong("num_actual_tokens", reason));
        }
        if starts[0] != 0 || starts.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(wrong(
                "query_start_loc",
                format!("{starts:?} does not rise from 0"),
            ));
        }
        if starts[self.num_reqs()] as usize > self.num_actual_tokens {
            let reason = format!(
                "ends at {} of {} tokens",
                starts[self.num_reqs()],
                self.num_actual_tokens
            );
            return Err(wrong("query_start_loc", reason));
        }
        if self.causal.len() != self.num_reqs() {
            let reason = format!(
                "{} entries for {} requests",
                self.causal.len(),
                self.num_reqs()
            );
            return Err(wrong("causal", reason));
        }
        for (request, first, last) in &self.spans {
            let inside = self
                .seq_lens
                .get(*request)
                .is_some_and(|length| (*last as i64) < *length as i64);
            if !inside || first > last {
                let reason = format!("{first} to {last} of request {request}");
                return Err(wrong("spans", reason));
            }
        }
        for (request, length) in self.seq_lens.iter().enumerate() {
            let rows = self.rows(request).len();
            if (*length as i64) < rows as i64 {
                let reason = format!("request {request} has {length} tokens and computes {rows}");
                return Err(wrong("seq_lens", reason));
            }
        }
        Ok(())
    }

    /// Checks that every slot and block lies in the cache. [`Metadata::check_queries`] passed before.
    ///
    /// # Errors
    /// Names the field, the request or token, and the bound.
    pub fn check_pages(&self, pages: Pages) -> Result<()> {
        let Pages {
            num_blocks,
            block_size,
        } = pages;
        if self.slot_mapping.len() < self.num_actual_tokens {
            let reason = format!(
                "{} entries for {} tokens",
                self.slot_mapping.len(),
                self.num_actual_tokens
            );
            return Err(wrong("slot_mapping", reason));
        }
        let slots = &self.slot_mapping[..self.num_actual_tokens];
        for (token, slot) in slots.iter().enumerate() {
            if *slot < -1 || *slot >= pages.num_slots() as i64 {
                let reason = format!(
                    "token {token} has slot {slot}, and the cache has {} slots",
                    pages.num_slots()
                );
                return Err(wrong("slot_mapping", reason));
            }
        }
        if self.block_table.len() != self.num_reqs() * self.max_blocks {
            let reason = format!(
                "{} entries for {} requests of {} blocks",
                self.block_table.len(),
                self.num_reqs(),
                self.max_blocks
            );
            return Err(wrong("block_table", reason));
        }
        for (request, length) in self.seq_lens.iter().enumerate() {
            if self.rows(request).is_empty() {
                continue;
            }
            let used = (*length as usize).div_ceil(block_size);
            if used > self.max_blocks {
                let reason = format!(
                    "request {request} has {length} tokens, and its {} blocks hold {}",
                    self.max_blocks,
                    self.max_blocks * block_size
                );
                return Err(wrong("seq_lens", reason));
            }
            let blocks = &self.block_table[request * self.max_blocks..][..used];
            if let Some(block) = blocks
                .iter()
                .find(|id| **id < 0 || **id as usize >= num_blocks)
            {
                let reason =
                    format!("request {request} has block {block}, and the cache has {num_blocks}");
                return Err(wrong("block_table", reason));
            }
        }
        Ok(())
    }

    /// Row of the cache that holds a request's token at that position.
    pub fn slot(&self, request: usize, position: usize, block_size: usize) -> i32 {
        let block = self.block_table[request * self.max_blocks + position / block_size];
        block * block_size as i32 + (position % block_size) as i32
    }

    /// Row of the cache that each of `num_tokens` tokens is written to; the dump slot for padding.
    pub fn write_slots(&self, num_tokens: usize, pages: Pages) -> Vec<i32> {
        let dump = pages.num_slots() as i32;
        (0..num_tokens)
            .map(|token| match self.slot_mapping.get(token) {
                Some(slot) if token < self.num_actual_tokens && *slot >= 0 => *slot as i32,
                _ => dump,
            })
            .collect()
    }
}
