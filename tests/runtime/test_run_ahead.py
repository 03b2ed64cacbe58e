# SPDX-License-Identifier: Apache-2.0
"""Steps that take the tokens of a step that is not done: the same tokens, in the same memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_metal._native import core

from .lowered import BLOCK_SIZE, Lowered, lower
from .test_steps import allocate, counted, decode, decode_inputs


def begin(lowered: Lowered, lengths: list[int], ids: Any, ahead: bool = True) -> tuple[Any, int]:
    """The most likely next tokens, lazily, and the number of tokens that there are."""
    inputs, attention = decode_inputs(lowered, lengths, ids)
    rows = torch.arange(len(lengths))
    _, tokens, vocab_size = lowered.model.sample(inputs, attention, rows, ahead=ahead)
    return tokens, vocab_size


def generate(lowered: Lowered, first: list[int], count: int, ahead: bool) -> list[list[int]]:
    """Tokens of so many steps; with `ahead` each is read when the next step was begun."""
    lengths = [1] * len(first)
    places = [(index, index) for index in range(len(first))]
    unknown = torch.full((len(first),), -1, dtype=torch.int32)
    last, vocab_size = begin(lowered, lengths, torch.tensor(first, dtype=torch.int32), ahead)
    found = []
    for step in range(1, count):
        lengths = [step + 1] * len(first)
        if ahead:
            ids = core.SampledIds(unknown, last, vocab_size, places)
            following, _ = begin(lowered, lengths, ids)
            found.append(torch.from_dlpack(last).tolist())
            last = following
        else:
            found.append(torch.from_dlpack(last).tolist())
            last, _ = begin(lowered, lengths, torch.tensor(found[-1], dtype=torch.int32), ahead)
    found.append(torch.from_dlpack(last).tolist())
    return found


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_tokens(runtime: Any, build: Callable[..., Any], name: str, dtype: str) -> None:
    lowered = lower(runtime, build, name, dtype)
    tokens = []
    for ahead in (True, False):
        allocate(lowered, dtype)
        tokens.append(generate(lowered, [3, 77, 200], 100, ahead))
    assert tokens[0] == tokens[1]
    assert len(set(map(tuple, tokens[0]))) > 3


def test_a_thousand_steps_cost_one_wait_each_and_are_replayed(
    runtime: Any, build: Callable[..., Any]
) -> None:
    """As without: tests/runtime/test_steps.py."""
    lowered = lower(runtime, build, "qwen3")
    allocate(lowered)
    before = runtime.counters()
    generate(lowered, [3], 1100, ahead=True)
    spent = counted(runtime, before)
    assert (spent["direct"], spent["traced"], spent["replayed"]) == (17, 17, 1100 - 34)
    # Each step is begun and waited for; reading the counters is a call, too.
    assert spent["calls"] == 2 * 1100 + 1
    assert spent["evaluations"] == 1100


@pytest.mark.parametrize("ahead", [True, False])
def test_no_step_copies_a_cache(runtime: Any, build: Callable[..., Any], ahead: bool) -> None:
    """MLX's peak counter, over caches of 64 MB a layer and steps that follow each other."""
    lowered = lower(runtime, build, "qwen3")
    num_blocks = (64 << 20) // (16 * 2 * 32 * 4)
    size = (num_blocks, BLOCK_SIZE, "float32")
    lowered.model.allocate_kv_cache(dict.fromkeys(lowered.plan.layers, size))
    first = list(range(36))  # enough for a step to be in flight when the next one is built
    generate(lowered, first, 3, ahead)
    runtime.reset_peak()
    before = runtime.memory()["active"]
    generate(lowered, first, 30, ahead)
    assert runtime.memory()["peak"] - before < 16 << 20


def test_tokens_find_their_places(runtime: Any, build: Callable[..., Any]) -> None:
    """Requests leave, come and change places between a step and the next one."""
    lowered, expected = lower(runtime, build, "qwen3"), lower(runtime, build, "qwen3")
    for model in (lowered, expected):
        allocate(model)
    last, vocab_size = begin(lowered, [1, 1, 1], torch.tensor([5, 6, 7], dtype=torch.int32))
    tokens = decode(expected, [1, 1, 1], torch.tensor([5, 6, 7])).argmax(-1).tolist()
    known = torch.tensor([-1, 42, -1], dtype=torch.int32)
    ids = core.SampledIds(known, last, vocab_size, [(0, 2), (2, 1)])
    found, _ = begin(lowered, [2, 2, 2], ids)
    ids = torch.tensor([tokens[2], 42, tokens[1]])
    assert torch.from_dlpack(found).tolist() == decode(expected, [2, 2, 2], ids).argmax(-1).tolist()
    assert torch.from_dlpack(last).tolist() == tokens


def test_a_step_that_takes_no_token_waits(runtime: Any, build: Callable[..., Any]) -> None:
    """Nothing orders its writes after the reads of the one in flight."""
    lowered = lower(runtime, build, "qwen3")
    allocate(lowered)
    ids = torch.tensor([5], dtype=torch.int32)
    for following in (lambda last: ids, lambda last: core.SampledIds(ids, *last, [])):
        last = begin(lowered, [1], ids)
        before = runtime.counters()["evaluations"]
        begin(lowered, [2], following(last))
        assert runtime.counters()["evaluations"] == before + 1


def test_what_does_not_fit_is_refused(runtime: Any, build: Callable[..., Any]) -> None:
    lowered = lower(runtime, build, "qwen3")
    allocate(lowered)
    unknown = torch.tensor([-1, 3], dtype=torch.int32)
    last, vocab_size = begin(lowered, [1, 1], torch.tensor([5, 6], dtype=torch.int32))

    def refused(*arguments: Any) -> str:
        with pytest.raises(ValueError) as error:
            begin(lowered, [2, 2], core.SampledIds(*arguments))
        return str(error.value)

    assert "sampled token 2 of 2 at place 0 of 2" in refused(unknown, last, vocab_size, [(0, 2)])
    assert "element 0 is -1" in refused(unknown, last, vocab_size, [(1, 0)])
    assert "element 0 is" in refused(unknown, last, vocab_size + 1, [(0, 0)])
    found, _ = begin(lowered, [2, 2], core.SampledIds(unknown, last, vocab_size, [(0, 0)]))
    assert len(torch.from_dlpack(found)) == 2
