# SPDX-License-Identifier: Apache-2.0
"""Norms of rows, with and without residual, against float64 with the graph's roundings."""

import numpy as np
import pytest

from vllm_metal.kernels import norm
from vllm_metal.kernels.norm import rms_norm
from vllm_metal.kernels.tensor import Tensor, tensor

from .contracts import assert_close, contract, on_host

DTYPES = ["float32", "float16", "bfloat16"]
# Tiny, below and above one simdgroup, several elements a thread.
WIDTHS = [1, 3, 33, 200, 1000]


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    return tensor(np.random.default_rng(seed).standard_normal(shape) * 2 + 0.5, dtype)


def strided(x: Tensor, kind: str) -> Tensor:
    """The same values with other strides."""
    if kind == "contiguous":
        return x
    if kind == "columns of a wider array":
        wide = np.full((x.shape[0], x.shape[1] + 7), 0, x.storage.dtype)
        wide[:, 3:-4] = x.storage
        return Tensor(wide, x.dtype)[:, 3:-4]
    return Tensor(np.ascontiguousarray(x.storage.T).T, x.dtype)


def run_norm(name: str, *arguments, **options) -> tuple[Tensor, Tensor]:
    return norm.run_norm(on_host, contract(name), *arguments, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, dtype: str) -> None:
    x, weight = random((3, width), dtype), random((width,), dtype, 1)
    out, _ = run_norm("rms_norm", x, weight=weight)
    assert_close("rms_norm", out, rms_norm(x.numbers(), weight.numbers()), dtype)


@pytest.mark.parametrize("kind", ["columns of a wider array", "transposed"])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_strided_rows(name: str, kind: str) -> None:
    x, residual = random((3, 200), "float16"), random((3, 200), "float16", 2)
    weight = random((200,), "float16", 1)
    plain = run_norm(name, x, residual, weight)
    found = run_norm(name, strided(x, kind), strided(residual, kind), weight)
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(one.storage, other.storage)


@pytest.mark.parametrize("rounded_sum", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm_sees_the_sum_rounded_or_before(dtype: str, rounded_sum: bool) -> None:
    x, residual = random((5, 300), dtype), random((5, 300), dtype, 2)
    weight = random((300,), dtype, 1)
    out, total = run_norm("rms_norm", x, residual, weight, rounded_sum=rounded_sum)
    exact = x.numbers() + residual.numbers()
    rounded = tensor(exact.astype(np.float32), dtype)
    np.testing.assert_array_equal(total.storage, rounded.storage)
    expected = rms_norm(rounded.numbers() if rounded_sum else exact, weight.numbers())
    assert_close("rms_norm", out, expected, dtype)


def test_the_roundings_are_those_of_the_graph() -> None:
    """Bit for bit where no sum's order matters: rows of one element."""
    x, weight = random((64, 1), "bfloat16"), random((1,), "bfloat16", 1)
    out, _ = run_norm("rms_norm", x, weight=weight)
    normal = tensor(rms_norm(x.numbers()).astype(np.float32), "bfloat16")
    expected = tensor((normal.numbers() * weight.numbers()).astype(np.float32), "bfloat16")
    np.testing.assert_array_equal(out.storage, expected.storage)
    # A float32 weight multiplies before the only rounding.
    wide = tensor(weight.numbers() * 1.001, "float32")
    out, _ = run_norm("rms_norm", x, weight=wide)
    once = tensor((rms_norm(x.numbers()) * wide.numbers()).astype(np.float32), "bfloat16")
    np.testing.assert_array_equal(out.storage, once.storage)


def test_rms_norm_without_weight_or_of_large_values() -> None:
    x = tensor(random((2, 130), "float32").numbers() * 5e3, "float16")
    out, _ = run_norm("rms_norm", x)
    assert_close("rms_norm", out, rms_norm(x.numbers()), "float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width: int, dtype: str) -> None:
    x = tensor(random((3, width), "float32").numbers() + 20, dtype)
    residual = random((3, width), dtype, 2)
    weight, bias = random((width,), dtype, 1), random((width,), dtype, 3)
    for added in (None, residual):
        out, total = run_norm("layer_norm", x, added, weight, bias)
        summed = norm.add(x, added, rounded=True)
        if added is not None:
            np.testing.assert_array_equal(total.numbers(), summed)
        expected = norm.layer_norm(summed, weight.numbers(), bias.numbers())
        assert_close("layer_norm", out, expected, dtype)
