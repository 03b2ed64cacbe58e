# SPDX-License-Identifier: Apache-2.0
"""Tiny configurations, one per architecture, as a hub's ``config.json`` writes them."""

import json
from pathlib import Path
from typing import Any

_DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
_GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
_GEMMA_ACT = {"hidden_activation": "gelu_pytorch_tanh"}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 128}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], **_DENSE},
    "llama_scaled_rope": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_DENSE,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], **_DENSE},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        **_DENSE,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], **_DENSE, "sliding_window": 8},
    "phi3": {"architectures": ["Phi3ForCausalLM"], **_DENSE, "pad_token_id": 0},
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        **_DENSE,
        **_GEMMA,
        **_GEMMA_ACT,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "architectures": ["Gemma3ForCausalLM"],
        **_DENSE,
        **_GEMMA,
        **_GEMMA_ACT,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "cohere": {"architectures": ["CohereForCausalLM"], **_DENSE, "logit_scale": 0.25},
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        **_DENSE,
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    },
    "gptj": {"architectures": ["GPTJForCausalLM"], **_GPT, "rotary_dim": 8},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], **_GPT},
    "bloom": {
        "architectures": ["BloomForCausalLM"],
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
    },
    "falcon": {
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 128,
    },
    "glm": {
        "architectures": ["GlmForCausalLM"],
        **_DENSE,
        "head_dim": 16,
        "pad_token_id": 0,
    },
}
"""Model type -> configuration. ``glm`` runs on vLLM's Transformers back-end."""


def write_config(name: str, directory: Path) -> Path:
    """Write the configuration; gives the path of its ``config.json``."""
    config = {"model_type": name, **CONFIGS[name], "torch_dtype": "float32"}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path
