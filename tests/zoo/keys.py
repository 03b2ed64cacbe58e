# SPDX-License-Identifier: Apache-2.0
"""Configuration keys that real checkpoints carry and Hugging Face's classes do not define.

A key is written only to a configuration that vLLM found it missing from. Names that families share
get their value by rule, the rest stand here.
"""

import re
from collections.abc import Callable
from typing import Any

from zoo.shrink import shrink_count
from zoo.sizes import MOST_LAYERS, SIZES

_VALUES: dict[str, Any] = {
    "activation_function": "silu",
    "attention_gate_func": "softplus",
    "attn_implementation": None,
    "bskcn_1": [1],
    "bskcn_2": [1],
    "bskcn_3": [2],
    "bskcn_4": [2],
    "bskcn_tv": [0.9, 0.8],
    "decoder_sparse_step": 1,
    "emb_neighbor_num": 3,
    "emb_split_num": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "add_swa_attention_sink_bias": True,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "interpolation_factor": None,
    "is_causal": True,
    "layernorm_num_groups": 1,
    "max_position_embedding": 256,
    "max_window_layers": 0,
    "merged_lora": None,
    "linear_conv_kernel_dim": 4,
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "ngram_vocab_size_ratio": 2,
    "original_rope": True,
    "param_sink_number": 0,
    "position_layers": ["rope", "nope"] * (MOST_LAYERS // 2),
    "query_key_norm": True,
    "query_pre_attn_scalar": 16,
    "rope_local_theta": 10000.0,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "route_norm": True,
    "router_score_func": "sigmoid",
    "score_func": "sigmoid",
    "score_function": "sigmoid",
    "scoring_func": "sigmoid",
    "share_q_dim": 32,
    "short_conv_kernel_size": 4,
    "tie_word_embeddings": False,
    "swiglu_limits": [],
    "swiglu_limits_shared": [],
    "topk_method": "noaux_tc",
    "zero_expert_type": "identity",
}


def _sized() -> dict[str, Any]:
    return {
        "block_dim": SIZES.hidden_size,
        "conv_dim": SIZES.hidden_size,
        "dim_model_base": SIZES.hidden_size // 2,
        "head_dim": SIZES.hidden_size // SIZES.num_heads,
        "expert_hidden_dim": SIZES.intermediate_size,
        "linear_num_key_heads": SIZES.num_heads,
        "multi_query_group_num": SIZES.grouped_heads,
        "num_attention_groups": SIZES.grouped_heads,
        "padded_vocab_size": SIZES.vocab_size,
        "rope_head_dim": SIZES.hidden_size // SIZES.num_heads,
        "share_expert_dim": SIZES.intermediate_size,
    }


ALWAYS = {
    "mla_use_nope": True,
    "use_routing_bias": True,
    "qk_norm": True,
    "topk_method": "noaux_tc",
}
"""Keys that vLLM can do without, and then drops weights that Hugging Face's models have."""

WITH_TENSORS = {"qk_norm": ".q_norm."}
"""Of those, the ones that ask for tensors: only where a name in the checkpoint has this part."""


def _delta_layers(config: dict[str, Any]) -> dict[str, Any]:
    # Layers are counted from one.
    kinds = list(enumerate(config["layer_types"], start=1))
    return {
        "linear_attn_config": {
            "kda_layers": [layer for layer, kind in kinds if kind == "linear_attention"],
            "full_attn_layers": [layer for layer, kind in kinds if kind == "full_attention"],
            "num_heads": config["linear_num_heads"],
            "head_dim": config["linear_head_dim"],
            "short_conv_kernel_size": config["linear_conv_kernel_dim"],
        },
        "first_k_dense_replace": config["mlp_layer_types"].index("sparse"),
    }


IMPLIED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # Hugging Face's classes that know both kinds of layers take it for granted.
    "indexer_types": lambda config: {"indexer_rope_interleave": True},
    "linear_num_heads": _delta_layers,
}
"""Where a class writes the first key: what checkpoints say too, and vLLM has other defaults for."""


def _by_layer() -> dict[str, list[Any]]:
    """Keys with a value for each layer, which these are repeated for."""
    return {
        "block_configs": [
            {
                "attention": {
                    "no_op": False,
                    "n_heads_in_group": SIZES.num_heads // SIZES.grouped_heads,
                },
                "ffn": {"no_op": False, "ffn_mult": 1.5},
            },
            {
                "attention": {"no_op": True},
                "ffn": {"no_op": False, "intermediate_size": SIZES.intermediate_size},
            },
        ],
        "interleaved_sliding_window": [SIZES.window, None],
        "layer_types": ["sliding_attention", "full_attention"],
        "per_layer_config": [
            {
                "head_dim": SIZES.hidden_size // SIZES.num_heads,
                "num_attention_heads": SIZES.num_heads,
            }
        ],
        "window_sizes": [[SIZES.window, 0], [-1, -1]],
    }


TOGETHER = {
    "hybrid_layer_pattern": (
        "rope_theta",
        "swa_rope_theta",
        "partial_rotary_factor",
        "moe_layer_freq",
        "swa_head_dim",
        "swa_v_head_dim",
        "add_swa_attention_sink_bias",
    )
}
"""Where the first is missing, the others are, and vLLM has defaults for them."""

GENERATION = ("attn_temperature_tuning",)
"""Keys that vLLM reads from `generation_config.json`."""

REQUIRED = {
    "kda_allow_negative_eigenvalues": False,
    "layer_group_size": 2,  # hybrids of linear and full attention that would have but one of them
    "block_attn_res_block_size": 2,
    "moe_layers_enum": "1,2",
    "need_fp32_gate": True,
    "no_kda_lora": True,
    "router_bias_correction": True,
    "router_score_function": "sigmoid",
    "use_moe_router_bias": True,
}
"""What vLLM's models insist on where a class's default, or no key at all, is refused."""

_RULES: list[tuple[str, Any]] = [
    (r".*dropout", 0.0),
    (r".*eps(ilon)?", 1e-5),
    (r"norm_topk_prob|norm_expert_weight|(use_)?.*norm_topk.*|rmsnorm|post_layer_norm", True),
    (r"multi_query_attention", True),
    (r"use_.*|.*_bias|bias|enable_.*|need_.*|.*_residual_connection.*|.*multimodal", False),
    (r".*(scale_factor|multiplier|scaling(_factor)?|output_mult)|scale_(emb|depth)", 1.25),
    (r"(attn|final)_logit_softcapping", 30.0),
    (r"(mova_)?num_experts|moe_num_experts", 8),
    (r"(mova_)?num_experts_per_tok|moe_top_k", 2),
    (r"n(um)?_shared_experts?", 1),
    (r"n_group|topk_group", 1),
]


def value(name: str, config: dict[str, Any]) -> Any:
    """What a tiny checkpoint with that configuration says for the key.

    Raises KeyError for one that is not known.
    """
    known_elsewhere = _translated(name, config)
    if known_elsewhere is not None:
        return known_elsewhere
    if name in _VALUES:
        return _VALUES[name]
    if name in (sized := _sized()):
        return sized[name]
    if name in (by_layer := _by_layer()):
        kinds = by_layer[name]
        return [kinds[layer % len(kinds)] for layer in range(config["num_hidden_layers"])]
    if name == "position_embedding_type":
        return "rope" if config.get("rope_parameters") else "absolute"
    if name == "n_layer":
        return config["num_hidden_layers"]
    if name == "rotary_dim":
        head_size = config.get("head_dim", SIZES.hidden_size // SIZES.num_heads)
        return int(head_size * config.get("rope_parameters", {}).get("partial_rotary_factor", 1))
    plain = name.removeprefix("swa_")
    if plain != name and config.get(plain) is not None:
        return config[plain]  # layers with a window are as the others
    for pattern, known in _RULES:
        if re.fullmatch(pattern, name):
            return known
    return shrink_count(name, 128, {})


_WITHOUT_CLASS: dict[str, Any] = {
    "indexer_rope_interleave": True,
    "mhc": False,
    "mla_use_nope": True,
    "partial_rotary_factor": 0.5,
    "position_embedding_type": "rope",
    "swiglu_alpha": 1.702,
    "swiglu_beta": 1.0,
    "swiglu_limit": 7.0,
}


def value_without_class(name: str, config: dict[str, Any]) -> Any:
    """As `value`, for a configuration that no class of Hugging Face's describes."""
    if name in _WITHOUT_CLASS:
        return _WITHOUT_CLASS[name]
    return value(name, config)


def _translated(name: str, config: dict[str, Any]) -> Any:
    """The value of an older name, from what the class writes instead; None where it has neither."""
    rope = config.get("rope_parameters") or {}
    if name in ("rope_theta", "partial_rotary_factor", "swa_rope_theta"):
        kind = "sliding_attention" if name.startswith("swa_") else "full_attention"
        return rope.get(kind, {}).get(name.removeprefix("swa_"))
    if name == "hybrid_layer_pattern" and "layer_types" in config:
        return [int(kind == "sliding_attention") for kind in config["layer_types"]]
    if name == "moe_layer_freq" and "mlp_layer_types" in config:
        return [int(kind == "sparse") for kind in config["mlp_layer_types"]]
    if name == "swa_num_key_value_heads" and "num_key_value_heads" in config:
        # Hugging Face's class takes twice as many for granted.
        return min(2 * config["num_key_value_heads"], config["num_attention_heads"])
    return None
