# SPDX-License-Identifier: Apache-2.0
"""Experts that compute nothing: vLLM's Triton kernel for them in PyTorch."""

import torch
from vllm.model_executor.layers.fused_moe.router import zero_expert_router

from vllm_metal.patches import replaces


@replaces(zero_expert_router, "zero_experts_compute_triton")
def zero_experts(
    expert_indices: torch.Tensor,
    expert_scales: torch.Tensor,
    num_experts: int,
    zero_expert_type: str,
    hidden_states: torch.Tensor,
) -> torch.Tensor:
    """What copying experts, those from `num_experts` on, add to each token.

    expert_indices [t, k], expert_scales float32 [t, k], hidden_states [t, m] -> [t, m].
    Raises NotImplementedError for experts that do not copy.
    """
    if zero_expert_type != "identity":
        raise NotImplementedError(f"zero experts of type {zero_expert_type}")
    scales = torch.where(expert_indices < num_experts, 0.0, expert_scales).sum(-1, keepdim=True)
    return (hidden_states.float() * scales).to(hidden_states.dtype)
