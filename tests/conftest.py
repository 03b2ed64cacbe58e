# SPDX-License-Identifier: Apache-2.0
"""Tests leave the user's plan cache alone: they share one that goes when they end."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="vllm-metal-tests-")
os.environ["VLLM_METAL_CACHE_DIR"] = _cache.name
