# SPDX-License-Identifier: Apache-2.0
"""Gated activations and the soft cap of logits against float64."""

import numpy as np
import pytest

from vllm_metal.kernels import activation
from vllm_metal.kernels.activation import expected_gated
from vllm_metal.kernels.tensor import Tensor, tensor

from .contracts import assert_close, contract, on_host

DTYPES = ["float32", "float16", "bfloat16"]
SHAPES = [(1, 1), (2, 3), (3, 333), (5, 128)]


def values(shape: tuple[int, int], dtype: str) -> Tensor:
    return tensor(np.random.default_rng(5).standard_normal(shape) * 3, dtype)


def gated(x: Tensor, function: int) -> Tensor:
    return activation.gated(on_host, contract("gated_activation"), x, function)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", range(4))
def test_gated_activations(function: int, dtype: str) -> None:
    for rows, width in SHAPES:
        x = values((rows, 2 * width), dtype)
        found = gated(x, function)
        assert_close("gated_activation", found, expected_gated(x, function), dtype)


def test_gated_activations_of_extremes() -> None:
    x = np.zeros((2, 16), np.float32)
    x[:, :8] = [-100, -20, -5, -0.0, 1e-30, 5, 20, 100]
    x[:, 8:] = 1
    for function in range(4):
        x_all = tensor(x, "float32")
        found = gated(x_all, function)
        assert_close("gated_activation", found, expected_gated(x_all, function), "float32")


def test_gated_activations_of_strided_rows() -> None:
    wide = values((3, 90), "bfloat16")
    for x in (wide[:, 5:75], values((70, 3), "bfloat16").transpose(1, 0)):
        assert_close("gated_activation", gated(x, 0), expected_gated(x, 0), "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_cap(dtype: str) -> None:
    cap = 3.0
    for shape in SHAPES:
        wide = values((shape[0], shape[1] + 2), dtype)
        for x in (values(shape, dtype), wide[:, 1:-1]):
            sizes = {"num_rows": shape[0], "width": shape[1]}
            inputs = {"x": x, "cap": tensor(np.float32(cap), "float32")}
            found = contract("soft_cap").run(on_host, inputs, sizes, {"T": dtype})["out"]
            expected = cap * np.tanh(x.numbers() / cap)
            assert_close("soft_cap", found, expected, dtype)
