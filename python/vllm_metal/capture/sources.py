# SPDX-License-Identifier: Apache-2.0
"""Lines of the model's own source: the innermost frame inside a model or layer file."""

import sys
from types import FrameType, TracebackType

_ROOTS = ("/vllm/model_executor/", "/vllm/models/", "/transformers/models/")

_relative: dict[str, str] = {}


def of_caller() -> str:
    """``vllm/model_executor/models/llama.py:141`` for what runs now; empty outside a model."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = _path(frame.f_code.co_filename)
        if path:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def of_traceback(traceback: TracebackType | None) -> str:
    """The same for an exception."""
    found = ""
    while traceback is not None:
        path = _path(traceback.tb_frame.f_code.co_filename)
        if path:
            found = f"{path}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


def _path(filename: str) -> str:
    path = _relative.get(filename)
    if path is None:
        path = _relative[filename] = _relative_to_packages(filename.replace("\\", "/"))
    return path


def _relative_to_packages(filename: str) -> str:
    for root in _ROOTS:
        at = filename.rfind(root)
        if at >= 0 and not filename.endswith("/custom_op.py"):
            return filename[at + 1 :]
    return ""
