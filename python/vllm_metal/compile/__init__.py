# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(model, backend="mlx")`: PyTorch code lowered to MLX."""

from vllm_metal.compile.errors import CompileError
from vllm_metal.compile.graph import LoweredFunction, LoweredGraph, lower_function

__all__ = ["CompileError", "LoweredFunction", "LoweredGraph", "lower_function"]
