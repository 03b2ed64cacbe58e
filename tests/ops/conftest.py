# SPDX-License-Identifier: Apache-2.0
"""Tiny vLLM models, to collect their operators."""

from capture.conftest import build, configure

__all__ = ["build", "configure"]
