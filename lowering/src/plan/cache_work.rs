// SPDX-License-Identifier: Apache-2.0
//! What effects on the KV cache launch and move at one token: as [`super::work`] says of operators.

use super::AttentionLayer;
use super::work::Work;

/// No layer counts for more heads, or elements in one, so that products of what a damaged document
/// claims stay in 64 bits.
const MOST_HEADS: i64 = 1 << 16;

/// Work of selecting `count` of the keys of a request of `context` tokens, whose cache holds elements
/// of `size` bytes.
pub fn key_selection(layer: &AttentionLayer, context: u64, count: i64, size: u64) -> Work {
    let heads = layer.num_heads.clamp(0, MOST_HEADS) as u64;
    let row = layer.head_size.clamp(0, MOST_HEADS) as u64 * size;
    let written = Work::default().kernel(row, row);
    if context <= count.max(0) as u64 {
        return written;
    }
    let scores = heads * context * 4;
    // Keys gathered, products, their positive parts, the weighted sum, its mask; order and names.
    written
        .kernel(context * row, context * row)
        .kernel(context * row + heads * row, scores)
        .kernel(scores, scores)
        .kernel(scores, context * 4)
        .chain(2, context * 4)
        .kernel(context * 4, count.max(0) as u64 * 4)
}

/// Work of an attention layer, part by part.
#[derive(Clone, Copy, Debug)]
pub struct AttentionWork {
    /// Of writing the step's keys and values to the cache.
    pub write: Work,
    /// Of the attention itself, on rows gathered from the cache.
    pub attend: Work,
    /// Of the attention by the kernel that reads the cache in place.
    pub paged: Work,
}

impl AttentionWork {
    /// Without kernels.
    pub fn reference(self) -> Work {
        self.write + self.attend
    }
}

/// Work of one attention layer that decodes one token of a request of `context` tokens, whose cache
/// holds elements of `size` bytes.
pub fn attention(layer: &AttentionLayer, context: u64, size: u64) -> AttentionWork {
    let count = |number: i64| number.clamp(0, MOST_HEADS) as u64;
    let heads = count(layer.num_heads);
    let width = if layer.value_in_key {
        count(layer.head_size)
    } else {
        count(layer.head_size) + count(layer.head_size_v)
    };
    let row = count(layer.num_kv_heads) * width * size;
    let query = heads * count(layer.head_size) * size;
    let result = heads * count(layer.head_size_v) * size;
    let tokens = layer
        .sliding_window
        .map_or(context, |window| context.min(window.max(0) as u64));
    let keys_values = tokens * row;
    // Keys and values, which come joined, are scattered into the cache.
    let cached = layer.kv_sharing_target.is_none() && !layer.attn_type.starts_with("encoder");
    let write = match cached {
        true => Work::default().kernel(row, row),
        false => Work::default(),
    };
    let paged = Work::default().kernel(keys_values + query, result);
    let gathered = Work::default().kernel(keys_values, keys_values);
    let capped = layer.logits_soft_cap.is_some_and(|cap| cap.get() != 0.0);
    if !capped && layer.alibi_slopes.is_none() && layer.head_size == layer.head_size_v {
        let attend = gathered.kernel(keys_values + query, result);
        return AttentionWork {
            write,
            attend,
            paged,
        };
    }
    // Written out in float32: scaled queries, scores, softmax, values.
    let wide_factor = if size < 4 { 4 / size.max(1) } else { 1 };
    let scores = heads * tokens * 4;
    let widened = match wide_factor {
        1 => gathered,
        factor => gathered
            .kernel(keys_values / 2, keys_values / 2 * factor)
            .kernel(keys_values / 2, keys_values / 2 * factor),
    };
    let products = keys_values / 2 * wide_factor;
    let mut work = widened
        .kernel(query, query * wide_factor)
        .kernel(query * wide_factor + products, scores);
    work = work.chain(2 * u64::from(capped), scores);
    work = work.chain(u64::from(layer.alibi_slopes.is_some()), scores);
    work = work.chain(2 * u64::from(layer.sinks.is_some()), scores);
    work = work
        .kernel(scores, scores)
        .kernel(scores + products, result * wide_factor);
    let attend = match wide_factor {
        1 => work,
        factor => work.kernel(result * factor, result),
    };
    AttentionWork {
        write,
        attend,
        paged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Float;

    #[test]
    fn attention_reads_the_cache_within_its_window() {
        let mut layer = AttentionLayer::decoder("attn", [4, 2], 8);
        let row = 2 * (8 + 8) * 2;
        let of = |layer: &AttentionLayer| attention(layer, 16, 2).reference();
        let whole = of(&layer);
        // A scatter of a row, a gather, attention itself.
        assert_eq!(whole.launches, 3);
        assert_eq!(whole.bytes_read, row + 16 * row + 16 * row + 64);
        assert_eq!(whole.bytes_written, row + 16 * row + 64);
        // The kernel gathers nothing.
        let paged = attention(&layer, 16, 2).paged;
        assert_eq!((paged.launches, paged.bytes_read), (1, 16 * row + 64));
        layer.sliding_window = Some(4);
        assert_eq!(of(&layer).bytes_read, row + 8 * row + 64);
        layer.kv_sharing_target = Some("other".into());
        assert_eq!(of(&layer).launches, 2);
        layer.logits_soft_cap = Some(Float::new(30.0));
        assert!(of(&layer).launches > 8);
    }
}
