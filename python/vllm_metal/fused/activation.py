# SPDX-License-Identifier: Apache-2.0
"""A gated activation and a soft cap that are rounded once."""

import torch
import torch.nn.functional as F
from vllm.models.beam.nvidia import activation

from vllm_metal.patches import replaces_function


@replaces_function(activation, "beam_silu_mul")
def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """x [.., 2n], gates before ups -> [.., n]."""
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype)


@replaces_function(activation, "beam_softcap_logits")
def softcap_logits(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """`cap * tanh(logits / cap)`, written to logits [num_tokens, vocab_size]."""
    return logits.copy_(torch.tanh(logits.float() * (1.0 / cap)) * cap)
