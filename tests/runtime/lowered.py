# SPDX-License-Identifier: Apache-2.0
"""A vLLM model and the same model lowered, side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig

from vllm_metal._native import core
from vllm_metal.capture import capture, fill_parameters, prefill

BLOCK_SIZE = 16
NUM_BLOCKS = 8


@dataclass
class Lowered:
    """The model, what it was lowered to, and both runs of it."""

    torch_model: nn.Module
    vllm_config: VllmConfig
    plan: Any
    model: Any

    def oracle(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of all tokens of one request, by vLLM's model in PyTorch."""
        positions = torch.arange(len(ids))
        with prefill(self.vllm_config, len(ids)):
            hidden = self.torch_model(ids, positions, None, None)
            return self.torch_model.compute_logits(hidden)

    def step(
        self,
        ids: torch.Tensor,
        computed: int = 0,
        padding: int = 0,
        offsets: Mapping[str, int] | None = None,
    ) -> Any:
        """Hidden states of the tokens of one request from ``computed`` on, lowered and lazy. The
        request's blocks start at a layer's offset."""
        new = len(ids) - computed
        positions = torch.arange(computed, len(ids))

        def metadata(offset: int) -> Any:
            slots = positions + offset * BLOCK_SIZE
            return core.AttentionMetadata(
                block_table=torch.arange(NUM_BLOCKS, dtype=torch.int32)[None] + offset,
                slot_mapping=torch.cat([slots, torch.full((padding,), -1)]),
                query_start_loc=torch.tensor([0, new], dtype=torch.int32),
                seq_lens=torch.tensor([len(ids)], dtype=torch.int32),
                num_actual_tokens=new,
            )

        offsets = offsets or dict.fromkeys(self.plan.layers, 0)
        groups = {offset: metadata(offset) for offset in offsets.values()}
        inputs = {
            "input_ids": torch.cat([ids[computed:], ids.new_zeros(padding)]),
            "positions": torch.cat([positions, positions.new_zeros(padding)]),
        }
        return self.model.step(inputs, {name: groups[offsets[name]] for name in self.plan.layers})

    def run(self, ids: torch.Tensor, computed: int = 0, **options: Any) -> torch.Tensor:
        """Logits of the tokens from ``computed`` on."""
        hidden = self.step(ids, computed, **options)
        logits = self.model.logits(hidden, torch.arange(len(ids) - computed))
        return torch.from_dlpack(logits)


def lower(
    runtime: Any,
    build: Callable[..., Any],
    name: str,
    dtype: str = "float32",
    change: Mapping[str, float] | None = None,
    kept_shapes: int = 32,
) -> Lowered:
    """Capture, lower and load the tiny model of that name with random weights, or with all elements
    of some weights changed to a number."""
    torch_model, vllm_config = build(name, dtype)
    captured = capture(torch_model, vllm_config)
    fill_parameters(torch_model)
    for path, value in (change or {}).items():
        torch_model.get_parameter(path).data.fill_(value)
    plan = core.lower(captured.document, {"refuse_fallback": True})
    parameters = {**captured.buffers, **dict(torch_model.named_parameters())}
    model = runtime.load(plan, parameters, kept_shapes=kept_shapes)
    model.allocate_kv_cache(dict.fromkeys(plan.layers, (NUM_BLOCKS, BLOCK_SIZE, dtype)))
    return Lowered(torch_model, vllm_config, plan, model)
