# SPDX-License-Identifier: Apache-2.0
"""vLLM's lightning attention as Bailing has it: rotary embedding, group norm and gate."""

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.mamba.linear.bailing_linear_attn import BailingMoELinearAttention

from vllm_metal.patches import replaces
from vllm_metal.recurrent import common
from vllm_metal.recurrent.lightning import lightning_attention

replaces(BailingMoELinearAttention, "get_attn_backend")(common.get_attn_backend)


@replaces(BailingMoELinearAttention, "forward")
def bailing_linear_attention(
    self: BailingMoELinearAttention,
    hidden_states: torch.Tensor,
    output: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    qkv = self.query_key_value(hidden_states)[0].float()
    qkv = F.silu(qkv) if self.linear_silu else qkv
    q, k, v = qkv.split(
        [self.q_size_per_rank, self.kv_size_per_rank, self.kv_size_per_rank], dim=-1
    )
    if self.use_qk_norm:
        heads = (-1, self.head_dim)
        norm = (self.head_dim,)
        q = F.rms_norm(
            q.unflatten(-1, heads), norm, self.query_layernorm.weight.float(), self.rms_norm_eps
        ).flatten(1)
        k = F.rms_norm(
            k.unflatten(-1, heads), norm, self.key_layernorm.weight.float(), self.rms_norm_eps
        ).flatten(1)
    if self.linear_rope:
        q, k = self.rotary_emb(positions, q, k)
    q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q * self.scaling, k, v))
    y = lightning_attention(self, q, k, v)
    gate = self.g_proj(hidden_states)[0]
    y = self.g_norm(y, gate) if self.group_norm_size > 1 else torch.sigmoid(gate) * self.g_norm(y)
    output.copy_(self.dense(y.to(hidden_states.dtype))[0])
