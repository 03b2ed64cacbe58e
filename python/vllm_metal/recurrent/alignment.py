# SPDX-License-Identifier: Apache-2.0
"""Prefix caching of states. vLLM copies a state to a request's next block before a step; here the
step reads it where it lies (`metadata`)."""

from typing import Any

from vllm.v1.worker import mamba_utils

from vllm_metal.patches import replaces


@replaces(mamba_utils, "preprocess_mamba")
def preprocess_mamba(*args: Any, **kwargs: Any) -> None:
    """Nothing is to be copied."""
