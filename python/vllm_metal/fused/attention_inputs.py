# SPDX-License-Identifier: Apache-2.0
"""What stands around an attention: queries and keys with norm and position, and an output gate."""

import torch
from vllm.models.beam.nvidia import attention_ops

from vllm_metal.fused.residual_norm import rms_norm
from vllm_metal.patches import replaces_function


@replaces_function(attention_ops, "beam_qk_norm_rope")
def qk_norm_rope(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor | None,
    head_dim: int,
    rotary_dim: int = 0,
    is_neox_style: bool = True,
    *,
    ssmax: bool = False,
    value: torch.Tensor | None = None,
    kv_cache: torch.Tensor | None = None,
    slot_mapping: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [num_tokens, num_heads * head_dim] and k [num_tokens, num_kv_heads * head_dim], normed by
    head; then rotated by a table [max_position, rotary_dim] of cosines and sines, or, with `ssmax`,
    queries times `(1 + (position + 1) / 2048) ** 0.1`. Keys are not written to a cache here."""
    if kv_cache is not None:
        raise NotImplementedError("keys that are written to the cache together with their norm")
    q = rms_norm(q.unflatten(-1, (-1, head_dim)), q_weight, eps)
    k = rms_norm(k.unflatten(-1, (-1, head_dim)), k_weight, eps)
    if rotary_dim:
        assert cos_sin_cache is not None
        cos, sin = cos_sin_cache[positions].float().unsqueeze(1).chunk(2, dim=-1)
        q, k = (_rotate(x, cos, sin, rotary_dim, is_neox_style) for x in (q, k))
    elif ssmax:
        scale = torch.exp(0.1 * torch.log1p((positions.float() + 1) / 2048.0))
        q = (q.float() * scale[:, None, None]).to(q.dtype)
    return q.flatten(1), k.flatten(1)


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary_dim: int, is_neox_style: bool
) -> torch.Tensor:
    turned, rest = x[..., :rotary_dim].float(), x[..., rotary_dim:]
    if is_neox_style:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


@replaces_function(attention_ops, "beam_output_gate")
def output_gate(
    attn_output: torch.Tensor,
    gate: torch.Tensor,
    gate_bias: torch.Tensor,
    *,
    num_heads: int,
    head_dim: int,
) -> torch.Tensor:
    """`attn_output * sigmoid(gate + gate_bias)`: [num_tokens, num_heads * head_dim] twice, and a
    bias [num_heads]."""
    raw = gate.unflatten(-1, (num_heads, head_dim)).float() + gate_bias.float().unsqueeze(-1)
    weight = torch.sigmoid(raw.to(gate.dtype).float()).to(gate.dtype).float().flatten(1)
    return (attn_output.float() * weight).to(attn_output.dtype)
