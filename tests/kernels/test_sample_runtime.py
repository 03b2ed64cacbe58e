# SPDX-License-Identifier: Apache-2.0
"""The runtime's sampling, by the kernel on the host executor and by MLX operations: both against
the definition in float64 with the same random numbers, each other, and the distribution."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vllm_metal._native import core
from vllm_metal.kernels.sample import Requests, kept, philox, scores_of
from vllm_metal.kernels.tensor import Tensor, tensor

from .contracts import assert_close
from .launches import HostLaunches, to_torch

DTYPES = ["float32", "float16", "bfloat16"]
KERNEL, OPERATIONS = "kernel", "operations"
PATHS = [KERNEL, OPERATIONS]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Any]:
    runtime = core.Runtime("cpu")
    yield runtime
    runtime.close()


def rows(requests: Requests) -> list[tuple[float, int, float, float, int, int]]:
    """As `Runtime.sample` takes them."""
    seeds = requests.seeds.astype(np.uint64)
    columns = (
        requests.temperature,
        requests.top_k,
        requests.top_p,
        requests.min_p,
        seeds[:, 0] | seeds[:, 1] << np.uint64(32),
        requests.steps,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


def drawn(runtime: Any, logits: Tensor, requests: Requests, path: str) -> np.ndarray:
    """Tokens by a path; a kernel that is not launched once is an error."""
    lazy = runtime.upload(to_torch(logits))
    if path == OPERATIONS:
        tokens = runtime.sample(lazy, rows(requests))
    else:
        sizes, dtypes = {"vocab_size": logits.shape[1]}, {"T": logits.dtype}
        launches = HostLaunches()
        choice = core.KernelChoice("sample", sizes, dtypes)
        tokens = runtime.sample(lazy, rows(requests), choice, launches)
        assert launches.counts == {"sample": 1}
    found = torch.from_dlpack(tokens)
    assert found.dtype == torch.int32
    return found.numpy().copy()


def check(runtime: Any, logits: Tensor, requests: Requests, path: str) -> None:
    tokens = drawn(runtime, logits, requests, path)
    found, best = scores_of(tokens, logits, requests)
    assert_close("sample", found, best, logits.dtype)


def logits_of(shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> Tensor:
    return tensor(np.random.default_rng(seed).standard_normal(shape) * 3, dtype)


def mixed() -> Requests:
    return Requests(
        8,
        temperature=[1.0, 0.7, 1.5, 1.0, 0.3, 2.0, 0.0, 1.0],
        top_k=[0, 3, 0, 50, 1, 20, 7, 10**6],
        top_p=[1.0, 1.0, 0.8, 0.5, 0.9, 0.95, 0.5, 1.0],
        min_p=[0.0, 0.0, 0.0, 0.02, 0.0, 0.05, 0.3, 0.2],
        step=[0, 1, 2, 3, 4, 2**31 + 5, 6, 2**32 - 1],
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 5, 130, 3001])
def test_each_row_has_its_own_parameters(runtime, vocab: int, dtype: str, path: str) -> None:
    check(runtime, logits_of((8, vocab), dtype), mixed(), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "filters",
    [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}],
    ids=str,
)
def test_filters(runtime, filters: dict, path: str) -> None:
    logits = logits_of((40, 500), seed=3)
    # Of equal logits all are kept.
    logits.storage[:20] = logits.storage[:20].round()
    check(runtime, logits, Requests(40, temperature=0.9, step=np.arange(40), **filters), path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_and_operations_draw_the_same(runtime, dtype: str) -> None:
    requests = Requests(
        64,
        temperature=np.linspace(0, 2, 64),
        top_k=np.arange(64) % 5 * 9,
        top_p=1 - np.arange(64) % 3 * 0.1,
        min_p=np.arange(64) % 2 * 0.02,
        step=np.arange(64),
    )
    logits = logits_of((64, 777), dtype, seed=5)
    one, other = (drawn(runtime, logits, requests, path) for path in PATHS)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("path", PATHS)
def test_extreme_logits(runtime, path: str) -> None:
    x = np.full((5, 40), -np.inf, np.float32)
    x[0, 7] = 3  # one token is allowed
    x[1] = 0  # all are equal: every one is kept
    x[2, :20], x[2, 20:] = 1e30, -1e30
    x[3] = np.linspace(-5, 5, 40)
    x[3, 39] = np.nan  # as if it were not there
    tokens = drawn(runtime, tensor(x, "float32"), Requests(5, top_k=3, top_p=0.9), path)
    assert tokens[0] == 7
    assert tokens[2] < 20
    assert tokens[3] in (36, 37, 38)
    assert 0 <= tokens[4] < 40, "no token is allowed"


def test_greedy_rows_launch_nothing(runtime) -> None:
    x = logits_of((3, 700), "bfloat16")
    x.storage[1, [600, 44, 301]] = tensor([50.0], "bfloat16").storage[0]
    lazy = runtime.upload(to_torch(x))
    launches = HostLaunches()
    choice = core.KernelChoice("sample", {"vocab_size": 700}, {"T": "bfloat16"})
    greedy = Requests(3, temperature=0.0, top_k=5, top_p=0.5)
    before = runtime.counters()["evaluations"]
    tokens = runtime.sample(lazy, rows(greedy), choice, launches)
    assert runtime.counters()["evaluations"] == before
    assert not launches.counts
    found = torch.from_dlpack(tokens).tolist()
    assert found == x.numbers().argmax(1).tolist() and found[1] == 44


def test_nothing_is_evaluated(runtime) -> None:
    lazy = runtime.upload(to_torch(logits_of((8, 130))))
    before = runtime.counters()["evaluations"]
    tokens = runtime.sample(lazy, rows(mixed()))
    assert runtime.counters()["evaluations"] == before
    assert torch.from_dlpack(tokens).shape == (8,)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_does_not_depend_on_the_others(runtime, path: str) -> None:
    logits, requests = logits_of((8, 600), seed=2), mixed()
    together = drawn(runtime, logits, requests, path)
    np.testing.assert_array_equal(together, drawn(runtime, logits, requests, path))
    order = np.random.default_rng(4).permutation(8)[:5]
    some = Requests(5)
    for name, column in vars(requests).items():
        setattr(some, name, column[order])
    found = drawn(runtime, Tensor(logits.storage[order], "float32"), some, path)
    np.testing.assert_array_equal(found, together[order])


@pytest.mark.parametrize("path", PATHS)
def test_seeds_and_steps_draw_anew(runtime, path: str) -> None:
    x = Tensor(np.repeat(logits_of((1, 50)).storage, 40, 0), "float32")
    one = drawn(runtime, x, Requests(40), path)
    for other in (Requests(40, step=1), Requests(40, seed=1)):
        assert (one != drawn(runtime, x, other, path)).any()


@pytest.mark.parametrize(
    "filters",
    [{}, {"temperature": 0.8, "top_k": 6, "top_p": 0.97}, {"temperature": 1.7, "min_p": 0.05}],
    ids=str,
)
@pytest.mark.parametrize("vary", ["seeds", "steps"])
def test_the_distribution_is_the_filtered_softmax(runtime, filters: dict, vary: str) -> None:
    """Pearson's chi-squared over 4,000 draws; the bound is passed by chance once in a million."""
    x = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -8.0], np.float32)
    count = 4000
    logits = tensor(np.repeat(x[None], count, 0), "float32")
    requests = Requests(count, **filters)
    if vary == "steps":
        requests.seeds[:] = requests.seeds[0]
        requests.steps[:] = np.arange(count)
    tokens = drawn(runtime, logits, requests, OPERATIONS)
    keep = kept(x.astype(np.float64), requests, 0)
    heat = float(requests.temperature[0])
    weights = np.where(keep, np.exp(x.astype(np.float64) / heat), 0)
    expected = weights / weights.sum() * count
    found = np.bincount(tokens, minlength=len(x))
    assert (found[~keep] == 0).all()
    statistic = ((found - expected)[keep] ** 2 / expected[keep]).sum()
    assert statistic < 40, (found, expected)


# A token and step whose word has 24 ones in front, with the key (1, 2).
LARGEST_WORD = (52, 111021)


@pytest.mark.parametrize("path", PATHS)
def test_the_largest_word_is_no_infinite_score(runtime, path: str) -> None:
    """A token without any chance is not drawn, whatever the random word: u is below 1."""
    token, step = LARGEST_WORD
    counter = np.array([[token // 4, step, 0, 0]], np.uint32)
    assert philox(counter, np.array([1, 2], np.uint32))[0, token % 4] >= 0xFFFFFF00
    x = np.zeros((1, 130), np.float32)
    x[0, token] = -100
    requests = Requests(1, step=step)
    requests.seeds[:] = [1, 2]
    tokens = drawn(runtime, tensor(x, "float32"), requests, path)
    assert tokens[0] != token
    check(runtime, tensor(x, "float32"), requests, path)


def test_what_is_out_of_range_is_refused(runtime) -> None:
    lazy = runtime.upload(torch.zeros(2, 5))
    good = (1.0, 0, 1.0, 0.0, 1, 1)
    for bad in [(-1.0, *good[1:]), (float("nan"), *good[1:]), (1.0, 0, 0.0, 0.0, 1, 1)]:
        with pytest.raises(ValueError, match="sampling: row 1 has"):
            runtime.sample(lazy, [good, bad])
    with pytest.raises(ValueError, match="parameters of 1 rows"):
        runtime.sample(lazy, [good])
