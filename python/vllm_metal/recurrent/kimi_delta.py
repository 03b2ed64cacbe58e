# SPDX-License-Identifier: Apache-2.0
"""vLLM's Kimi Delta Attention (arXiv:2510.26692): a delta rule with a decay for each channel."""

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.mamba.gdn.kimi_gdn_linear_attn import KimiGatedDeltaNetAttention

from vllm_metal.patches import replaces
from vllm_metal.recurrent.common import SCAN, convolve
from vllm_metal.recurrent.gated_delta import l2_normalise


@replaces(KimiGatedDeltaNetAttention, "_forward")
def kimi_delta_attention(
    self: KimiGatedDeltaNetAttention,
    mixed_qkv: torch.Tensor,
    g1: torch.Tensor,
    g2: torch.Tensor,
    beta: torch.Tensor,
    core_attn_out: torch.Tensor,
) -> None:
    """Fills core_attn_out [1, num_tokens, num_heads, head_dim]; g1 is the raw decay of that shape,
    g2 the output gate and beta [1, num_tokens, num_heads] the raw step."""
    qkv = convolve(self, mixed_qkv, self.conv1d, "silu").unflatten(-1, (3, -1, self.head_dim))
    q, k, v = qkv.unbind(1)
    q, k = l2_normalise(q), l2_normalise(k)
    raw = g1[0].float() + self.dt_bias.float().view(-1, self.head_dim)
    scale = self.A_log.float().exp().unsqueeze(-1)
    if self.gate_lower_bound is None:
        decay = -scale * F.softplus(raw)
    else:
        decay = self.gate_lower_bound * torch.sigmoid(scale * raw)
    y = torch.ops.vllm_metal.delta_scan(
        q * self.head_dim**-0.5,
        k,
        v,
        decay,
        torch.sigmoid(beta[0].float()),
        self.prefix,
        SCAN,
    )
    core_attn_out.copy_(self.o_norm.forward_native(y.to(mixed_qkv.dtype), g2).unsqueeze(0))
