# SPDX-License-Identifier: Apache-2.0
"""Capture: any vLLM model as a graph with a symbolic token count, without its weights."""

from vllm_metal.capture.capture import Captured, IrOps, capture
from vllm_metal.capture.config import capture_config, single_process
from vllm_metal.capture.construct import construct
from vllm_metal.capture.errors import CaptureError, TokenCountGuardError
from vllm_metal.capture.interpret import Interpreter
from vllm_metal.capture.oracle import fill_parameters, prefill

__all__ = [
    "CaptureError",
    "Captured",
    "Interpreter",
    "IrOps",
    "TokenCountGuardError",
    "capture",
    "capture_config",
    "construct",
    "fill_parameters",
    "prefill",
    "single_process",
]
