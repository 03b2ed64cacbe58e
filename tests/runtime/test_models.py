# SPDX-License-Identifier: Apache-2.0
"""Lowered models against vLLM's own in PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .lowered import lower

MODELS = ["llama", "llama_scaled_rope", "qwen2", "qwen3", "mistral", "phi3", "gemma2", "gemma3_text"]


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
