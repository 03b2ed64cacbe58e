# SPDX-License-Identifier: Apache-2.0
"""Norm and rotation of queries and keys: random projections, the kernel's answers, and the
definition in float64."""

from dataclasses import dataclass

import numpy as np

from .contract import Contract, Run
from .tensor import Tensor, tensor

NEOX, GPTJ, ROTATE_HALF = 0, 1, 2


@dataclass(frozen=True)
class RopeCase:
    """A projection's sizes; `table` is the dtype of cosines and sines, `weight` of the norms'."""

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


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, case: RopeCase) -> np.ndarray:
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


class RopeStep:
    """A case's tensors."""

    def __init__(self, case: RopeCase):
        self.case = case
        random = np.random.default_rng(11)
        width = (case.heads + case.kv_heads) * case.size + case.kv_heads * case.size_v
        wide = tensor(random.standard_normal((case.tokens, width + 5)) * 2, case.dtype)
        qkv = wide[:, 2:-3] if case.strided else Tensor(wide.storage[:, 2:-3].copy(), case.dtype)
        columns = case.rotary // 2 * (2 if case.style == ROTATE_HALF else 1)
        # Halves of one table's rows, as vLLM's cache has them.
        table = tensor(random.uniform(-1, 1, (case.tokens, 2 * columns)), case.table)
        cos, sin = table[:, :columns], table[:, columns:]
        self.weight_dtype = weight_dtype = case.weight or case.dtype
        length = case.size if case.norm else 1
        weights = [tensor(random.uniform(0.5, 2, length), weight_dtype) for _ in range(2)]
        self.inputs = {
            "qkv": qkv,
            "cos": cos,
            "sin": sin,
            "q_weight": weights[0],
            "k_weight": weights[1],
            "eps": tensor(np.float32(1e-6), "float32"),
        }
        self.sizes = {
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

    def answer(self, run: Run, kernel: Contract) -> tuple[Tensor, Tensor]:
        """Queries `[tokens, heads, size]`, cache rows `[tokens, kv_heads, size + size_v]`."""
        case = self.case
        dtypes = {"T": case.dtype, "W": self.weight_dtype, "C": case.table}
        found = kernel.run(run, self.inputs, self.sizes, dtypes)
        return found["q"], found["rows"]

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The same by definition."""
        case, x = self.case, self.inputs["qkv"].numbers()
        ends = np.cumsum([case.heads * case.size, case.kv_heads * case.size])
        q, k, v = np.split(x, ends, axis=1)
        cos, sin = self.inputs["cos"].numbers(), self.inputs["sin"].numbers()
        parts = []
        for part, name in ((q, "q_weight"), (k, "k_weight")):
            heads = part.reshape(case.tokens, -1, case.size)
            if case.norm:
                mean = (heads**2).mean(-1, keepdims=True)
                heads = heads / np.sqrt(mean + 1e-6) * self.inputs[name].numbers()
            parts.append(rotate(heads, cos, sin, case))
        values = v.reshape(case.tokens, case.kv_heads, case.size_v)
        return parts[0], np.concatenate([parts[1], values], -1)
