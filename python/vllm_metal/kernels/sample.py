# SPDX-License-Identifier: Apache-2.0
"""Sampling: the kernel's answer, and what it should be in float64 with the same random numbers."""

import numpy as np
import numpy.typing as npt

from .contract import Contract, Run
from .tensor import Tensor, tensor

SAMPLE = "sample"


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox-4x32-10 of `counter [n, 4]` and `key [2]`: uint32 `[n, 4]`."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(word) for word in key]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> shift) ^ c[1] ^ k[0], b & mask, (a >> shift) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, 1).astype(np.uint32)


class Requests:
    """Per-request parameters; each default switches its filter off."""

    def __init__(self, count: int, seed: int = 0, **given: npt.ArrayLike):
        def column(name: str, default: float, dtype: npt.DTypeLike) -> np.ndarray:
            return np.broadcast_to(np.asarray(given.get(name, default), dtype), (count,)).copy()

        self.temperature = column("temperature", 1.0, np.float32)
        self.top_k = column("top_k", 0, np.int32)
        self.top_p = column("top_p", 1.0, np.float32)
        self.min_p = column("min_p", 0.0, np.float32)
        self.steps = column("step", 0, np.uint32)
        random = np.random.default_rng(seed)
        self.seeds = random.integers(0, 2**32, (count, 2)).astype(np.uint32)


def sample(run: Run, contract: Contract, logits: Tensor, requests: Requests) -> np.ndarray:
    """The kernel's tokens, `[requests]`."""
    inputs = {
        "logits": logits,
        "temperature": tensor(requests.temperature, "float32"),
        "top_k": tensor(requests.top_k, "int32"),
        "top_p": tensor(requests.top_p, "float32"),
        "min_p": tensor(requests.min_p, "float32"),
        "seeds": tensor(requests.seeds, "uint32"),
        "steps": tensor(requests.steps, "uint32"),
    }
    sizes = {"num_requests": logits.shape[0], "vocab_size": logits.shape[1]}
    return contract.run(run, inputs, sizes, {"T": logits.dtype})["tokens"].storage


def kept(x: np.ndarray, requests: Requests, r: int) -> np.ndarray:
    """Which of a request's tokens may be drawn: `[vocab]`, by sorting."""
    if requests.temperature[r] == 0:
        return x == x.max()
    heat = float(requests.temperature[r])
    keep = np.ones(len(x), bool)
    if requests.min_p[r] > 0:
        keep &= x >= x.max() + heat * np.log(float(requests.min_p[r]))
    larger = np.searchsorted(np.sort(-x), -x)
    if 0 < requests.top_k[r] < len(x):
        keep &= larger < requests.top_k[r]
    weights = np.where(keep, np.exp((x - x.max()) / heat), 0)
    if requests.top_p[r] < 1:
        order = np.argsort(-x, kind="stable")
        before = np.concatenate([[0], np.cumsum(weights[order])])[larger] / weights.sum()
        keep &= before < max(requests.top_p[r], 1e-30)
    return keep


def scores(x: np.ndarray, requests: Requests, r: int) -> np.ndarray:
    """What the drawn token maximises: `[vocab]`."""
    if requests.temperature[r] == 0:
        # Of equal ones the first.
        return np.where(np.arange(len(x)) == x.argmax(), x, -np.inf)
    blocks = -(-len(x) // 4)
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0], counter[:, 1] = np.arange(blocks), requests.steps[r]
    words = philox(counter, requests.seeds[r]).reshape(-1)[: len(x)]
    u = ((words >> 9) + 0.5) / 2**23
    noisy = (x - x.max()) / float(requests.temperature[r]) - np.log(-np.log(u))
    return np.where(kept(x, requests, r), noisy, -np.inf)


def scores_of(tokens: np.ndarray, logits: Tensor, requests: Requests) -> tuple[Tensor, np.ndarray]:
    """The scores of drawn tokens, and the largest ones: equal up to the float32 of whoever drew."""
    found, best = [], []
    for r, x in enumerate(logits.numbers()):
        of_row = scores(x, requests, r)
        token = int(tokens[r])
        found.append(of_row[token] if 0 <= token < len(x) else -np.inf)
        best.append(of_row.max())
    return tensor(found, "float32"), np.array(best)
