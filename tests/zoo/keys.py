# SPDX-License-Identifier: Apache-2.0
"""Configuration keys that real checkpoints carry and Hugging Face's classes do not define.

A key is written only to a configuration that vLLM found it missing from.
"""

from typing import Any

VALUES: dict[str, Any] = {
    "score_func": "sigmoid",
    "route_norm": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
