# SPDX-License-Identifier: Apache-2.0
"""Gated delta nets (arXiv:2412.06464): what vLLM's layers of that family share."""

from typing import Any

import torch
import torch.nn.functional as F

from vllm_metal.recurrent.common import SCAN, convolve


def l2_normalise(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).sum(dim=-1, keepdim=True) + 1e-6)


def gated_delta_net(
    layer: Any, mixed_qkv: torch.Tensor, b: torch.Tensor, a: torch.Tensor, beta_scale: float = 1.0
) -> torch.Tensor:
    """Gated delta net (arXiv:2412.06464): [num_tokens, num_v_heads, head_v_dim] from what its
    projections give."""
    qkv = convolve(layer, mixed_qkv, layer.conv1d, layer.activation)
    key_size = layer.key_dim // layer.tp_size
    q, k, v = qkv.split([key_size, key_size, layer.value_dim // layer.tp_size], dim=-1)
    q, k = (l2_normalise(x.unflatten(-1, (-1, layer.head_k_dim))) for x in (q, k))
    v = v.unflatten(-1, (-1, layer.head_v_dim))
    decay = -layer.A_log.float().exp() * F.softplus(a.float() + layer.dt_bias.float())
    beta = torch.sigmoid(b.float()) * beta_scale
    y = torch.ops.vllm_metal.delta_scan(
        q * layer.head_k_dim**-0.5, k, v, decay, beta, layer.prefix, SCAN
    )
    return y.to(mixed_qkv.dtype)
