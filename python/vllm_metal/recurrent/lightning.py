# SPDX-License-Identifier: Apache-2.0
"""Lightning attention: what vLLM's layers of that family share."""

from typing import Any

import torch

from vllm_metal.recurrent import common  # noqa: F401  all state layers have its metadata


def lightning_attention(
    layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Linear attention with a constant decay for each head (arXiv:2401.04658): float32
    [num_tokens, num_heads * head_dim]."""
    decay = -layer.tp_slope.view(1, -1).expand(q.shape[0], -1)
    return torch.ops.vllm_metal.linear_scan(q, k, v, decay, layer.prefix, 0).flatten(1)
