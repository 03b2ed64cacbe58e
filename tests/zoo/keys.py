# SPDX-License-Identifier: Apache-2.0
"""Configuration keys that real checkpoints carry and Hugging Face's classes do not define.

A key is written only to a configuration that vLLM found it missing from. Names that families share
get their value by rule, the rest stand here.
"""

import re
from typing import Any

from zoo.shrink import HIDDEN_SIZE, MOST_LAYERS, NUM_HEADS, VOCAB_SIZE, WINDOW, shrink_count

_VALUES: dict[str, Any] = {
    "activation_function": "silu",
    "attention_gate_func": "softplus",
    "attn_implementation": None,
    "block_dim": HIDDEN_SIZE,
    "conv_dim": HIDDEN_SIZE,
    "decoder_sparse_step": 1,
    "emb_neighbor_num": 3,
    "emb_split_num": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "interleaved_sliding_window": [WINDOW],
    "interpolation_factor": None,
    "is_causal": True,
    "expert_hidden_dim": 96,
    "layernorm_num_groups": 1,
    "max_position_embedding": 256,
    "max_window_layers": 0,
    "merged_lora": None,
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "multi_query_group_num": NUM_HEADS // 2,
    "ngram_vocab_size_ratio": 2,
    "num_attention_groups": NUM_HEADS // 2,
    "original_rope": True,
    "param_sink_number": 0,
    "position_embedding_type": "rope",
    "position_layers": ["rope", "nope"] * (MOST_LAYERS // 2),
    "query_key_norm": True,
    "query_pre_attn_scalar": 16,
    "rope_head_dim": 16,
    "rope_local_theta": 10000.0,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "rotary_dim": 16,
    "route_norm": True,
    "router_score_func": "sigmoid",
    "score_func": "sigmoid",
    "score_function": "sigmoid",
    "scoring_func": "sigmoid",
    "share_expert_dim": 96,
    "share_q_dim": 32,
    "short_conv_kernel_size": 4,
    "tie_word_embeddings": False,
    "swiglu_limits": [],
    "swiglu_limits_shared": [],
    "topk_method": "noaux_tc",
    "zero_expert_type": "identity",
}

ALWAYS = {"use_routing_bias": True, "qk_norm": True, "topk_method": "noaux_tc"}
"""Keys that vLLM can do without, and then drops weights that Hugging Face's models have."""

REQUIRED = {
    "kda_allow_negative_eigenvalues": False,
    "layer_group_size": 2,  # hybrids of linear and full attention that would have but one of them
    "no_kda_lora": True,
}
"""What vLLM's models insist on where a class's default, or no key at all, is refused."""

_RULES: list[tuple[str, Any]] = [
    (r".*dropout", 0.0),
    (r".*eps(ilon)?", 1e-5),
    (r"norm_topk_prob|norm_expert_weight|(use_)?.*norm_topk.*|rmsnorm|post_layer_norm", True),
    (r"multi_query_attention", True),
    (r"use_.*|.*_bias|bias|enable_.*|need_.*|.*_residual_connection.*|.*multimodal", False),
    (r".*(scale_factor|multiplier|scaling(_factor)?|output_mult)|scale_(emb|depth)", 1.25),
    (r"padded_vocab_size", VOCAB_SIZE),
    (r"(mova_)?num_experts|moe_num_experts", 8),
    (r"(mova_)?num_experts_per_tok|moe_top_k", 2),
    (r"n(um)?_shared_experts?", 1),
    (r"n_group|topk_group", 1),
]


def value(name: str, config: dict[str, Any]) -> Any:
    """What a tiny checkpoint with that configuration says for the key.

    Raises KeyError for one that is not known.
    """
    if name in _VALUES:
        return _VALUES[name]
    plain = name.removeprefix("swa_")
    if plain != name and config.get(plain) is not None:
        return config[plain]  # layers with a window are as the others
    for pattern, known in _RULES:
        if re.fullmatch(pattern, name):
            return known
    return shrink_count(name, 128, {})
