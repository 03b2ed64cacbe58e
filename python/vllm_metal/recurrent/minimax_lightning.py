# SPDX-License-Identifier: Apache-2.0
"""vLLM's lightning attention as MiniMax-Text-01 has it."""

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.mamba.linear.minimax_linear_attn import (
    MiniMaxText01LinearAttention,
)

from vllm_metal.patches import replaces
from vllm_metal.recurrent.lightning import lightning_attention


@replaces(MiniMaxText01LinearAttention, "forward")
def minimax_linear_attention(
    self: MiniMaxText01LinearAttention,
    hidden_states: torch.Tensor,
    output: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    qkv = F.silu(self.qkv_proj(hidden_states)[0].float())
    q, k, v = qkv.unflatten(-1, (self.tp_heads, -1)).split([self.head_dim] * 3, dim=-1)
    y = self.norm._forward(lightning_attention(self, q, k, v))
    y = torch.sigmoid(self.output_gate(hidden_states)[0]) * y
    output.copy_(self.out_proj(y.to(hidden_states.dtype))[0])
