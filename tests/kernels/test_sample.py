# SPDX-License-Identifier: Apache-2.0
"""Sampling against its definition with the same random numbers, and against the distribution."""

import numpy as np
import pytest

from vllm_metal.kernels.contract import Run
from vllm_metal.kernels.sample import Requests, kept, philox, sample, scores_of
from vllm_metal.kernels.tensor import Tensor, tensor

from .contracts import assert_close, contract, in_one_order, on_host

DTYPES = ["float32", "float16", "bfloat16"]


def test_the_generator_gives_the_published_numbers() -> None:
    """Known answers of the authors' library for zeros, ones and digits of pi."""
    cases = {
        (0, 0, 0, 0, 0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        (0xFFFFFFFF,) * 6: "408f276d 41c83b0e a20bc7c6 6d5451fd",
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
            "d16cfe09 94fdcceb 5001e420 24126ea1"
        ),
    }
    for words, expected in cases.items():
        found = philox(np.array([words[:4]], np.uint32), np.array(words[4:], np.uint32))
        assert " ".join(f"{word:08x}" for word in found[0]) == expected


def draw(logits: Tensor, requests: Requests, run: Run = on_host) -> np.ndarray:
    return sample(run, contract("sample"), logits, requests)


def check(logits: Tensor, requests: Requests) -> None:
    found, best = scores_of(draw(logits, requests), logits, requests)
    assert_close("sample", found, best, logits.dtype)


def logits_of(shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> Tensor:
    return tensor(np.random.default_rng(seed).standard_normal(shape) * 3, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 5, 130, 3001])
def test_each_request_has_its_own_parameters(vocab: int, dtype: str) -> None:
    requests = Requests(
        6,
        temperature=[1.0, 0.7, 1.5, 1.0, 0.3, 2.0],
        top_k=[0, 3, 0, 50, 1, 20],
        top_p=[1.0, 1.0, 0.8, 0.5, 0.9, 0.95],
        min_p=[0.0, 0.0, 0.0, 0.02, 0.0, 0.05],
        step=[0, 1, 2, 3, 4, 2**31 + 5],
    )
    check(logits_of((6, vocab), dtype), requests)


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    x = logits_of((3, 700), "bfloat16")
    x.storage[1, [600, 44, 301]] = x.storage[1].max() * 0 + tensor([50.0], "bfloat16").storage[0]
    tokens = draw(x, Requests(3, temperature=0.0, top_k=5, top_p=0.5))
    np.testing.assert_array_equal(tokens, x.numbers().argmax(1))
    assert tokens[1] == 44


def test_strided_logits() -> None:
    wide = logits_of((5, 400), "float16")
    check(wide[1:4, 50:350], Requests(3, top_k=7))
    check(logits_of((300, 3), "float32").transpose(1, 0), Requests(3, top_p=0.6))


def test_extreme_logits() -> None:
    x = np.full((5, 40), -np.inf, np.float32)
    x[0, 7] = 3  # one token is allowed
    x[1] = 0  # all are equal: every one is kept
    x[2, :20], x[2, 20:] = 1e30, -1e30
    x[3] = np.linspace(-5, 5, 40)
    x[3, 39] = np.nan  # as if it were not there
    tokens = draw(tensor(x, "float32"), Requests(5, top_k=3, top_p=0.9))
    assert tokens[0] == 7
    assert tokens[2] < 20
    assert tokens[3] in (36, 37, 38)
    assert 0 <= tokens[4] < 40, "no token is allowed"


def test_seeds_and_steps_draw_anew_and_repeat() -> None:
    x = Tensor(np.repeat(logits_of((1, 50)).storage, 40, 0), "float32")
    one = draw(x, Requests(40), run=in_one_order)
    np.testing.assert_array_equal(one, draw(x, Requests(40), run=in_one_order))
    assert (one != draw(x, Requests(40, step=1), run=in_one_order)).any()
    assert (one != draw(x, Requests(40, seed=1), run=in_one_order)).any()


def test_the_distribution_is_the_filtered_softmax() -> None:
    """Pearson's chi-squared over 2,000 seeds; the bound is passed by chance once in a million."""
    x = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -8.0], np.float32)
    count = 2000
    logits = tensor(np.repeat(x[None], count, 0), "float32")
    requests = Requests(count, temperature=0.8, top_k=6, top_p=0.97)
    tokens = draw(logits, requests, run=in_one_order)
    keep = kept(x.astype(np.float64), requests, 0)
    weights = np.where(keep, np.exp(x.astype(np.float64) / np.float32(0.8)), 0)
    expected = weights / weights.sum() * count
    found = np.bincount(tokens, minlength=len(x))
    assert (found[~keep] == 0).all()
    assert 2 < keep.sum() < len(x)
    statistic = ((found - expected)[keep] ** 2 / expected[keep]).sum()
    assert statistic < 40, (found, expected)
