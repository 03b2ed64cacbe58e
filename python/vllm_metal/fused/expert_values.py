# SPDX-License-Identifier: Apache-2.0
"""Attention values from a mixture of experts."""

from typing import Any

import torch
import torch.nn.functional as F
from vllm.model_executor.models import k2_horizon

from vllm_metal.layers.moe import expert_matmul
from vllm_metal.patches import replaces, replaces_function


@replaces_function(k2_horizon, "fused_mova_impl")
def expert_values(
    config: Any,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    global_num_experts: int = -1,
    expert_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sum_i topk_weights[:, i] silu(w1[topk_ids[:, i]] x)`: x [num_tokens, m], w1 [e, n, m],
    topk_weights and topk_ids [num_tokens, k] -> [num_tokens, n]."""
    if expert_map is not None:
        raise NotImplementedError("experts on several devices")
    values = F.silu(expert_matmul(hidden_states.unsqueeze(1), w1, topk_ids))
    return (values * topk_weights.unsqueeze(-1).to(values.dtype)).sum(dim=1)


@replaces(k2_horizon.K2HorizonRMSNorm, "forward")
def group_rms_norm(
    self: k2_horizon.K2HorizonRMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x [.., n_groups * group_size], normed by group; with a residual also their sum."""
    if residual is not None:
        x = residual = x + residual
    groups = x.float().unflatten(-1, (self.n_groups, self.group_size))
    scale = torch.rsqrt(groups.square().mean(dim=-1, keepdim=True) + self.variance_epsilon)
    y = (groups * scale).to(x.dtype).flatten(-2) * self.weight
    return y if residual is None else (y, residual)
