# SPDX-License-Identifier: Apache-2.0
"""A tiny configuration of any architecture, from the fields of its configuration class.

Fields are recognised by their names, which families share; a value keeps its relation to the
others (grouped heads stay grouped, values narrower than keys stay narrower). No model is named.
"""

import re
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

from zoo.sizes import MAX_POSITIONS, MOST_LAYERS, SIZES

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fixed(number: int) -> Callable[[int, dict[str, Any]], int]:
    return lambda default, fields: number if default > 0 else default


def _size(name: str, times: int = 1) -> Callable[[int, dict[str, Any]], int]:
    return lambda default, fields: times * getattr(SIZES, name) if default > 0 else default


def _at_most(number: int) -> Callable[[int, dict[str, Any]], int]:
    return lambda default, fields: min(number, default)


def _intermediate_size(default: int, fields: dict[str, Any]) -> int:
    # Some models take four times the hidden size for granted.
    four_times = default == 4 * (fields.get("hidden_size") or 0)
    return 4 * SIZES.hidden_size if four_times else SIZES.intermediate_size if default > 0 else 0


def _head_size(default: int, fields: dict[str, Any]) -> int:
    return max(4, default * SIZES.head_size // 128) if default else 0


def _merged_size(default: int, fields: dict[str, Any]) -> int:
    # Of the patches of a square, side by side.
    merge_size = fields.get("vision_config", {}).get("merge_size")
    return merge_size**2 * SIZES.hidden_size if merge_size else default


def _kv_heads(default: int, fields: dict[str, Any]) -> int:
    heads = next((fields[k] for k in _HEADS if _is_count(fields.get(k))), default)
    if SIZES.num_kv_heads:
        return SIZES.num_kv_heads
    return SIZES.num_heads if default >= heads else 1 if default == 1 else SIZES.grouped_heads


def _state_heads(default: int, fields: dict[str, Any]) -> int:
    # Of a state-space layer twice as wide as the model, where there is one.
    size = fields.get("head_dim")
    return 2 * SIZES.hidden_size // _head_size(size, fields) if size else SIZES.num_heads


def _key_heads(default: int, fields: dict[str, Any]) -> int:
    equal = default == fields.get("linear_num_value_heads")
    return SIZES.num_heads if equal else SIZES.grouped_heads


def _state_size(name: str) -> Callable[[int, dict[str, Any]], int]:
    return lambda default, fields: min(default, getattr(SIZES, name))


def _chosen(name: str, usual: int) -> Callable[[int, dict[str, Any]], int]:
    # What is drawn, or the default up to a usual number.
    return lambda default, fields: getattr(SIZES, name) or min(default, usual)


def _share_of_heads(times: int) -> Callable[[int, dict[str, Any]], int]:
    return lambda default, fields: times * SIZES.hidden_size // SIZES.num_heads


def _state_heads_of(default: int, fields: dict[str, Any]) -> int:
    # A state-space layer is twice as wide as the model.
    return 2 * SIZES.hidden_size // SIZES.state_head_size


def _chosen_groups(default: int, fields: dict[str, Any]) -> int:
    groups = SIZES.expert_groups
    return max(1, groups // 2) if groups else min(default, 2)


def _dense_layers(default: int, fields: dict[str, Any]) -> int:
    # As many as a list of the layers' kinds, where there is one too, begins with.
    kinds = fields.get("mlp_layer_types") or []
    leading = next((i for i, kind in enumerate(kinds) if kind != "dense"), 0)
    return leading or min(1, default)


_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")

_RULES: list[tuple[str, Callable[[int, dict[str, Any]], int]]] = [
    # sizes
    (r"hidden_size|d_model|n_embd|word_embed_proj_dim|dim_model_base", _size("hidden_size")),
    (r"out_hidden_size", _merged_size),
    (r"attention_hidden_size|mamba_d_ssm|ple_embed_dim", _size("hidden_size", 2)),
    (r"hidden_size_per_layer_input|moe_latent_size", _fixed(32)),
    (r".*intermediate_size.*|ffn_dim|.*ffn_hidden_size|n_inner|d_ff", _intermediate_size),
    (r"vocab_size|unpadded_vocab_size|vocab_size_per_layer_input", _size("vocab_size")),
    (
        r"max_position_embeddings|n_positions|max_seq_len|seq_length|model_max_length",
        _fixed(MAX_POSITIONS),
    ),
    (r"(q|kv|o)_lora_rank|hc_lowrank|adapter_rank|laurel_rank", _size("latent_rank")),
    (r"block_multiple_of", _fixed(16)),
    (r".*ngram_vocab_size_base", _fixed(64)),
    (r"make_ngram_vocab_size_divisible_by|split_ngram_parts", _fixed(4)),
    # heads
    (r"attention_head_dim", _share_of_heads(2)),
    (r"kv_channels", _share_of_heads(1)),
    (r"(mamba_)?n_mamba_heads|mamba_n_heads|mamba_num_heads", _state_heads_of),
    (r"mamba_(d_head|head_?dim)", _size("state_head_size")),
    (r"num_heads", _state_heads),
    (r"mamba_dt_rank|time_step_rank", _fixed(8)),
    (
        r"head_dim|(v|qk_nope|qk_rope|index|linear(_key|_value)?|swa|swa_v|global)_head_dim",
        _head_size,
    ),
    (r"rotary_dim", _head_size),
    (r"num_key_value_heads|num_kv_heads|num_query_groups|num_global_key_value_heads", _kv_heads),
    (r"swa_num_key_value_heads", _size("grouped_heads")),
    (r"linear_num_key_heads", _key_heads),
    (
        r"num_attention_heads|n_heads?|(linear|swa)_num_(value_|attention_)?heads",
        _size("num_heads"),
    ),
    # So many that hardly a key is on the negative side of all: scores of 0 would be ties.
    (r"index_n_heads", _fixed(16)),
    # layers
    (r"first_k_dense_replace|num_dense_layers", _dense_layers),
    (r"num_layers_per_stack", _fixed(2)),
    (r"num_(nextn_predict|mtp)_layers", _at_most(0)),
    # experts
    (r"(n_routed|num|num_local|moe_num)_experts", _size("num_experts")),
    (
        r"(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts)",
        _chosen("experts_per_token", 3),
    ),
    (r"n_group|num_expert_group", _chosen("expert_groups", 4)),
    (r"topk_group", _chosen_groups),
    (r"zero_expert_num", _fixed(4)),
    # positions
    (r"sliding_window(_size)?|local_attention", _size("window")),
    (r"attention_chunk_size", _fixed(32)),  # vLLM wants whole blocks
    (r"floor_scale", _fixed(16)),
    (r"index_topk", _fixed(16)),
    (r"rel_extent", _fixed(32)),
    (r"d_rel", _at_most(8)),
    # recurrent state
    (r"(mamba_)?(n_groups|ngroups)", _state_size("state_groups")),
    (r"mamba_d_state|ssm_state_size|state_size", _state_size("state_size")),
    (r"(mamba_)?chunk_size", _at_most(16)),
    (
        r"mamba_d_conv|conv_kernel(_size)?|conv_L_cache|linear_conv_kernel_dim",
        _chosen("convolution", 4),
    ),
]

_FILLED: dict[str, Callable[[], Any]] = {
    "num_experts_per_tok": lambda: SIZES.experts_per_token or 3,
    "num_key_value_heads": lambda: SIZES.grouped_heads,
    "n_group": lambda: 1,
    "topk_group": lambda: 1,
    "layer_types": lambda: (
        ["conv", "full_attention"] * (SIZES.num_layers // 2) + ["conv"] * (SIZES.num_layers % 2)
    ),
    "output_gate_type": lambda: "sigmoid",
    "indexer_n_heads": lambda: SIZES.num_heads,
    "indexer_kv_heads": lambda: 1,
    "indexer_head_dim": lambda: 32,
    "indexer_budget": lambda: 16,
    "indexer_compress_ratio": lambda: 4,
}
"""What checkpoints say where the class has None, for models that do not run without."""

_NESTED = {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}}
"""Keys of nested configurations that their class lacks or leaves empty."""

_LIST_RULES = {
    "mrope_section": lambda values, fields: [2, 1, 1],
}


def shrink_count(name: str, default: int, fields: dict[str, Any]) -> int:
    """A field's tiny value. Raises KeyError for a name that no rule knows."""
    for pattern, rule in _RULES:
        if re.fullmatch(pattern, name):
            return rule(default, fields)
    raise KeyError(name)


def shrink(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """A configuration of a few layers that still has every kind of layer of the default one.

    Raises whatever the class raises for values that it does not accept.
    """
    default = config_class()
    fields = default.to_dict()
    before = next((fields[n] for n in _LAYER_COUNTS if _is_count(fields.get(n))), 4)
    after = min(before, _num_layers(fields, before))
    changes = _shrink_fields(fields, before, after)
    return config_class(**changes)


def _num_layers(fields: dict[str, Any], before: int) -> int:
    """The shortest beginning that has every kind of layer, and at least the variant's."""
    needed = SIZES.num_layers
    for name, value in fields.items():
        if _is_per_layer(value, before) and isinstance(value[0], str):
            needed = max(needed, max(value.index(kind) for kind in value) + 1)
        if name.endswith(("_period", "_interval", "_every_n_layers")) and _is_count(value):
            needed = max(needed, value)
    needed = min(needed, MOST_LAYERS)
    # Layers that reuse the caches of earlier ones come on top of one of each kind.
    return 2 * needed if fields.get("num_kv_shared_layers") else needed


def _is_per_layer(value: Any, num_layers: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == num_layers > 0


def _shrink_fields(fields: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        changed = _shrink_field(name, value, fields, before, after)
        if changed is not value or isinstance(value, dict):
            changes[name] = changed
    changes |= {
        name: token
        for name, token in (("bos_token_id", 1), ("eos_token_id", 2), ("pad_token_id", 0))
        if name in fields
    }
    return changes


def _shrink_field(name: str, value: Any, fields: dict[str, Any], before: int, after: int) -> Any:
    if isinstance(value, dict):
        return _shrink_nested(name, value, before, after)
    if name in _LAYER_COUNTS and _is_count(value):
        return after
    if name in _LIST_RULES and isinstance(value, list):
        return _LIST_RULES[name](value, fields)
    if name == "num_kv_shared_layers" and value:
        return after // 2
    if name.endswith("layer_end_index"):
        return after - 1
    if _is_per_layer(value, before):
        return _cut(name, list(value), fields, before, after)
    if isinstance(value, list) and name.endswith(("_ids", "_idxs", "_layers")):
        return _indices(value, after)
    if value is None and name in _FILLED:
        return _FILLED[name]()
    if _is_count(value):
        try:
            return shrink_count(name, value, fields)
        except KeyError:
            return value
    return value


def _cut(
    name: str, values: list[Any], fields: dict[str, Any], before: int, after: int
) -> list[Any]:
    if isinstance(values[0], str):
        return values[:after]
    if values == list(range(before)):
        # all layers; or, where real checkpoints list some, some: both kinds are wanted
        return list(range(1, after, 2) if name.endswith("_idxs") else range(after))
    if set(map(str, values[:after])) == set(map(str, values)):
        kept = values[:after]  # in step with the kinds of layers, which are cut like that
    else:
        kept = [values[i * before // after] for i in range(after)]
    single = name.removesuffix("_per_layer")
    return [_shrink_field(single, value, fields, -1, after) for value in kept]


def _indices(values: list[Any], after: int) -> list[Any]:
    if all(_is_count(value) for value in values):
        return [value for value in values if value < after]
    return values


def _shrink_nested(name: str, value: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """Fields of a nested configuration, of rope parameters, or of single layers."""
    own = next((value[n] for n in _LAYER_COUNTS if _is_count(value.get(n))), None)
    if own is not None:
        before, after = own, min(own, _num_layers(value, own))
    added: dict[str, Any] = _NESTED.get(name, {})
    nested = dict(added)
    for key, item in value.items():
        if key in added:
            continue
        if str(key).isdigit() and int(key) >= after:
            continue  # a layer that is no more
        nested[key] = _shrink_field(str(key), item, value, before, after)
    return nested
