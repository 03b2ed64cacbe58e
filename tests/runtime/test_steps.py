# SPDX-License-Identifier: Apache-2.0
"""Decode steps are replayed, give what steps that are built give, and cost one call each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_metal._native import core

from .lowered import BLOCK_SIZE, Lowered, lower

NUM_BLOCKS = 72
MAX_POSITIONS = 128


def decode_inputs(
    lowered: Lowered, lengths: list[int], ids: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and metadata of a step of one token of requests of so many tokens, that included."""
    blocks = NUM_BLOCKS // len(lengths)
    table = torch.arange(len(lengths) * blocks, dtype=torch.int32).view(len(lengths), blocks)
    positions = torch.tensor(lengths) - 1
    slots = table[torch.arange(len(lengths)), positions // BLOCK_SIZE] * BLOCK_SIZE
    metadata = core.AttentionMetadata(
        block_table=table,
        slot_mapping=slots + positions % BLOCK_SIZE,
        query_start_loc=torch.arange(len(lengths) + 1, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_actual_tokens=len(lengths),
    )
    # The tiny models' rotations know few positions.
    inputs = {"input_ids": ids, "positions": positions % MAX_POSITIONS}
    return inputs, dict.fromkeys(lowered.plan.layers, metadata)


def decode(lowered: Lowered, lengths: list[int], ids: torch.Tensor) -> torch.Tensor:
    """Logits of the next token, in one call."""
    inputs, attention = decode_inputs(lowered, lengths, ids)
    rows = torch.arange(len(lengths))
    _, logits = lowered.model.step_with_logits(inputs, attention, rows)
    return torch.utils.dlpack.from_dlpack(logits)


def allocate(lowered: Lowered, dtype: str = "float32") -> None:
    size = (NUM_BLOCKS, BLOCK_SIZE, dtype)
    lowered.model.allocate_kv_cache(dict.fromkeys(lowered.plan.layers, size))


def counted(runtime: Any, since: dict[str, int]) -> dict[str, int]:
    now = runtime.counters()
    return {name: now[name] - since[name] for name in now}


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_give_the_same_bits(
    runtime: Any, build: Callable[..., Any], name: str, dtype: str
) -> None:
    """Two models of the same weights, one of which keeps no graphs; requests of different lengths
    pass boundaries of the padding, and one leaves and comes back."""
    replaying = lower(runtime, build, name, dtype)
    building = lower(runtime, build, name, dtype, kept_shapes=0)
    for lowered in (replaying, building):
        allocate(lowered, dtype)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        lengths = [step + 1, step + 40, step + 100][: 3 - step // 15 % 2]
        ids = torch.randint(0, 256, (len(lengths),), generator=generator, dtype=torch.int32)
        found = decode(replaying, lengths, ids).clone()
        assert torch.equal(found, decode(building, lengths, ids)), f"step {step}"
    counters = runtime.counters()
    assert counters["replayed"] >= 20
    assert counters["direct"] + counters["traced"] + counters["replayed"] == 80


def test_a_thousand_steps_are_replayed_and_cost_one_call_each(
    runtime: Any, build: Callable[..., Any]
) -> None:
    """A new shape costs a step that is built and one that is traced. Keys are padded to multiples
    of 64, from 1,024 on of 128: 1,100 tokens have 17 shapes, and nothing else is built."""
    lowered = lower(runtime, build, "qwen3")
    allocate(lowered)
    before = runtime.counters()
    steps = range(1, 1101)
    for length in steps:
        decode(lowered, [length], torch.tensor([length % 256], dtype=torch.int32))
    spent = counted(runtime, before)
    assert (spent["direct"], spent["traced"]) == (17, 17)
    assert spent["replayed"] == len(steps) - 34
    # One call and one evaluation a step; reading the counters is a call, too.
    assert spent["calls"] == len(steps) + 1
    assert spent["evaluations"] == len(steps)


def test_replayed_steps_copy_no_cache(runtime: Any, build: Callable[..., Any]) -> None:
    """MLX's peak counter: with caches of 64 MB a layer, a step needs next to nothing more."""
    lowered = lower(runtime, build, "qwen3")
    num_blocks = (64 << 20) // (16 * 2 * 32 * 4)
    size = (num_blocks, BLOCK_SIZE, "float32")
    lowered.model.allocate_kv_cache(dict.fromkeys(lowered.plan.layers, size))
    for length in range(1, 40):
        runtime.reset_peak()
        before = runtime.memory()["active"]
        decode(lowered, [length], torch.tensor([7], dtype=torch.int32))
        assert runtime.memory()["peak"] - before < 1 << 20
    assert runtime.counters()["replayed"] >= 35


def test_graphs_of_few_shapes_are_kept(runtime: Any, build: Callable[..., Any]) -> None:
    """A shape that makes room for another is built and traced again when it comes back."""
    lowered = lower(runtime, build, "llama", kept_shapes=2)
    allocate(lowered)
    ids = torch.zeros(3, dtype=torch.int32)
    for requests in [1, 1, 1, 2, 2, 2, 1, 3, 3, 3, 2]:
        decode(lowered, [9, 8, 7][:requests], ids[:requests])
    counters = runtime.counters()
    # 1 and 2 are kept; 1 is used again, so that 3 takes the place of 2.
    assert (counters["direct"], counters["traced"], counters["replayed"]) == (4, 3, 4)


def test_a_bad_step_changes_nothing(runtime: Any, build: Callable[..., Any]) -> None:
    lowered = lower(runtime, build, "llama")
    allocate(lowered)
    ids = torch.tensor([5], dtype=torch.int32)
    expected = [decode(lowered, [length], ids).clone() for length in (1, 2, 3)]
    for wrong in (torch.tensor([256], dtype=torch.int32), torch.tensor([-1], dtype=torch.int32)):
        with pytest.raises(ValueError, match="it must be from 0 to 255"):
            decode(lowered, [3], wrong)
    assert torch.equal(decode(lowered, [3], ids), expected[2])
