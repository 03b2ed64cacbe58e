# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged cache against the definition in float64."""

from dataclasses import replace

import numpy as np
import pytest

from vllm_metal.kernels.attention import DECODE, PREFILL, REDUCE, AttentionCase, AttentionStep
from vllm_metal.kernels.tensor import Tensor

from .contracts import assert_close, contract, on_host
from .host import KernelError

DTYPES = ["float32", "float16", "bfloat16"]


def decode(step: AttentionStep) -> Tensor:
    return step.decode(on_host, contract(DECODE), contract(REDUCE))


def prefill(step: AttentionStep) -> Tensor:
    return step.prefill(on_host, contract(PREFILL))


def check(case: AttentionCase) -> None:
    step = AttentionStep(case)
    assert_close(DECODE, decode(step), step.expected(), case.dtype)


RAGGED = ((1, 37), (1, 1), (1, 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_head_sizes_and_dtypes(size: int, dtype: str) -> None:
    check(AttentionCase(((1, 21), (1, 2)), size=size, size_v=size, dtype=dtype))


@pytest.mark.parametrize("block", [8, 16, 32])
def test_block_sizes(block: int) -> None:
    check(AttentionCase(RAGGED, block=block))


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
    check(replace(AttentionCase(RAGGED), **change))


@pytest.mark.parametrize("dtype", DTYPES)
def test_verify_windows_mix_with_decodes(dtype: str) -> None:
    check(AttentionCase(((8, 40), (1, 5), (3, 3), (0, 9)), rows=8, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 4])
def test_a_verify_window_with_everything(splits: int) -> None:
    case = AttentionCase(
        ((4, 70), (2, 33)), rows=4, splits=splits, window=24, soft_cap=3.0, sinks=True
    )
    check(replace(case, heads=6, kv_heads=2, size=80, size_v=96, block=8, padding=3))


def test_a_wrong_block_id_is_caught() -> None:
    step = AttentionStep(AttentionCase(RAGGED))
    step.table[0, 1] = 2**20
    with pytest.raises(KernelError, match="access outside a buffer"):
        decode(step)


def check_prefill(case: AttentionCase) -> None:
    step = AttentionStep(case)
    found = prefill(step)
    assert_close(PREFILL, found, step.expected(), case.dtype)


# A prompt, a prompt behind a prefix in the cache, one token, nothing.
PROMPTS = ((21, 21), (9, 30), (1, 18), (0, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 80, 128])
def test_prefill_head_sizes_and_dtypes(size: int, dtype: str) -> None:
    check_prefill(AttentionCase(((13, 19), (2, 2)), size=size, size_v=size, dtype=dtype))


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
    check_prefill(replace(AttentionCase(PROMPTS), **change))


def test_prefill_and_decode_agree() -> None:
    """On one step that both take."""
    case = AttentionCase(((8, 40), (3, 3), (1, 17)), rows=8, window=24, sinks=True)
    step = AttentionStep(case)
    found, expected = prefill(step).numbers(), decode(step).numbers()
    np.testing.assert_allclose(found, expected, atol=2e-6)
