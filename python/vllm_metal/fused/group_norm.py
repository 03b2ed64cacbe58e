# SPDX-License-Identifier: Apache-2.0
"""Layer and RMS norms of groups of channels, with a gate before or behind."""

import torch
from vllm.third_party.flash_linear_attention.ops import layernorm_guard

from vllm_metal.patches import replaces_function


@replaces_function(layernorm_guard, "layer_norm_fwd")
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    z: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> tuple[torch.Tensor, None, None]:
    """x and the gate z [num_rows, n], weight and bias [n] -> (out [num_rows, n] in x's dtype,
    None, None); the statistics in the two last places serve no inference."""
    y = x.float()
    gate = None if z is None else _gate(z.float(), activation)
    if gate is not None and not norm_before_gate:
        y = y * gate
    groups = y.unflatten(-1, (-1, group_size or x.shape[-1]))
    if not is_rms_norm:
        groups = groups - groups.mean(dim=-1, keepdim=True)
    y = (groups * torch.rsqrt(groups.square().mean(dim=-1, keepdim=True) + eps)).flatten(1)
    y = y * weight.float()
    if bias is not None:
        y = y + bias.float()
    if gate is not None and norm_before_gate:
        y = y * gate
    result = y.to(x.dtype)
    return result if out is None else out.copy_(result), None, None


def _gate(z: torch.Tensor, activation: str) -> torch.Tensor:
    if activation in ("swish", "silu"):
        return z * torch.sigmoid(z)
    if activation == "sigmoid":
        return torch.sigmoid(z)
    raise NotImplementedError(f"a norm with the gate {activation}")
