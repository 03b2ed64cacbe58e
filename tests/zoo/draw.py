# SPDX-License-Identifier: Apache-2.0
"""Configurations drawn by a seed: other sizes, and changes of fields by their names, each of which
is kept where Hugging Face's model of it still answers, and as precisely as answers are compared."""

import re
from collections.abc import Callable, Iterator
from random import Random

from transformers import PretrainedConfig

from zoo.differences import NOT_FOLLOWED, Fields, body
from zoo.shrink import shrink
from zoo.sizes import MAX_POSITIONS, SIZES, seed, turns_flags

MOST_TRIES = 16

FLAGS = (
    r"tie_word_embeddings|norm_topk_prob|route_norm|moe_renormalize|use_qk_norm|qk_layernorm"
    r"|(attention_|mlp_|qkv_|mamba_proj_|mamba_conv_)?bias|use_(conv_|qkv_)?bias|add_bias_linear"
    r"|use_parallel_residual|parallel_attn|multi_query|new_decoder_architecture|alibi"
    r"|mamba_norm_before_gate|mamba_rms_norm|use_sliding_window|linear_allow_neg_eigval"
    r"|apply_residual_connection_post_layernorm|rope_interleave|scale_attn_by_inverse_layer_idx"
    r"|attention_k_eq_v|use_double_wide_mlp|enable_moe_block|use_mem_rope"
    r"|use_shared_attention_adapter|attn_temperature_tuning|residual_in_fp32"
)
"""Fields that are true or false."""
FACTORS = r".*(multiplier|scal(e|ing)(_factor)?)|scale_emb|.*softcapping"
"""Numbers that something is multiplied by."""
EPSILONS = r".*(eps|epsilon)"
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu")
"""Of MLPs without a gate: those with one have but one activation in vLLM."""
GATED = ("silu", "gelu_pytorch_tanh", "xielu")


def configuration(
    config_class: type[PretrainedConfig],
    architecture: str,
    accept: Callable[[PretrainedConfig], object] = lambda config: None,
) -> PretrainedConfig:
    """The usual tiny configuration, or one that the seed draws. `accept` raises for one that there
    is no model of.

    Raises what it raised last.
    """
    if not seed():
        return shrink(config_class)
    for attempt in range(MOST_TRIES):
        random = Random(f"{seed()} {architecture} {attempt}")
        SIZES.draw(random)
        try:
            config = shrink(config_class)
            accept(config)
            break
        except Exception as error:
            refused = error
    else:
        raise refused
    ignored = NOT_FOLLOWED.get(body(architecture), lambda change: False)
    for change in changes(config.to_dict(), random):
        if ignored(change):
            continue
        try:
            changed = config_class(**config.to_dict() | change)
            accept(changed)
            config = changed
        except Exception:
            continue
    return config


def changes(fields: Fields, random: Random) -> Iterator[Fields]:
    """Fields to change together."""
    for name, value in fields.items():
        if isinstance(value, bool):
            # Drawn in any case, so that the other fields are the same with and without.
            if re.fullmatch(FLAGS, name) and random.random() < 0.2 and turns_flags():
                yield {name: not value}
        elif isinstance(value, float):
            if re.fullmatch(EPSILONS, name) and random.random() < 0.2:
                yield {name: random.choice((1e-6, 1e-5, 1e-3))}
            elif name == "attention_multiplier" and value == 1.0:
                yield {name: random.choice((0.05, 0.2, 0.5))}  # 1 would make all attention sharp
            elif re.fullmatch(FACTORS, name):
                yield {name: value * random.choice((0.75, 1.0, 1.5))}
        elif random.random() < 0.5 and name in ("layer_types", "layers_block_type"):
            yield {name: _pattern(value, random)}
    plain = [name for name in ("hidden_act", "activation_function") if name in fields]
    for name in plain:
        if fields[name] not in GATED:
            yield {name: random.choice(ACTIVATIONS)}
    if fields.get("q_lora_rank") and random.random() < 0.3:
        yield {"q_lora_rank": None}
    if "head_dim" in fields and random.random() < 0.4:  # no part of the hidden size
        yield {"head_dim": random.choice((8, 16, 24, 32, 40, 64, 80))}
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict):
        yield {"rope_parameters": _rope(rope, fields, random)}


def _pattern(kinds: list[str], random: Random) -> list[str]:
    """Layers in another order, which still has every kind."""
    order = sorted(set(kinds))
    order += random.choices(order, k=len(kinds) - len(order))
    random.shuffle(order)
    return order


def _rope(rope: Fields, fields: Fields, random: Random) -> Fields:
    """Another base, scaling and rotated part; of each kind of layer, where they have their own."""
    if any(isinstance(value, dict) for value in rope.values()):
        nested = {kind: value for kind, value in rope.items() if isinstance(value, dict)}
        return rope | {kind: _rope(value, fields, random) for kind, value in nested.items()}
    changed = rope | {"rope_theta": random.choice((1e4, 5e5, 1e6))}
    if "partial_rotary_factor" in rope:
        changed["partial_rotary_factor"] = random.choice((0.25, 0.5, 0.75, 1.0))
    if rope.get("rope_type") != "default":
        return changed
    # vLLM takes any scaling of latent attention for YaRN.
    scalings = scalings_of(fields, random)
    kinds = ("default", "yarn") if "kv_lora_rank" in fields else ("default", *scalings)
    kind = random.choice(kinds)
    return changed | {"rope_type": kind} | scalings.get(kind, {})


def scalings_of(fields: Fields, random: Random) -> dict[str, Fields]:
    """Parameters of every scaling that vLLM knows."""
    original = {"original_max_position_embeddings": MAX_POSITIONS // 4}
    factor = {"factor": random.choice((2.0, 4.0, 8.0))}
    head_size = fields.get("head_dim") or SIZES.hidden_size // SIZES.num_heads
    rope = fields["rope_parameters"]
    pairs = int(head_size * rope.get("partial_rotary_factor", 1.0)) // 2
    return {
        "linear": factor,
        "dynamic": factor,
        "yarn": factor | original,
        "llama3": factor | original | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "longrope": {
            "factor": 2.0,
            "original_max_position_embeddings": MAX_POSITIONS // 2,
            "short_factor": [round(1 + 0.1 * pair, 1) for pair in range(pairs)],
            "long_factor": [round(2 + 0.5 * pair, 1) for pair in range(pairs)],
        },
    }
