# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged cache against the definition in float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from .contracts import contract
from .host import KernelError, Tensor, tensor

DTYPES = ["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Case:
    """A step; `requests` are (query rows, length of the sequence with them)."""

    requests: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    size_v: int = 64
    block: int = 16
    rows: int = 1
    window: int = 0
    splits: int = 1
    soft_cap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    padding: int = 0
    dtype: str = "float32"

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


class Step:
    """A case's tensors."""

    def __init__(self, case: Case):
        random = np.random.default_rng(7)
        self.case = case
        counts = [rows for rows, _ in case.requests]
        lengths = [length for _, length in case.requests]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        tokens = int(self.starts[-1]) + case.padding
        max_blocks = max(-(-length // case.block) for length in lengths)
        blocks = sum(-(-length // case.block) for length in lengths) + 3
        free = iter(random.permutation(blocks))
        # Unused entries name no block: following one faults.
        table = np.full((len(lengths), max_blocks), 2**24, np.int32)
        row = case.size + case.size_v
        # What no request wrote is NaN.
        cache = np.full((blocks * case.block, case.kv_heads, row), np.nan)
        for request, length in enumerate(lengths):
            for index in range(-(-length // case.block)):
                block = int(next(free))
                table[request, index] = block
                used = min(case.block, length - index * case.block)
                values = random.standard_normal((used, case.kv_heads, row))
                cache[block * case.block : block * case.block + used] = values
        q = random.standard_normal((tokens, case.heads, case.size)) * 2
        # A view into a merged projection, as the queries of a layer are.
        merged = np.zeros((tokens, case.heads + 3, case.size + 2))
        merged[:, 1 : case.heads + 1, : case.size] = q
        self.q = tensor(merged, case.dtype)[:, 1 : case.heads + 1, : case.size]
        self.cache = tensor(cache, case.dtype)
        self.table = table
        self.lengths = np.array(lengths, np.int32)
        self.scale = np.float32(case.size**-0.5)
        self.sinks = random.standard_normal(case.heads).astype(np.float32) + 2
        self.slopes = (2.0 ** -np.arange(1, case.heads + 1)).astype(np.float32)

    def inputs(self) -> dict[str, Tensor]:
        case = self.case
        return {
            "q": self.q,
            "cache": self.cache,
            # Rows of a wider table, as vLLM's is.
            "block_table": tensor(np.pad(self.table, ((0, 0), (0, 2))), "int32")[:, :-2],
            "query_start": tensor(self.starts, "int32"),
            "seq_lens": tensor(self.lengths, "int32"),
            "scale": tensor(self.scale, "float32"),
            "soft_cap": tensor(np.float32(case.soft_cap), "float32"),
            "sinks": tensor(self.sinks if case.sinks else np.zeros(1), "float32"),
            "alibi_slopes": tensor(self.slopes if case.alibi else np.zeros(1), "float32"),
        }

    def sizes(self) -> dict[str, int]:
        case = self.case
        return {
            "num_tokens": self.q.shape[0],
            "num_heads": case.heads,
            "num_kv_heads": case.kv_heads,
            "head_size": case.size,
            "head_size_v": case.size_v,
            "num_slots": self.cache.shape[0],
            "num_requests": len(case.requests),
            "max_blocks": self.table.shape[1],
            "group": case.group,
            "rows": case.rows,
            "block_size": case.block,
            "window": case.window,
            "splits": case.splits,
            "has_soft_cap": int(case.soft_cap > 0),
            "has_sinks": int(case.sinks),
            "has_alibi": int(case.alibi),
        }

    def tiles(self) -> Tensor:
        """What the prefill kernel works through."""
        case = self.case
        listed = [
            (request, first)
            for request, (rows, _) in enumerate(case.requests)
            for first in range(0, rows * case.group, 32)
        ]
        if case.padding:
            listed.append((len(case.requests), 0))
        return tensor(listed, "int32")

    def expected(self) -> np.ndarray:
        """The definition, head by head: `[num_tokens, heads, size_v]`; 0 for padding."""
        case = self.case
        q, cache = self.q.numbers(), self.cache.numbers()
        result = np.zeros((q.shape[0], case.heads, case.size_v))
        for request, (rows, length) in enumerate(case.requests):
            keys = np.arange(length)
            slots = self.table[request, keys // case.block] * case.block + keys % case.block
            first = self.starts[request]
            positions = length - rows + np.arange(rows)
            for head in range(case.heads):
                stored = cache[slots, head // case.group]
                k, v = stored[:, : case.size], stored[:, case.size :]
                scores = q[first : first + rows, head] @ k.T * float(self.scale)
                if case.soft_cap:
                    scores = case.soft_cap * np.tanh(scores / case.soft_cap)
                distance = keys[None, :] - positions[:, None]
                if case.alibi:
                    scores = scores + float(self.slopes[head]) * distance
                seen = distance <= 0
                if case.window:
                    seen &= -distance < case.window
                scores = np.where(seen, scores, -np.inf)
                largest = scores.max(1, keepdims=True)
                if case.sinks:
                    largest = np.maximum(largest, float(self.sinks[head]))
                weights = np.exp(scores - largest)
                total = weights.sum(1, keepdims=True)
                if case.sinks:
                    total = total + np.exp(float(self.sinks[head]) - largest)
                result[first : first + rows, head] = weights / total @ v
        return result


def decode(step: Step, orders: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """The kernel's answer, by two kernels where keys are split."""
    case = step.case
    split = case.splits > 1
    dtypes = {"T": case.dtype, "O": "float32" if split else case.dtype}
    found = contract("paged_attention_decode").run(step.inputs(), step.sizes(), dtypes, orders)
    if not split:
        return found["out"][:, :, 0]
    inputs = {"partial": found["out"], "sums": found["sums"], "sinks": step.inputs()["sinks"]}
    reduce = contract("paged_attention_reduce")
    return reduce.run(inputs, step.sizes(), {"T": case.dtype}, orders)["out"]


def prefill(step: Step, orders: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """The kernel's answer."""
    tiles = step.tiles()
    sizes = {**step.sizes(), "num_tiles": tiles.shape[0]}
    kernel = contract("paged_attention_prefill")
    inputs = {**step.inputs(), "tiles": tiles}
    return kernel.run(inputs, sizes, {"T": step.case.dtype}, orders)["out"]


def check(case: Case) -> None:
    step = Step(case)
    found = decode(step)
    contract("paged_attention_decode").assert_close(found, step.expected(), case.dtype)


RAGGED = ((1, 37), (1, 1), (1, 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_head_sizes_and_dtypes(size: int, dtype: str) -> None:
    check(Case(((1, 21), (1, 2)), size=size, size_v=size, dtype=dtype))


@pytest.mark.parametrize("block", [8, 16, 32])
def test_block_sizes(block: int) -> None:
    check(Case(RAGGED, block=block))


@pytest.mark.parametrize(
    "change",
    [
        {"window": 5},
        {"window": 20, "splits": 3},
        {"soft_cap": 1.5},
        {"sinks": True},
        {"sinks": True, "splits": 2},
        {"alibi": True},
        {"alibi": True, "soft_cap": 2.0, "sinks": True, "window": 9},
        {"size": 192, "size_v": 128},
        {"heads": 8, "kv_heads": 8},
        {"heads": 12, "kv_heads": 1, "dtype": "float16"},
        {"padding": 2},
        {"padding": 1, "splits": 2},
        {"splits": 8},
    ],
    ids=str,
)
def test_variants(change: dict) -> None:
    check(replace(Case(RAGGED), **change))


@pytest.mark.parametrize("dtype", DTYPES)
def test_verify_windows_mix_with_decodes(dtype: str) -> None:
    check(Case(((8, 40), (1, 5), (3, 3), (0, 9)), rows=8, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 4])
def test_a_verify_window_with_everything(splits: int) -> None:
    case = Case(((4, 70), (2, 33)), rows=4, splits=splits, window=24, soft_cap=3.0, sinks=True)
    check(replace(case, heads=6, kv_heads=2, size=80, size_v=96, block=8, padding=3))


def test_a_wrong_block_id_is_caught() -> None:
    step = Step(Case(RAGGED))
    step.table[0, 1] = 2**20
    with pytest.raises(KernelError, match="access outside a buffer"):
        decode(step)


def check_prefill(case: Case) -> None:
    step = Step(case)
    found = prefill(step, orders=(0, 2))
    contract("paged_attention_prefill").assert_close(found, step.expected(), case.dtype)


# A prompt, a prompt behind a prefix in the cache, one token, nothing.
PROMPTS = ((21, 21), (9, 30), (1, 18), (0, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 80, 128])
def test_prefill_head_sizes_and_dtypes(size: int, dtype: str) -> None:
    check_prefill(Case(((13, 19), (2, 2)), size=size, size_v=size, dtype=dtype))


@pytest.mark.parametrize(
    "change",
    [
        {"block": 8},
        {"block": 32, "heads": 6, "kv_heads": 2},
        {"window": 5},
        {"window": 16, "padding": 3},
        {"soft_cap": 1.5},
        {"sinks": True},
        {"alibi": True},
        {"size": 96, "size_v": 64, "heads": 2},
        {"heads": 2, "kv_heads": 2, "requests": ((40, 70),)},
        {"heads": 5, "kv_heads": 1, "dtype": "bfloat16", "padding": 1},
        {"size": 256, "size_v": 256, "requests": ((3, 9),), "heads": 2},
    ],
    ids=str,
)
def test_prefill_variants(change: dict) -> None:
    check_prefill(replace(Case(PROMPTS), **change))


def test_prefill_and_decode_agree() -> None:
    """On one step that both take."""
    case = Case(((8, 40), (3, 3), (1, 17)), rows=8, window=24, sinks=True)
    step = Step(case)
    found, expected = prefill(step).numbers(), decode(step).numbers()
    np.testing.assert_allclose(found, expected, atol=2e-6)
