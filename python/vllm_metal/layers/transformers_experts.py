# SPDX-License-Identifier: Apache-2.0
"""Experts of models that vLLM takes from transformers, without the opaque operators around them."""

from typing import Any

import torch
from vllm.model_executor.models.transformers.moe import TransformersMoERunner

from vllm_metal.layers.moe import MetalMoERunner
from vllm_metal.patches import replaces

replaces(TransformersMoERunner, "_select_forward")(MetalMoERunner._select_forward)


@replaces(TransformersMoERunner, "forward")
def forward(
    self: TransformersMoERunner,
    hidden_states: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    **others: Any,
) -> torch.Tensor:
    """hidden_states [t, m], topk_ids and topk_weights [t, k], which transformers' router chose
    -> [t, m]."""
    self._moe_state.topk_ids = topk_ids.to(torch.int32)
    try:
        return self._forward_super(hidden_states, topk_weights.to(torch.float32))
    finally:
        self._moe_state.topk_ids = None
