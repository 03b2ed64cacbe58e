# SPDX-License-Identifier: Apache-2.0
"""What the packaging tests share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root() -> Path:
    """The top folder of the checkout."""
    return ROOT


@pytest.fixture
def vllm_wheel() -> ModuleType:
    """The build backend of python/vllm_wheel, loaded anew so that a test may change it."""
    path = ROOT / "python" / "vllm_wheel" / "vllm_wheel.py"
    spec = importlib.util.spec_from_file_location("vllm_wheel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mlx_build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module build_backend.mlx."""
    monkeypatch.syspath_prepend(str(ROOT / "python"))
    importlib.import_module("build_backend.mlx")
    return sys.modules["build_backend.mlx"]
