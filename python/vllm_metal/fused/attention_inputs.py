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
    table = cos_sin_cache if rotary_dim else None
    q = norm_and_rotate(q, q_weight, eps, positions, table, is_neox_style)
    k = norm_and_rotate(k, k_weight, eps, positions, table, is_neox_style)
    if ssmax and table is None:
        scale = torch.exp(0.1 * torch.log1p((positions.float() + 1) / 2048.0))
        q = (q.float() * scale[:, None]).to(q.dtype)
    return q, k


def norm_and_rotate(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    positions: torch.Tensor,
    table: torch.Tensor | None,
    is_neox_style: bool = True,
) -> torch.Tensor:
    """x [num_tokens, heads * head_dim], normed by head with weight [head_dim], and rotated by the
    cosines and sines of a table [max_position, rotary_dim]."""
    x = rms_norm(x.unflatten(-1, (-1, weight.shape[0])), weight, eps)
    return (x if table is None else _rotate(x, table[positions], is_neox_style)).flatten(1)


def _rotate(x: torch.Tensor, angles: torch.Tensor, is_neox_style: bool) -> torch.Tensor:
    cos, sin = angles.float().unsqueeze(1).chunk(2, dim=-1)
    turned, rest = x[..., : angles.shape[-1]].float(), x[..., angles.shape[-1] :]
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
