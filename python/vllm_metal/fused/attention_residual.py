# SPDX-License-Identifier: Apache-2.0
"""Residual streams that attend over the outputs of earlier blocks of layers."""

from importlib import import_module

import torch

from vllm_metal.fused.residual_norm import rms_norm_float
from vllm_metal.patches import replaces_function


# The package has a function of the module's name.
@replaces_function(import_module("vllm.models.kimi_k3.nvidia.ops.attn_res"), "attn_res")
def attention_residual(
    prefix: torch.Tensor,
    delta: torch.Tensor | None,
    blocks: torch.Tensor,
    norm_weight: torch.Tensor,
    qk_weight: torch.Tensor,
    output_norm_weight: torch.Tensor | None,
    num_blocks: int,
    block_write_idx: int,
    eps: float,
    output_norm_eps: float,
) -> torch.Tensor:
    """A mixture of the first num_blocks of blocks [num_tokens, b, n] and of prefix [num_tokens, n],
    to which delta is added: weights are the softmax of `rms_norm(source) . qk_weight`. The new
    prefix is written to prefix, and to a block where block_write_idx is not negative. Result
    [num_tokens, n], normed where there is an output_norm_weight."""
    if delta is not None:
        prefix.copy_(prefix + delta)
    if block_write_idx >= 0:
        blocks[:, block_write_idx].copy_(prefix)
    mixed = prefix.float()
    if num_blocks > 0:
        sources = torch.cat([blocks[:, :num_blocks], prefix.unsqueeze(1)], dim=1).float()
        scores = (rms_norm_float(sources, norm_weight, eps) * qk_weight.float()).sum(dim=-1)
        mixed = (scores.softmax(dim=-1).unsqueeze(-1) * sources).sum(dim=1)
    if output_norm_weight is not None:
        mixed = rms_norm_float(mixed, output_norm_weight, output_norm_eps)
    return mixed.to(prefix.dtype)
