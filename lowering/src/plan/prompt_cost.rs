// SPDX-License-Identifier: Apache-2.0
//! Bytes that the attention of a prompt moves: by the kernel that reads the paged cache in place, and
//! by the reference, which gathers the cache's rows first. The cheaper one runs.
//!
//! A request computes `n` rows of queries, the last of `L` tokens. With `h` KV heads, `g` query heads
//! for each, keys and values of `d` and `v` elements, elements of `s` bytes and a window of `w`, let
//! `K = min(L, n + w - 1)` be the tokens that any row sees, `A = min(L - (n - 1) / 2, w)` those that a
//! row sees on average, and `R = h (d + v) s` the bytes of a token.
//!
//! - Kernel: `ceil(n g / 8) (A + 4) R`. A simdgroup reads what its eight queries see, rounded up to
//!   matrices of eight keys; neighbours that read the same keys are not counted as one.
//! - Gather and MLX's attention: `2 K R` to gather, then each head reads its keys and values once for
//!   each tile of its rows: `g ceil(n / 32) M R`, or `g n M R` for up to eight rows, with `M = A` where
//!   the mask is causal alone, and `K` and `h g n K` bytes of mask where there is a window.
//! - Gather and products (what MLX's attention does not compute, and on a CPU), in float32: `2 K R` to
//!   gather, `K R (1 + 4 / s)` to widen what is no float32, `ceil(n g / 64) K R 4 / s` to read keys and
//!   values tile by tile, and `4 h g n K` bytes of scores, six times: written, masked (read and
//!   written), their softmax (the same), read. A soft cap is four times more, and sinks too.
//!
//! What stays in a cache between two reads is not known here, and nothing was measured on Metal.

use super::AttentionLayer;
use serde::Serialize;
use std::collections::BTreeMap;

/// No layer counts for more, so that products of what a damaged document claims stay in 64 bits.
const MOST: u64 = 1 << 16;

/// How the reference computes a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// By MLX's own attention.
    Fused,
    /// By matrix products and a softmax in float32.
    Products,
}

/// What of a layer decides the bytes that its prompts move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PromptSizes {
    kv_heads: u64,
    group: u64,
    /// Elements of a key and a value of one head.
    width: u64,
    /// Bytes of an element.
    element: u64,
    window: Option<u64>,
    reference: Reference,
    /// How often scores are read or written.
    passes: u64,
}

impl PromptSizes {
    /// Of a layer whose cache holds elements of so many bytes.
    pub fn new(layer: &AttentionLayer, element: usize, reference: Reference) -> PromptSizes {
        let count = |number: i64| (number.max(0) as u64).min(MOST);
        let kv_heads = count(layer.num_kv_heads).max(1);
        let capped = layer.logits_soft_cap.is_some_and(|cap| cap.get() != 0.0);
        PromptSizes {
            kv_heads,
            group: (count(layer.num_heads) / kv_heads).max(1),
            width: count(layer.head_size) + count(layer.head_size_v),
            element: (element as u64).clamp(1, 8),
            window: layer
                .sliding_window
                .map(|window| (window.max(1) as u64).min(MOST * MOST)),
            reference,
            passes: 6 + 4 * u64::from(capped) + 4 * u64::from(layer.sinks.is_some()),
        }
    }

    /// Query heads of a KV head.
    pub fn group(&self) -> usize {
        self.group as usize
    }

    /// Bytes of a token: `R`.
    fn row(&self) -> f64 {
        (self.kv_heads * self.width * self.element) as f64
    }

    /// Tokens that any of the rows sees: `K`.
    fn seen_by_any(&self, rows: u64, length: u64) -> f64 {
        let window = self.window.unwrap_or(length);
        length.min(rows.saturating_add(window).saturating_sub(1)) as f64
    }

    /// Tokens that a row sees, on average: `A`.
    fn seen_by_one(&self, rows: u64, length: u64) -> f64 {
        let causal = length as f64 - rows.saturating_sub(1) as f64 / 2.0;
        self.window
            .map_or(causal, |window| causal.min(window as f64))
            .max(0.0)
    }

    /// Bytes that the kernel reads of the cache for a request of `length` tokens, the last `rows` of
    /// which are computed.
    pub fn paged(&self, rows: u64, length: u64) -> f64 {
        let simdgroups = rows.saturating_mul(self.group).div_ceil(8) as f64;
        match rows {
            0 => 0.0,
            _ => simdgroups * (self.seen_by_one(rows, length) + 4.0) * self.row(),
        }
    }

    /// Bytes that the reference gathers, reads and writes for the same.
    pub fn gathered(&self, rows: u64, length: u64) -> f64 {
        if rows == 0 {
            return 0.0;
        }
        let (group, element) = (self.group as f64, self.element as f64);
        let heads = self.kv_heads as f64 * group;
        let seen = self.seen_by_any(rows, length);
        let all = seen * self.row();
        let scores = heads * rows as f64 * seen;
        match self.reference {
            Reference::Fused => {
                let tiles = if rows <= 8 { rows } else { rows.div_ceil(32) } as f64;
                let (read, mask) = match self.window {
                    Some(_) => (seen, scores),
                    None => (self.seen_by_one(rows, length), 0.0),
                };
                2.0 * all + group * tiles * read * self.row() + mask
            }
            Reference::Products => {
                let widening = if self.element < 4 {
                    1.0 + 4.0 / element
                } else {
                    0.0
                };
                let tiles = rows.saturating_mul(self.group).div_ceil(64) as f64;
                let products = tiles * 4.0 / element;
                (2.0 + widening + products) * all + 4.0 * scores * self.passes as f64
            }
        }
    }

    /// Whether the kernel moves less in a step of such requests: rows and lengths.
    pub fn prefers_kernel(&self, requests: impl IntoIterator<Item = (u64, u64)>) -> bool {
        let (mut paged, mut gathered) = (0.0, 0.0);
        for (rows, length) in requests {
            paged += self.paged(rows, length);
            gathered += self.gathered(rows, length);
        }
        paged < gathered
    }
}

/// A prompt, and what its attention moves in one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptCost {
    /// Rows of queries, the last of `length` tokens.
    pub rows: u64,
    pub length: u64,
    /// Bytes by the kernel, and by the reference.
    pub kernel: u64,
    pub gather: u64,
    /// Whether the kernel runs where it may be used.
    pub by_kernel: bool,
}

/// Layers of one kind that the kernel of prompts can compute, and what decides whether it does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLayers {
    pub layers: usize,
    /// Query heads, KV heads, and elements of a key and of a value.
    pub num_heads: i64,
    pub num_kv_heads: i64,
    pub head_size: i64,
    pub head_size_v: i64,
    pub sliding_window: Option<i64>,
    /// What the reference is on Metal.
    pub reference: Reference,
    pub steps: Vec<PromptCost>,
}

/// Steps of the report: the end of a prompt whose beginning is in the cache, and whole prompts.
const STEPS: [(u64, u64); 4] = [(8, 2048), (64, 2048), (512, 512), (2048, 2048)];

/// What prompts move in the layers for which the plan names the kernel.
pub fn prompt_costs(layers: &[AttentionLayer]) -> Vec<PromptLayers> {
    let mut kinds: BTreeMap<String, PromptLayers> = BTreeMap::new();
    for layer in layers {
        let Some(dtype) = layer.prefill.as_ref().and_then(|of| of.dtypes.get("T")) else {
            continue;
        };
        let reference = layer.reference();
        let sizes = PromptSizes::new(layer, dtype.size(), reference);
        let cost = |(rows, length): (u64, u64)| PromptCost {
            rows,
            length,
            kernel: sizes.paged(rows, length) as u64,
            gather: sizes.gathered(rows, length) as u64,
            by_kernel: sizes.prefers_kernel([(rows, length)]),
        };
        let kind = PromptLayers {
            layers: 0,
            num_heads: layer.num_heads,
            num_kv_heads: layer.num_kv_heads,
            head_size: layer.head_size,
            head_size_v: layer.head_size_v,
            sliding_window: layer.sliding_window,
            reference,
            steps: STEPS.into_iter().map(cost).collect(),
        };
        kinds.entry(format!("{kind:?}")).or_insert(kind).layers += 1;
    }
    kinds.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Float;

    fn layer() -> AttentionLayer {
        AttentionLayer::decoder("attn", [16, 8], 128)
    }

    fn sizes(layer: &AttentionLayer, reference: Reference) -> PromptSizes {
        PromptSizes::new(layer, 2, reference)
    }

    #[test]
    fn costs_are_what_the_formulas_say() {
        let of = sizes(&layer(), Reference::Fused);
        let row = 8.0 * 256.0 * 2.0;
        // 32 rows of two heads are eight simdgroups; a row sees 84.5 of 100 tokens.
        assert_eq!(of.paged(32, 100), 8.0 * (84.5 + 4.0) * row);
        assert_eq!(of.gathered(32, 100), 200.0 * row + 2.0 * 84.5 * row);
        // Up to eight rows are a tile each.
        assert_eq!(of.gathered(2, 100), 200.0 * row + 4.0 * 99.5 * row);
        let windowed = AttentionLayer {
            sliding_window: Some(10),
            ..layer()
        };
        let of = sizes(&windowed, Reference::Fused);
        assert_eq!(of.paged(32, 100), 8.0 * 14.0 * row);
        let mask = 16.0 * 32.0 * 41.0;
        assert_eq!(of.gathered(32, 100), (82.0 + 82.0) * row + mask);
        let capped = AttentionLayer {
            logits_soft_cap: Some(Float::new(30.0)),
            ..layer()
        };
        let of = sizes(&capped, Reference::Products);
        // Gathered, widened, and one tile of products; ten passes over the scores.
        let scores = 16.0 * 32.0 * 100.0 * 4.0;
        assert_eq!(
            of.gathered(32, 100),
            (2.0 + 3.0 + 2.0) * 100.0 * row + 10.0 * scores
        );
        assert_eq!((of.paged(0, 100), of.gathered(0, 100)), (0.0, 0.0));
    }

    #[test]
    fn the_choice_depends_on_rows_context_and_layer() {
        let fused = sizes(&layer(), Reference::Fused);
        // The end of a long prompt is read in place; a whole one is gathered once for its many tiles.
        assert!(fused.prefers_kernel([(8, 2048)]));
        assert!(!fused.prefers_kernel([(2048, 2048)]));
        // Scores that are written out cost more than any rereading.
        assert!(sizes(&layer(), Reference::Products).prefers_kernel([(2048, 2048)]));
        // A window cuts what the kernel reads, and nothing of what masks read.
        let windowed = AttentionLayer {
            sliding_window: Some(64),
            ..layer()
        };
        assert!(sizes(&windowed, Reference::Fused).prefers_kernel([(512, 512)]));
        assert!(!fused.prefers_kernel([(512, 512)]));
        // A step is one choice, of all its requests.
        assert!(!fused.prefers_kernel([(8, 2048), (2048, 2048)]));
        assert!(!fused.prefers_kernel([]));
    }

    #[test]
    fn layers_of_a_kind_are_one_entry() {
        let mut layers = vec![layer(), layer(), layer()];
        assert_eq!(prompt_costs(&layers), []);
        for layer in &mut layers[..2] {
            layer.prefill = super::super::choose_prefill(layer, crate::ir::DType::Float16);
        }
        let found = prompt_costs(&layers);
        assert_eq!((found.len(), found[0].layers), (1, 2));
        assert_eq!(found[0].reference, Reference::Fused);
        let chosen: Vec<bool> = found[0].steps.iter().map(|step| step.by_kernel).collect();
        assert_eq!(chosen, [true, false, false, false]);
        assert!(
            found[0]
                .steps
                .iter()
                .all(|of| of.kernel > 0 && of.gather > 0)
        );
    }
}
