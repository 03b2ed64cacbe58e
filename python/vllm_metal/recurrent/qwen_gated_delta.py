# SPDX-License-Identifier: Apache-2.0
"""vLLM's gated delta net with joint projections."""

import torch
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention

from vllm_metal.patches import replaces
from vllm_metal.recurrent.gated_delta import gated_delta_net


@replaces(QwenGatedDeltaNetAttention, "forward")
def qwen_gated_delta_net(
    self: QwenGatedDeltaNetAttention, hidden_states: torch.Tensor
) -> torch.Tensor:
    if hasattr(self, "in_proj_qkv"):  # kept apart for adapters
        mixed_qkv, z = self.in_proj_qkv(hidden_states)[0], self.in_proj_z(hidden_states)[0]
        ba = self.in_proj_ba(hidden_states)[0]
        z = z.unflatten(-1, (-1, self.head_v_dim))
        b, a = self.split_ba(ba)
        return self._output_projection(gated_delta_net(self, mixed_qkv, b, a), z)
    qkvz, ba = self.in_proj_qkvz(hidden_states)[0], self.in_proj_ba(hidden_states)[0]
    if self.gqa_interleaved_layout:
        q, k, v, z, b, a = self.fix_query_key_value_ordering(qkvz, ba)
        mixed_qkv = torch.cat([x.flatten(1) for x in (q, k, v)], dim=-1)
    else:
        value_size = self.value_dim // self.tp_size
        mixed_qkv, z = qkvz.split([qkvz.shape[-1] - value_size, value_size], dim=-1)
        z = z.unflatten(-1, (-1, self.head_v_dim))
        b, a = self.split_ba(ba)
    return self._output_projection(gated_delta_net(self, mixed_qkv, b, a), z)
