# SPDX-License-Identifier: Apache-2.0
"""Tiny vLLM models, to collect their operators."""

import pytest
from capture.conftest import build, configure

__all__ = ["build", "configure", "every_lowered_operator_is_claimed"]


@pytest.fixture
def every_lowered_operator_is_claimed() -> None:
    """The database has operators without a lowering: docs/ops.md lists them."""
