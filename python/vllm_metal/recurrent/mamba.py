# SPDX-License-Identifier: Apache-2.0
"""vLLM's Mamba mixer."""

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer

from vllm_metal.patches import replaces
from vllm_metal.recurrent.common import SCAN, convolve


@replaces(MambaMixer, "forward")
def mamba_1(self: MambaMixer, hidden_states: torch.Tensor, output: torch.Tensor) -> None:
    """Mamba (arXiv:2312.00752), algorithm 2."""
    x, gate = self.in_proj(hidden_states)[0].chunk(2, dim=-1)
    x = convolve(self, x, self.conv1d, self.activation)
    dt, b, c = self._ssm_transform(x)
    bias = self._time_proj_bias()
    dt = dt.transpose(-2, -1).float()
    dt = F.softplus(dt if bias is None else dt + bias)
    y = torch.ops.vllm_metal.selective_scan(x, dt, self.A, b, c, self.prefix, SCAN)
    y = (y + self.D.float() * x.float()) * F.silu(gate.float())
    output.copy_(self.out_proj(y.to(hidden_states.dtype))[0])
