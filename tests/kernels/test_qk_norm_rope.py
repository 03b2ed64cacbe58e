# SPDX-License-Identifier: Apache-2.0
"""Queries and cache rows from the merged projection against float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from .contracts import contract
from .host import Tensor, tensor

DTYPES = ["float32", "float16", "bfloat16"]
NEOX, GPTJ, ROTATE_HALF = 0, 1, 2


@dataclass(frozen=True)
class Case:
    tokens: int = 3
    heads: int = 4
    kv_heads: int = 2
    size: int = 64
    size_v: int = 64
    rotary: int = 64
    style: int = NEOX
    norm: bool = True
    dtype: str = "float32"
    table: str = "float32"
    weight: str | None = None
    strided: bool = False


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, case: Case) -> np.ndarray:
    """`[tokens, heads, size]`, its first elements rotated."""
    y, r = x.copy(), case.rotary
    if case.style == GPTJ:
        first, second = slice(0, r, 2), slice(1, r, 2)
    else:
        first, second = slice(0, r // 2), slice(r // 2, r)
    cos, sin = cos[:, None], sin[:, None]
    wide = case.style == ROTATE_HALF
    c1, s1 = (cos[..., : r // 2], sin[..., : r // 2]) if wide else (cos, sin)
    c2, s2 = (cos[..., r // 2 :], sin[..., r // 2 :]) if wide else (cos, sin)
    y[..., first] = x[..., first] * c1 - x[..., second] * s1
    y[..., second] = x[..., second] * c2 + x[..., first] * s2
    return y


def check(case: Case) -> None:
    random = np.random.default_rng(11)
    width = (case.heads + case.kv_heads) * case.size + case.kv_heads * case.size_v
    wide = tensor(random.standard_normal((case.tokens, width + 5)) * 2, case.dtype)
    qkv = wide[:, 2:-3] if case.strided else Tensor(wide.storage[:, 2:-3].copy(), case.dtype)
    columns = case.rotary // 2 * (2 if case.style == ROTATE_HALF else 1)
    cos = tensor(random.uniform(-1, 1, (case.tokens, columns)), case.table)
    sin = tensor(random.uniform(-1, 1, (case.tokens, columns)), case.table)
    weight_dtype = case.weight or case.dtype
    length = case.size if case.norm else 1
    weights = [tensor(random.uniform(0.5, 2, length), weight_dtype) for _ in range(2)]
    inputs = {
        "qkv": qkv,
        "cos": cos,
        "sin": sin,
        "q_weight": weights[0],
        "k_weight": weights[1],
        "eps": tensor(np.float32(1e-6), "float32"),
    }
    sizes = {
        "num_tokens": case.tokens,
        "num_heads": case.heads,
        "num_kv_heads": case.kv_heads,
        "head_size": case.size,
        "head_size_v": case.size_v,
        "rotary_dim": case.rotary,
        "style": case.style,
        "angles": columns,
        "has_norm": int(case.norm),
    }
    kernel = contract("qk_norm_rope")
    found = kernel.run(inputs, sizes, {"T": case.dtype, "W": weight_dtype, "C": case.table})

    x = qkv.numbers()
    ends = np.cumsum([case.heads * case.size, case.kv_heads * case.size])
    q, k, v = np.split(x, ends, axis=1)
    parts = []
    for part, weight in ((q, weights[0]), (k, weights[1])):
        part = part.reshape(case.tokens, -1, case.size)
        if case.norm:
            mean = (part**2).mean(-1, keepdims=True)
            part = part / np.sqrt(mean + 1e-6) * weight.numbers()
        parts.append(rotate(part, cos.numbers(), sin.numbers(), case))
    values = v.reshape(case.tokens, case.kv_heads, case.size_v)
    kernel.assert_close(found["q"], parts[0], case.dtype)
    kernel.assert_close(found["rows"], np.concatenate([parts[1], values], -1), case.dtype)
    # Values pass as they are.
    np.testing.assert_array_equal(found["rows"].numbers()[..., case.size :], values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", [NEOX, GPTJ, ROTATE_HALF])
def test_styles_and_dtypes(style: int, dtype: str) -> None:
    check(Case(style=style, dtype=dtype, table=dtype))


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
    check(replace(Case(), **change))
