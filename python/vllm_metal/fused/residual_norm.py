# SPDX-License-Identifier: Apache-2.0
"""RMS norms whose weight is applied before rounding, alone and around a scaled residual."""

import torch
from vllm.models.beam.nvidia import layernorm

from vllm_metal.patches import replaces_function


def rms_norm_float(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [.., n], weight [n] -> float32[.., n]."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.float()


@replaces_function(layernorm, "beam_rms_norm")
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [.., n], weight [n] -> [.., n] in x's dtype."""
    return rms_norm_float(x, weight, eps).to(x.dtype)


@replaces_function(layernorm, "beam_norm_residual_norm")
def norm_residual_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor,
    post_eps: float,
    next_weight: torch.Tensor | None,
    next_eps: float | None,
    scales: tuple[float, float],
    *,
    launch_pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x and residual [num_tokens, n] -> the new residual `a norm(x) + b residual`, with (a, b) =
    scales, and its norm by next_weight, where there is one."""
    normed = rms_norm_float(x, post_weight, post_eps).to(x.dtype)
    scaled = (residual.to(x.dtype).float() * scales[1]).to(x.dtype)
    hidden = (normed.float() * scales[0]).to(x.dtype) + scaled
    if next_weight is None:
        return hidden, None
    assert next_eps is not None
    return hidden, rms_norm_float(hidden, next_weight, next_eps).to(x.dtype)
