# SPDX-License-Identifier: Apache-2.0
"""Tiny models to lower."""

from capture.conftest import build, configure

__all__ = ["build", "configure"]
