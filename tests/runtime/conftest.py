# SPDX-License-Identifier: Apache-2.0
"""A runtime on the CPU for every test, and tiny vLLM models to run on it."""

from collections.abc import Iterator
from typing import Any

import pytest
from capture.conftest import build, configure

from vllm_metal._native import core

__all__ = ["build", "configure", "runtime"]


@pytest.fixture
def runtime() -> Iterator[Any]:
    """MLX on the CPU; closed at the end, with everything that a test left behind."""
    runtime = core.Runtime("cpu")
    yield runtime
    runtime.close()
