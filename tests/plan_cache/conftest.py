# SPDX-License-Identifier: Apache-2.0
"""Tiny models to lower, and a cache of their own."""

from pathlib import Path

import pytest
from capture.conftest import build, configure

from vllm_metal.plan_cache import PlanCache

__all__ = ["build", "configure"]


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")
