# SPDX-License-Identifier: Apache-2.0
"""Capture: any vLLM model as a graph with a symbolic token count, without its weights."""

from vllm_metal.capture.capture import Captured, IrOps, capture
from vllm_metal.capture.config import capture_config, single_process
from vllm_metal.capture.construct import construct
from vllm_metal.capture.errors import CaptureError, TokenCountGuardError
from vllm_metal.capture.interpret import Interpreter

__all__ = [
    "CaptureError",
    "Captured",
    "Interpreter",
    "IrOps",
    "TokenCountGuardError",
    "capture",
    "capture_config",
    "construct",
    "single_process",
]
