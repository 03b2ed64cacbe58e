# SPDX-License-Identifier: Apache-2.0
"""Capture: any vLLM model as a graph with a symbolic token count, without its weights."""

from vllm_metal.capture.capture import TOKEN_TYPE_IDS, Captured, IrOps, capture, gives_logits
from vllm_metal.capture.config import capture_config, single_process
from vllm_metal.capture.construct import construct
from vllm_metal.capture.errors import CaptureError, TokenCountGuardError
from vllm_metal.capture.interpret import Interpreter
from vllm_metal.capture.oracle import fill_parameters, prefill

__all__ = [
    "TOKEN_TYPE_IDS",
    "CaptureError",
    "Captured",
    "Interpreter",
    "IrOps",
    "TokenCountGuardError",
    "capture",
    "capture_config",
    "construct",
    "fill_parameters",
    "gives_logits",
    "prefill",
    "single_process",
]
