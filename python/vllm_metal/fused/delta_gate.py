# SPDX-License-Identifier: Apache-2.0
"""The decay of a delta rule that forgets by channel."""

import torch
import torch.nn.functional as F
from vllm.third_party.flash_linear_attention.ops import kda

from vllm_metal.patches import replaces_function


@replaces_function(kda, "fused_kda_gate")
def kda_gate(
    g: torch.Tensor,
    A: torch.Tensor,
    head_k_dim: int,
    g_bias: torch.Tensor | None = None,
    beta: float = 1.0,
    threshold: float = 20.0,
    lower_bound: float | None = None,
) -> torch.Tensor:
    """g [.., num_heads * head_k_dim], A of num_heads elements, g_bias [num_heads * head_k_dim] ->
    the logarithm of the decay, float32[.., num_heads, head_k_dim]: `-exp(A) softplus(g)`, or with
    a lower bound `lower_bound sigmoid(exp(A) g)`."""
    raw = g.float() if g_bias is None else g.float() + g_bias.float()
    raw = raw.unflatten(-1, (-1, head_k_dim))
    scale = A.float().exp().reshape(-1, 1)
    if lower_bound is not None:
        return lower_bound * torch.sigmoid(scale * raw)
    return -scale * F.softplus(raw, beta, threshold)
