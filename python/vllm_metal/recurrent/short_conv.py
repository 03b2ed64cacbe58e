# SPDX-License-Identifier: Apache-2.0
"""vLLM's gated short convolution (LFM2)."""

import torch
from vllm.model_executor.layers.mamba.short_conv import ShortConv

from vllm_metal.patches import replaces
from vllm_metal.recurrent.common import convolve


@replaces(ShortConv, "forward")
def short_conv(self: ShortConv, hidden_states: torch.Tensor, output: torch.Tensor) -> None:
    b, c, x = self.in_proj(hidden_states)[0].chunk(3, dim=-1)
    output.copy_(self.out_proj(c * convolve(self, b * x, self.conv, None))[0])
