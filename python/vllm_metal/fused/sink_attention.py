# SPDX-License-Identifier: Apache-2.0
"""An attention layer that vLLM ties to FlashInfer, on this platform's attention: queries and keys
with norm and position, sinks, windows on some layers. And the norms and the activation that go with
it, which are rounded once."""

from typing import Any

import torch
from torch import nn
from vllm.models.flint import model
from vllm.models.flint.ops import norm

from vllm_metal.fused.activation import silu_mul
from vllm_metal.fused.attention_inputs import norm_and_rotate
from vllm_metal.fused.residual_norm import rms_norm, rms_norm_float
from vllm_metal.patches import replaces, replaces_function

replaces_function(norm, "rms_norm")(rms_norm)
replaces_function(norm, "silu_and_mul")(silu_mul)


@replaces(norm.RMSNorm, "forward")
def add_rms_norm(
    self: norm.RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x [.., n], normed; with a residual their sum is, and is returned too."""
    if residual is None:
        return rms_norm(x, self.weight, self.variance_epsilon)
    total = x.float() + residual.float()
    y = rms_norm_float(total, self.weight, self.variance_epsilon)
    return y.to(x.dtype), total.to(x.dtype)


@replaces(model.FlintAttention, "__init__")
def build(
    self: model.FlintAttention,
    config: Any,
    layer_idx: int,
    cache_config: Any,
    quant_config: Any,
    prefix: str = "",
) -> None:
    nn.Module.__init__(self)
    self.head_dim = config.head_dim
    self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    self.q_size = self.num_heads * self.head_dim
    self.kv_size = self.num_kv_heads * self.head_dim
    self.qkv_proj = model.QKVParallelLinear(
        config.hidden_size,
        self.head_dim,
        self.num_heads,
        self.num_kv_heads,
        bias=config.attention_bias,
        quant_config=quant_config,
        prefix=f"{prefix}.qkv_proj",
    )
    self.o_proj = model.RowParallelLinear(
        self.q_size,
        config.hidden_size,
        bias=False,
        quant_config=quant_config,
        prefix=f"{prefix}.o_proj",
    )
    self.q_norm = norm.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
    self.k_norm = norm.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
    self.rotary_emb = None
    if layer_idx not in config.no_rope_layer_indices:
        self.rotary_emb = model.get_rope(
            self.head_dim,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            dtype=torch.float32,
        )
    slides = config.layer_types[layer_idx] == "sliding_attention"
    self.softmax_offset = model.make_attention_sink(self.num_heads, torch.float32)
    self.attn = model.Attention(
        self.num_heads,
        self.head_dim,
        self.head_dim**-0.5,
        num_kv_heads=self.num_kv_heads,
        cache_config=cache_config,
        quant_config=quant_config,
        per_layer_sliding_window=config.sliding_window if slides else None,
        prefix=f"{prefix}.attn",
        sinks=self.softmax_offset,
    )
    self.flint_decode = False


@replaces(model.FlintAttention, "forward")
def attend(
    self: model.FlintAttention, positions: torch.Tensor, hidden_states: torch.Tensor
) -> torch.Tensor:
    qkv = self.qkv_proj(hidden_states)[0]
    q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
    table = self._cos_sin()
    q = norm_and_rotate(q, self.q_norm.weight, self.q_norm.variance_epsilon, positions, table)
    k = norm_and_rotate(k, self.k_norm.weight, self.k_norm.variance_epsilon, positions, table)
    return self.o_proj(self.attn(q, k, v))[0]
