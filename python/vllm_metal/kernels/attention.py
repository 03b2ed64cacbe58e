# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged cache: random steps, the kernels' answers, and the definition in
float64."""

from dataclasses import dataclass

import numpy as np

from .contract import Contract, Run
from .tensor import Tensor, tensor

DECODE, REDUCE, PREFILL = (
    "paged_attention_decode",
    "paged_attention_reduce",
    "paged_attention_prefill",
)


@dataclass(frozen=True)
class AttentionCase:
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


class AttentionStep:
    """A case's tensors."""

    def __init__(self, case: AttentionCase, magnitude: float = 2.0):
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
        q = random.standard_normal((tokens, case.heads, case.size)) * magnitude
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

    def decode(self, run: Run, decode: Contract, reduce: Contract) -> Tensor:
        """`[num_tokens, heads, size_v]` by the kernel of few rows, and a second where keys are
        split."""
        case = self.case
        split = case.splits > 1
        dtypes = {"T": case.dtype, "O": "float32" if split else case.dtype}
        found = decode.run(run, self.inputs(), self.sizes(), dtypes)
        if not split:
            return found["out"][:, :, 0]
        inputs = {"partial": found["out"], "sums": found["sums"], "sinks": self.inputs()["sinks"]}
        return reduce.run(run, inputs, self.sizes(), {"T": case.dtype})["out"]

    def prefill(self, run: Run, prefill: Contract) -> Tensor:
        """`[num_tokens, heads, size_v]` by the kernel of prompts."""
        tiles = self.tiles()
        sizes = {**self.sizes(), "num_tiles": tiles.shape[0]}
        inputs = {**self.inputs(), "tiles": tiles}
        return prefill.run(run, inputs, sizes, {"T": self.case.dtype})["out"]
