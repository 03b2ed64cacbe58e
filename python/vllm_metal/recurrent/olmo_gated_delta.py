# SPDX-License-Identifier: Apache-2.0
"""vLLM's gated delta net with a beta of up to 2."""

from collections.abc import Callable

import torch
from vllm.model_executor.layers.mamba.gdn import olmo_gdn_linear_attn
from vllm.model_executor.layers.mamba.gdn.olmo_gdn_linear_attn import (
    OlmoHybridGatedDeltaNetAttention,
)

from vllm_metal.patches import replaces
from vllm_metal.recurrent.gated_delta import gated_delta_net


@replaces(OlmoHybridGatedDeltaNetAttention, "forward")
def olmo_gated_delta_net(
    self: OlmoHybridGatedDeltaNetAttention, hidden_states: torch.Tensor, output: torch.Tensor
) -> None:
    qkvg = self.in_proj_qkvg(hidden_states)[0]
    value_size = self.value_dim // self.tp_size
    mixed_qkv, gate = qkvg.split([qkvg.shape[-1] - value_size, value_size], dim=-1)
    b, a = self.b_proj(hidden_states)[0], self.a_proj(hidden_states)[0]
    # A beta above 1 makes the eigenvalue along k negative (arXiv:2411.12537).
    y = gated_delta_net(self, mixed_qkv, b, a, 2.0 if self.allow_neg_eigval else 1.0)
    y = self.o_norm(y, gate.unflatten(-1, (-1, self.head_v_dim)))
    output.copy_(self.o_proj(y.flatten(1))[0])


_make_loader = olmo_gdn_linear_attn._make_fused_conv1d_weight_loader


@replaces(olmo_gdn_linear_attn, "_make_fused_conv1d_weight_loader")
def make_convolution_loader(
    dims: list[int], tp_size: int, tp_rank: int
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """vLLM's loader of the joint convolution, which waits for an argument that its caller has
    since put on the tensor."""
    load = _make_loader(dims, tp_size, tp_rank)
    return lambda parameter, tensor: load(parameter, tensor, tensor.shard_id)  # type: ignore[attr-defined]
