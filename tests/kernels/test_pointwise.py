# SPDX-License-Identifier: Apache-2.0
"""Gated activations and the soft cap of logits against float64."""

import math

import numpy as np
import pytest

from .contracts import contract
from .host import Tensor, tensor

DTYPES = ["float32", "float16", "bfloat16"]
SHAPES = [(1, 1), (2, 3), (3, 333), (5, 128)]

FUNCTIONS = [
    lambda x: x / (1 + np.exp(-x)),
    lambda x: x * 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    lambda x: np.maximum(x, 0),
]


def values(shape: tuple[int, int], dtype: str) -> Tensor:
    return tensor(np.random.default_rng(5).standard_normal(shape) * 3, dtype)


def gated(x: Tensor, function: int) -> Tensor:
    sizes = {"num_rows": x.shape[0], "width": x.shape[1] // 2, "function": function}
    return contract("gated_activation").run({"x": x}, sizes, {"T": x.dtype})["out"]


def expected_gated(x: Tensor, function: int) -> np.ndarray:
    gate, up = np.split(x.numbers(), 2, axis=1)
    return FUNCTIONS[function](gate) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", range(4))
def test_gated_activations(function: int, dtype: str) -> None:
    for rows, width in SHAPES:
        x = values((rows, 2 * width), dtype)
        found = gated(x, function)
        contract("gated_activation").assert_close(found, expected_gated(x, function), dtype)


def test_gated_activations_of_extremes() -> None:
    x = np.zeros((2, 16), np.float32)
    x[:, :8] = [-100, -20, -5, -0.0, 1e-30, 5, 20, 100]
    x[:, 8:] = 1
    for function in range(4):
        x_all = tensor(x, "float32")
        found = gated(x_all, function)
        contract("gated_activation").assert_close(found, expected_gated(x_all, function), "float32")


def test_gated_activations_of_strided_rows() -> None:
    wide = values((3, 90), "bfloat16")
    for x in (wide[:, 5:75], values((70, 3), "bfloat16").transpose(1, 0)):
        contract("gated_activation").assert_close(gated(x, 0), expected_gated(x, 0), "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cap(dtype: str) -> None:
    cap = 3.0
    for shape in SHAPES:
        wide = values((shape[0], shape[1] + 2), dtype)
        for x in (values(shape, dtype), wide[:, 1:-1]):
            sizes = {"num_rows": shape[0], "width": shape[1]}
            inputs = {"x": x, "cap": tensor(np.float32(cap), "float32")}
            found = contract("soft_cap").run(inputs, sizes, {"T": dtype})["out"]
            expected = cap * np.tanh(x.numbers() / cap)
            contract("soft_cap").assert_close(found, expected, dtype)
