# SPDX-License-Identifier: Apache-2.0
"""vLLM's Mamba-2 mixer."""

import torch
import torch.nn.functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_metal.patches import replaces
from vllm_metal.recurrent.common import SCAN, convolve


@replaces(MambaMixer2, "forward")
def mamba_2(
    self: MambaMixer2, hidden_states: torch.Tensor, mup_vector: torch.Tensor | None = None
) -> torch.Tensor:
    """Mamba-2 (arXiv:2405.21060), section 7."""
    projected, _ = self.in_proj(hidden_states)
    if mup_vector is not None:
        projected = projected * mup_vector
    gate, x, dt = projected.split(
        [self.tped_intermediate_size, self.tped_conv_size, self.tped_dt_size], dim=-1
    )
    x = convolve(self, x, self.conv1d, self.activation)
    x, b, c = self.split_hidden_states_B_C_fn(x)
    b, c = (part.unflatten(-1, (-1, self.ssm_state_size)) for part in (b, c))
    x = x.unflatten(-1, (-1, self.head_dim)).float()
    dt = F.softplus(dt.float() + self.dt_bias.float())
    y = torch.ops.vllm_metal.linear_scan(c, b, x * dt.unsqueeze(-1), dt * self.A, self.prefix, SCAN)
    y = y + self.D.float().unsqueeze(-1) * x
    y = self.norm(y.flatten(1).to(hidden_states.dtype), gate)
    return self.out_proj(y)[0]


@replaces(MambaMixer2, "get_kv_cache_spec")
def get_kv_cache_spec(self: MambaMixer2, vllm_config: VllmConfig) -> KVCacheSpec | None:
    """Without vLLM's claim that states are exported from inside a prefill: a step writes the state
    after its last token alone, and the scheduler ends prefills where it wants one cached."""
    return MambaBase.get_kv_cache_spec(self, vllm_config)
