# SPDX-License-Identifier: Apache-2.0
"""Lowered models against vLLM's own in PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_metal.capture import fill_parameters, prefill

from .lowered import lower

MODELS = [
    "llama",
    "llama_scaled_rope",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "gemma2",
    "gemma3_text",
]


@pytest.mark.parametrize("name", MODELS)
def test_prefill_chunks_and_decode_equal_pytorch(
    runtime: Any, build: Callable[..., Any], name: str
) -> None:
    lowered = lower(runtime, build, name)
    ids = torch.randint(0, 256, (40,), dtype=torch.int32)
    expected = lowered.oracle(ids).double()
    found = [lowered.run(ids[:7]), lowered.run(ids[:30], computed=7, padding=3)]
    found += [lowered.run(ids[: end + 1], computed=end) for end in range(30, 40)]
    error = (torch.cat(found).double() - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_near_to_the_truth_as_pytorch(
    runtime: Any, build: Callable[..., Any], name: str
) -> None:
    """The truth is float32 with the same, rounded weights; errors are of all logits together."""
    truth, truth_config = build(name, "float32")
    lowered = lower(runtime, build, name, "bfloat16")
    fill_parameters(truth)
    rounded = dict(lowered.torch_model.named_parameters())
    for path, parameter in truth.named_parameters():
        parameter.data.copy_(rounded[path].float())
    ids = torch.randint(0, 256, (60,), dtype=torch.int32)
    with prefill(truth_config, len(ids)):
        hidden = truth(ids, torch.arange(len(ids)), None, None)
        expected = truth.compute_logits(hidden)
    ours = (torch.cat([lowered.run(ids[:59]), lowered.run(ids, computed=59)]) - expected).norm()
    theirs = (lowered.oracle(ids).float() - expected).norm()
    assert 0 < ours < 1.5 * theirs, f"{ours} against {theirs}"
