# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(model, backend="mlx")`: PyTorch code lowered to MLX."""

from vllm_metal.compile.backend import mlx
from vllm_metal.compile.errors import CompileError
from vllm_metal.compile.function import LoweredFunction, lower_function
from vllm_metal.compile.graph import LoweredGraph
from vllm_metal.compile.reports import reports, reset_reports

__all__ = [
    "CompileError",
    "LoweredFunction",
    "LoweredGraph",
    "lower_function",
    "mlx",
    "reports",
    "reset_reports",
]
