# SPDX-License-Identifier: Apache-2.0
"""Norms of rows: the kernels' answers, and the definitions in float64."""

import numpy as np

from .contract import Contract, Run
from .tensor import Tensor, tensor

EPS = 1e-5


def run_norm(
    run: Run,
    kernel: Contract,
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    rounded_sum: bool = True,
) -> tuple[Tensor, Tensor]:
    """The norm of `x [rows, width]`, or of its sum with `residual`, and that sum."""
    scale_dtype = weight.dtype if weight else x.dtype
    inputs = {
        "x": x,
        "residual": residual or tensor(np.zeros((1, 1)), x.dtype),
        "weight": weight or tensor(np.zeros(1), scale_dtype),
        "bias": bias or tensor(np.zeros(1), scale_dtype),
        "eps": tensor(np.float32(EPS), "float32"),
    }
    sizes = {
        "num_rows": x.shape[0],
        "width": x.shape[1],
        "has_residual": int(residual is not None),
        "rounded_sum": int(rounded_sum),
        "has_weight": int(weight is not None),
        "has_bias": int(bias is not None),
    }
    found = kernel.run(run, inputs, sizes, {"T": x.dtype, "W": scale_dtype})
    return found["out"], found["sum"]


def add(x: Tensor, residual: Tensor | None, rounded: bool) -> np.ndarray:
    """The sum, rounded to the operands' dtype or not."""
    if residual is None:
        return x.numbers()
    total = x.numbers() + residual.numbers()
    return tensor(total.astype(np.float32), x.dtype).numbers() if rounded else total


def rms_norm(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """`x / sqrt(mean(x^2) + eps) * w`"""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def layer_norm(
    x: np.ndarray, weight: np.ndarray | float = 1.0, bias: np.ndarray | float = 0.0
) -> np.ndarray:
    """`(x - mean) / sqrt(var + eps) * w + b`"""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias
