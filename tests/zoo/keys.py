# SPDX-License-Identifier: Apache-2.0
"""Configuration keys that real checkpoints carry and Hugging Face's classes do not define.

A key is written only to a configuration that vLLM found it missing from.
"""

from typing import Any

from zoo.shrink import HIDDEN_SIZE

VALUES: dict[str, Any] = {
    "score_func": "sigmoid",
    "route_norm": True,
    "block_dim": HIDDEN_SIZE,
    "conv_dim": HIDDEN_SIZE,
    "head_dim": 16,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "rotary_dim": 16,
    "first_k_dense_replace": 1,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
