# SPDX-License-Identifier: Apache-2.0
"""Queries and cache rows from the merged projection against float64."""

from dataclasses import replace

import numpy as np
import pytest

from vllm_metal.kernels.rope import GPTJ, NEOX, ROTATE_HALF, RopeCase, RopeStep

from .contracts import assert_close, contract, on_host

DTYPES = ["float32", "float16", "bfloat16"]


def check(case: RopeCase) -> None:
    step = RopeStep(case)
    queries, rows = step.answer(on_host, contract("qk_norm_rope"))
    expected_queries, expected_rows = step.expected()
    assert_close("qk_norm_rope", queries, expected_queries, case.dtype)
    assert_close("qk_norm_rope", rows, expected_rows, case.dtype)
    # Values pass as they are.
    values = expected_rows[..., case.size :]
    np.testing.assert_array_equal(rows.numbers()[..., case.size :], values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", [NEOX, GPTJ, ROTATE_HALF])
def test_styles_and_dtypes(style: int, dtype: str) -> None:
    check(RopeCase(style=style, dtype=dtype, table=dtype))


@pytest.mark.parametrize(
    "change",
    [
        {"norm": False},
        {"rotary": 16},
        {"rotary": 20, "style": GPTJ},
        {"rotary": 32, "style": ROTATE_HALF, "norm": False},
        {"size": 80, "size_v": 48, "rotary": 80},
        {"size": 256, "size_v": 256, "rotary": 256, "tokens": 1, "heads": 2},
        {"strided": True, "dtype": "float16"},
        {"dtype": "bfloat16", "weight": "float32"},
        {"dtype": "bfloat16", "table": "float32"},
        {"heads": 7, "kv_heads": 1, "tokens": 2},
        {"tokens": 1, "heads": 1, "kv_heads": 1, "size": 2, "size_v": 2, "rotary": 2},
    ],
    ids=str,
)
def test_variants(change: dict) -> None:
    check(replace(RopeCase(), **change))
