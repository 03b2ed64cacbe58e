# SPDX-License-Identifier: Apache-2.0
"""vLLM's delta attention with a decay for each channel as Bailing has it: without low-rank gates,
and with a convolution for each of q, k and v."""

from types import SimpleNamespace

import torch
from vllm.model_executor.models.bailing_moe_v3 import BailingMoeV3KimiDeltaAttention

from vllm_metal.fused.delta_gate import kda_gate
from vllm_metal.patches import replaces
from vllm_metal.recurrent import common
from vllm_metal.recurrent.gated_delta import l2_normalise

replaces(BailingMoeV3KimiDeltaAttention, "get_attn_backend")(common.get_attn_backend)


@replaces(BailingMoeV3KimiDeltaAttention, "forward")
def delta_attention(
    self: BailingMoeV3KimiDeltaAttention,
    hidden_states: torch.Tensor,
    positions: torch.Tensor,
    output: torch.Tensor,
) -> None:
    size = 3 * self.projection_size_per_partition
    if self.separate_b_proj:
        qkv, raw_beta = self.qkv_proj(hidden_states)[0], self.b_proj(hidden_states)[0]
    else:
        qkv, raw_beta = self.qkvb_proj(hidden_states)[0].split([size, self.local_num_heads], dim=-1)
    convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
    joint = SimpleNamespace(weight=torch.cat([conv.weight for conv in convolutions]), bias=None)
    qkv = common.convolve(self, qkv, joint, "silu").unflatten(-1, (3, -1, self.head_dim))
    q, k, v = qkv.unbind(1)
    decay = kda_gate(
        self.f_proj(hidden_states)[0],
        self.A_log,
        self.head_dim,
        self.dt_bias,
        lower_bound=self.lower_bound if self.safe_gate else None,
    )
    y = torch.ops.vllm_metal.delta_scan(
        l2_normalise(q) * self.head_dim**-0.5,
        l2_normalise(k),
        v,
        decay,
        torch.sigmoid(raw_beta.float()),
        self.prefix,
        common.SCAN,
    )
    gate = self.g_proj(hidden_states)[0].unflatten(-1, (-1, self.head_dim))
    y = self.o_norm.forward_native(y.to(hidden_states.dtype), gate)
    output.copy_(self.o_proj(y.flatten(1))[0])
