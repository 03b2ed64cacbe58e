# SPDX-License-Identifier: Apache-2.0
"""What vLLM's state layers have in common."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.mamba.abstract import MambaBase

from vllm_metal.patches import replaces
from vllm_metal.recurrent import operators  # noqa: F401  defines torch.ops.vllm_metal
from vllm_metal.recurrent.metadata import MetalStateBackend

# Which of a layer's states is which, in the order of its `get_state_shape`.
CONV, SCAN = 0, 1


@replaces(MambaBase, "get_attn_backend")
def get_attn_backend(self: MambaBase) -> type[MetalStateBackend]:
    return MetalStateBackend


def convolve(layer: Any, x: torch.Tensor, conv: nn.Module, activation: str | None) -> torch.Tensor:
    """The layer's short convolution of x [num_tokens, channels], in the dtype of x."""
    weight = conv.weight.flatten(1)
    y = torch.ops.vllm_metal.causal_conv(x, weight, layer.prefix, CONV)
    if conv.bias is not None:
        y = y + conv.bias.float()
    if activation is not None:
        if activation not in ("silu", "swish"):
            raise NotImplementedError(f"a convolution followed by {activation}")
        y = F.silu(y)
    return y.to(x.dtype)
