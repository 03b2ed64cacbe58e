# SPDX-License-Identifier: Apache-2.0
"""The KV cache: updated in place, checked, and shared where vLLM shares it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_metal._native import core

from .lowered import NUM_BLOCKS, lower


def test_a_step_copies_no_cache(runtime: Any, build: Callable[..., Any]) -> None:
    """MLX's peak counter: with caches of 64 MB a layer, a step needs next to nothing more."""
    lowered = lower(runtime, build, "qwen3")
    layers = lowered.plan.layers
    num_blocks = (64 << 20) // (16 * 2 * 32 * 4)
    size = lowered.model.allocate_kv_cache(dict.fromkeys(layers, (num_blocks, 16, "float32")))
    assert size >= len(layers) * 64 << 20
    ids = torch.randint(0, 256, (30,), dtype=torch.int32)
    lowered.run(ids[:20])
    for end in range(20, 30):
        runtime.reset_peak()
        before = runtime.memory()["active"]
        lowered.run(ids[: end + 1], computed=end)
        extra = runtime.memory()["peak"] - before
        assert extra < 1 << 20, f"{extra} bytes more than the caches"


def test_steps_that_are_not_read_copy_no_cache_either(
    runtime: Any, build: Callable[..., Any]
) -> None:
    """A chunk of a prompt is followed by another without anything being sampled."""
    lowered = lower(runtime, build, "llama")
    num_blocks = (64 << 20) // (16 * 2 * 32 * 4)
    lowered.model.allocate_kv_cache(dict.fromkeys(lowered.plan.layers, (num_blocks, 16, "float32")))
    ids = torch.randint(0, 256, (40,), dtype=torch.int32)
    expected = lowered.oracle(ids)
    runtime.reset_peak()
    before = runtime.memory()["active"]
    handles = [lowered.step(ids[: start + 10], computed=start) for start in range(0, 40, 10)]
    logits = torch.from_dlpack(lowered.model.logits(handles[-1]))
    assert runtime.memory()["peak"] - before < 1 << 20
    assert torch.allclose(logits, expected[30:], atol=1e-5)


def test_caches_may_be_shared_by_layers_with_blocks_of_their_own(
    runtime: Any, build: Callable[..., Any]
) -> None:
    lowered = lower(runtime, build, "gemma2")
    first, second = lowered.plan.layers
    pages = (2 * NUM_BLOCKS, 16, "float32")
    alone = lowered.model.allocate_kv_cache({first: pages, second: pages})
    shared = lowered.model.allocate_kv_cache({first: pages, second: pages}, [[first, second]])
    assert alone == 2 * shared
    ids = torch.randint(0, 256, (40,), dtype=torch.int32)
    offsets = {first: 0, second: NUM_BLOCKS}
    found = torch.cat(
        [lowered.run(ids[:33], offsets=offsets), lowered.run(ids, computed=33, offsets=offsets)]
    )
    assert torch.allclose(found, lowered.oracle(ids), atol=1e-5)


def test_wrong_caches_are_refused(runtime: Any, build: Callable[..., Any]) -> None:
    model = lower(runtime, build, "llama").model
    good = (4, 16, "float32")
    for layers, shared, message in [
        ({"model.layers.9": good}, [], 'no layer "model.layers.9"'),
        ({"model.layers.0.self_attn.attn": (4, 16, "fp7")}, [], 'dtype "fp7"'),
        ({"model.layers.0.self_attn.attn": (4, 16, "int8")}, [], "in int8"),
        ({}, [["model.layers.0.self_attn.attn"]], "is not given"),
        ({"model.layers.0.self_attn.attn": (4, 0, "float32")}, [], "4 blocks of 0 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.allocate_kv_cache(layers, shared)
    with pytest.raises(MemoryError, match="allocate fewer blocks"):
        model.allocate_kv_cache({"model.layers.0.self_attn.attn": (1 << 26, 16, "float32")})


def test_metadata_outside_the_cache_is_refused_and_the_server_goes_on(
    runtime: Any, build: Callable[..., Any]
) -> None:
    lowered = lower(runtime, build, "llama")
    ids = torch.randint(0, 256, (4,), dtype=torch.int32)
    before = lowered.run(ids)

    def attend(**changes: Any) -> Any:
        good = {
            "block_table": torch.zeros(1, 1, dtype=torch.int32),
            "slot_mapping": torch.arange(4),
            "query_start_loc": torch.tensor([0, 4]),
            "seq_lens": torch.tensor([4]),
            "num_actual_tokens": 4,
        }
        metadata = core.AttentionMetadata(**{**good, **changes})
        inputs = {"input_ids": ids, "positions": torch.arange(4)}
        return lowered.model.step(inputs, dict.fromkeys(lowered.plan.layers, metadata))

    for changes, message in [
        ({"block_table": torch.tensor([[NUM_BLOCKS]])}, f"request 0 has block {NUM_BLOCKS}"),
        ({"slot_mapping": torch.tensor([0, 1, 2, 1 << 40])}, "token 3 has slot"),
        ({"seq_lens": torch.tensor([17])}, "its 1 blocks hold 16"),
        ({"num_actual_tokens": 5}, "5 of 4 tokens"),
        ({"block_table": torch.zeros(3)}, "two axes expected"),
        ({"query_start_loc": torch.zeros(2)}, "integers expected and float32 given"),
        ({"causal": [True, False]}, "2 entries for 1 requests"),
    ]:
        with pytest.raises(ValueError, match=message):
            attend(**changes)
    with pytest.raises(ValueError, match="element 0 is 256, and it must be from 0 to 255"):
        lowered.run(torch.tensor([256], dtype=torch.int32))
    assert torch.equal(lowered.run(ids), before)
    assert len(attend(causal=[False])) == 4
