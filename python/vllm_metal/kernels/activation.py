# SPDX-License-Identifier: Apache-2.0
"""Gated activations: the kernel's answers, and the definition in float64."""

import math

import numpy as np

from .contract import Contract, Run
from .tensor import Tensor

# By the number that the kernel takes.
FUNCTIONS = [
    lambda x: x / (1 + np.exp(-x)),
    lambda x: x * 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    lambda x: np.maximum(x, 0),
]


def gated(run: Run, kernel: Contract, x: Tensor, function: int) -> Tensor:
    """`f(gate) * up` of `x [rows, 2 * width]`."""
    sizes = {"num_rows": x.shape[0], "width": x.shape[1] // 2, "function": function}
    return kernel.run(run, {"x": x}, sizes, {"T": x.dtype})["out"]


def expected_gated(x: Tensor, function: int) -> np.ndarray:
    """The same by definition."""
    gate, up = np.split(x.numbers(), 2, axis=1)
    return FUNCTIONS[function](gate) * up
