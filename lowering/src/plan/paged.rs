// SPDX-License-Identifier: Apache-2.0
//! The kernels by which an attention layer reads its paged cache in place: one for steps that decode,
//! one for prompts, where that moves less (see [`super::PromptSizes`]). Layers that a contract does not
//! take are gathered from the cache (the reference).

use super::{AttentionLayer, GraphPlan, KernelChoice, Step};
use crate::ir::{DType, Op};

/// The kernel's name.
pub const PAGED_DECODE: &str = "paged_attention_decode";

/// The kernel that joins what it leaves where a context is split.
pub const PAGED_REDUCE: &str = "paged_attention_reduce";

/// The kernel of prompts, whose earlier tokens may lie in the cache.
pub const PAGED_PREFILL: &str = "paged_attention_prefill";

/// A step that the contract takes if it takes any: block size and number of splits are the step's.
const STEP: [(&str, i64); 6] = [
    ("num_tokens", 1),
    ("num_requests", 1),
    ("num_slots", 16),
    ("max_blocks", 1),
    ("block_size", 16),
    ("splits", 1),
];

/// Sizes and parameters that both kernels have; none for a layer that neither computes.
fn sizes(layer: &AttentionLayer) -> Option<[(&'static str, i64); 9]> {
    if layer.attn_type != "decoder" || layer.value_in_key || layer.alibi_sqrt {
        return None;
    }
    let group = layer.num_heads.checked_div(layer.num_kv_heads)?;
    let capped = layer.logits_soft_cap.is_some_and(|cap| cap.get() != 0.0);
    Some([
        ("num_heads", layer.num_heads),
        ("num_kv_heads", layer.num_kv_heads),
        ("head_size", layer.head_size),
        ("head_size_v", layer.head_size_v),
        ("group", group),
        ("window", layer.sliding_window.unwrap_or(0)),
        ("has_soft_cap", i64::from(capped)),
        ("has_sinks", i64::from(layer.sinks.is_some())),
        ("has_alibi", i64::from(layer.alibi_slopes.is_some())),
    ])
}

/// The kernel that decodes a layer whose queries, keys and values have that dtype.
pub fn choose_paged(layer: &AttentionLayer, dtype: DType) -> Option<KernelChoice> {
    let sizes = [sizes(layer)?.as_slice(), &[("rows", 1)]].concat();
    let choice = KernelChoice::new(PAGED_DECODE, &sizes, &[("T", dtype), ("O", dtype)]);
    choice.launch(&STEP).is_ok().then_some(choice)
}

/// The kernel of its prompts.
pub fn choose_prefill(layer: &AttentionLayer, dtype: DType) -> Option<KernelChoice> {
    let choice = KernelChoice::new(PAGED_PREFILL, &sizes(layer)?, &[("T", dtype)]);
    let step = [STEP.as_slice(), &[("num_tiles", 1)]].concat();
    choice.launch(&step).is_ok().then_some(choice)
}

/// Gives the layers that the graphs run their kernels; none where keys are selected.
pub fn choose_layers(layers: &mut [AttentionLayer], graphs: &[GraphPlan]) {
    for (index, layer) in layers.iter_mut().enumerate() {
        let steps = graphs.iter().flat_map(|graph| &graph.steps);
        let mut dtypes = steps.filter_map(|step| match step {
            Step::Effect { op, types, .. } => match op {
                Op::Attention { layer: of } if *of as usize == index => {
                    Some(types.first().map(|of| of.dtype))
                }
                Op::SparseAttention { layer: of, .. } | Op::SelectKeys { layer: of, .. }
                    if *of as usize == index =>
                {
                    Some(None)
                }
                _ => None,
            },
            Step::Call { .. } => None,
        });
        let first = dtypes.next().flatten();
        let dtype = first.filter(|first| dtypes.all(|other| other == Some(*first)));
        layer.kernel = dtype.and_then(|dtype| choose_paged(layer, dtype));
        layer.prefill = dtype.and_then(|dtype| choose_prefill(layer, dtype));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Float;

    fn layer() -> AttentionLayer {
        AttentionLayer {
            sliding_window: Some(512),
            logits_soft_cap: Some(Float::new(0.0)),
            ..AttentionLayer::decoder("attn", [16, 8], 128)
        }
    }

    fn by_root() -> AttentionLayer {
        AttentionLayer {
            alibi_slopes: Some(vec![Float::new(0.5); 16]),
            alibi_sqrt: true,
            ..layer()
        }
    }

    #[test]
    fn a_layer_gets_the_kernel_of_its_sizes() {
        let found = choose_paged(&layer(), DType::Bfloat16).unwrap();
        let size = |name: &str| found.sizes[name];
        assert_eq!((size("group"), size("window"), size("rows")), (2, 512, 1));
        assert_eq!((size("has_soft_cap"), size("has_sinks")), (0, 0));
        assert_eq!(found.launch(&STEP).unwrap().grid, [256 * 8, 2, 1]);
        let found = choose_prefill(&layer(), DType::Bfloat16).unwrap();
        assert_eq!((found.sizes["group"], found.sizes["window"]), (2, 512));
        assert!(!found.sizes.contains_key("rows") && !found.dtypes.contains_key("O"));
    }

    #[test]
    fn what_the_contract_does_not_take_has_none() {
        let odd = AttentionLayer {
            head_size: 72,
            head_size_v: 72,
            ..layer()
        };
        let latent = AttentionLayer {
            value_in_key: true,
            ..layer()
        };
        let encoder = AttentionLayer {
            attn_type: "encoder_only".into(),
            ..layer()
        };
        let unequal = AttentionLayer {
            num_kv_heads: 5,
            ..layer()
        };
        for other in [odd, latent, encoder, unequal, by_root()] {
            assert_eq!(choose_paged(&other, DType::Float16), None);
        }
        assert_eq!(choose_paged(&layer(), DType::Float64), None);
        assert_eq!(choose_prefill(&layer(), DType::Float64), None);
        assert_eq!(choose_prefill(&by_root(), DType::Float16), None);
        let eights = AttentionLayer {
            head_size: 72,
            head_size_v: 72,
            ..layer()
        };
        assert!(choose_prefill(&eights, DType::Float16).is_some());
    }
}
